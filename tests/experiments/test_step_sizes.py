"""Step sizes are tuned alike everywhere: extended until the best is interior, refined, and safe against noise."""

import math

import numpy as np
import pytest

from variegrad.experiments import experiment, names
from variegrad.experiments.experiment import seeds, tuning_seeds
from variegrad.experiments.records import Cell, Record
from variegrad.experiments.step_sizes import interior, pessimistic, search, step_size
from variegrad.experiments.tuned_runs import TunedRuns
from variegrad.experiments.verdict import paired


def cell_at(k, seed):
    return Cell(experiment="parabola", version=1, values={"k": k, "seed": seed})


def searched(score, grid=(-8, -4, 0, 4), seeds=(0, 1), finest=1):
    """Run a search to its end with the scores of a function."""
    records = {}
    while True:
        found = search(cell_at, lambda record: record["score"], records, grid=grid, seeds=seeds, finest=finest)
        missing = [cell for cell in found.cells if cell.key not in records]
        if not missing:
            return found, records
        for cell in missing:
            records[cell.key] = Record(cell=cell, values={"score": score(cell["k"], cell["seed"])}, seconds=0.0)


@pytest.mark.parametrize("minimum", [-22, -9, -2, -1, 0, 1, 2, 3, 5, 17, 22])
@pytest.mark.parametrize("grid", [(-8, -4, 0, 4), (0,), (-1, 1)])
def test_the_best_is_found_with_neighbours_on_both_sides(minimum, grid):
    found, _ = searched(lambda k, _: float((k - minimum) ** 2), grid)
    assert found.best == minimum
    assert found.interior
    assert {minimum - 1, minimum + 1} <= found.tried.keys()


def test_a_coarser_search_stops_earlier():
    fine, coarse = (searched(lambda k, _: float((k - 3) ** 2), finest=finest)[0] for finest in (1, 2))
    assert abs(coarse.best - 3) <= 1
    assert coarse.interior
    assert coarse.tried.keys() < fine.tried.keys()


def test_the_grid_is_tried_whole_before_anything_is_decided():
    found = search(cell_at, lambda record: record["score"], {}, grid=[-8, -4, 0], seeds=[0, 1])
    assert sorted((cell["k"], cell["seed"]) for cell in found.cells) == [(k, s) for k in (-8, -4, 0) for s in (0, 1)]
    assert found.best is None


@pytest.mark.parametrize("side", [-1, 1])
def test_an_optimum_beyond_every_extension_is_not_called_interior(side):
    found, _ = searched(lambda k, _: float(-side * k))
    assert not found.interior
    assert found.best == (max if side > 0 else min)(found.tried)
    assert interior([found]).verdict == "not met"


def test_an_optimum_at_the_border_of_its_grid_is_extended_over():
    found, _ = searched(lambda k, _: abs(k - 4.2))
    assert found.best == 4
    assert max(found.tried) >= 8
    assert interior([found]).verdict == "holds"


def test_a_run_that_diverged_is_never_best():
    found, _ = searched(lambda k, _: math.nan if k > 0 else float((k - 2) ** 2))
    assert found.best == 0
    assert found.interior


def test_a_step_size_that_fails_with_one_seed_loses_to_one_that_never_does():
    """The mean of k = 0 is better; with one of the two tuning seeds it nearly diverges."""
    found, _ = searched(lambda k, seed: (0.5 if seed else 1.4) if k == 0 else 1.0 + 0.01 * abs(k))
    assert found.best != 0


def test_the_score_is_the_mean_plus_one_standard_error():
    assert pessimistic([1.0, 3.0]) == pytest.approx(2 + math.sqrt(2) / math.sqrt(2))
    assert pessimistic([2.0]) == 2.0
    for broken in (math.nan, math.inf, -math.inf):
        assert pessimistic([1.0, broken]) == math.inf


def test_divergence_everywhere_is_an_error():
    with pytest.raises(ValueError, match=r"every step size from 2\^-2 to 2\^1 diverged \(parabola: k -8, seed 0\)"):
        searched(lambda *_: math.inf)


def test_quarter_octaves_are_learning_rates_of_the_mean():
    assert step_size(-12, 16) * 16 == 2.0**-3
    assert step_size(1, 2) == pytest.approx(2**0.25 / 2, rel=1e-15)


NOISE = 0.02


def loss(record):
    """A parabola of the log step size around 2^-4, of curvature 0.05 per octave², times noise of its own."""
    octaves = math.log2(record["step_size"] * record["batch_size"]) + 4
    keyed = np.random.default_rng([record["seed"], round(8 * octaves) + 1000, record["batch_size"], record["arm"]])
    return (1 + 0.05 * octaves**2) * math.exp(NOISE * keyed.standard_normal())


def tuned(settings, runs, configurations):
    records = {}
    while missing := [c for c in runs.cells(settings, records, configurations) if c.key not in records]:
        for cell in missing:
            values = {"loss": loss(cell), "elsewhere": cell["step_size"] * cell["batch_size"]}
            records[cell.key] = Record(cell=cell, values=values, seconds=0.0)
    return records


RUNS = TunedRuns(experiment="noisy", version=1, values=lambda *_: {}, score=lambda record: record["loss"])


@pytest.mark.parametrize("offset", range(0, 1000, 100))
def test_equal_configurations_that_noise_tunes_differently_are_not_found_to_differ(offset):
    """A tie in the search: the tuned quantity hardly depends on it, though the step sizes chosen do differ."""
    settings = {"grid": [-24, -20, -16, -12], "seeds": 10, "tuning": 2, "seed_offset": offset}
    both = [{"batch_size": 16, "arm": arm} for arm in (0, 1)]
    records = tuned(settings, RUNS, both)
    one, other = ([r["loss"] for r in RUNS.repeats(settings, records, arm)] for arm in both)
    assert abs(paired("A/A", one, other, margin=math.log(1.05)).mean) < 0.05
    assert RUNS.interior(settings, records, both).met


def test_ties_do_choose_different_step_sizes():
    chosen = set()
    for offset in range(0, 1000, 100):
        settings = {"grid": [-24, -20, -16, -12], "seeds": 2, "tuning": 2, "seed_offset": offset}
        arm = {"batch_size": 16, "arm": 0}
        chosen.add(RUNS.best(settings, tuned(settings, RUNS, [arm]), arm))
    assert len(chosen) > 2


def test_no_seed_is_tuned_on_and_evaluated():
    settings = {"grid": [-20, -16, -12], "seeds": 5, "tuning": 3, "seed_offset": 7}
    assert not {*seeds(settings)} & {*tuning_seeds(settings)}
    records = tuned(settings, RUNS, [{"batch_size": 16, "arm": 0}])
    best = RUNS.best(settings, records, {"batch_size": 16, "arm": 0})
    of_best = {r.cell["seed"] for r in records.values() if r.cell["step_size"] == step_size(best, 16)}
    assert of_best == {*seeds(settings), *tuning_seeds(settings)}
    others = {r.cell["seed"] for r in records.values() if r.cell["step_size"] != step_size(best, 16)}
    assert others == {*tuning_seeds(settings)}


@pytest.mark.parametrize("name", names())
def test_every_profile_that_tunes_has_two_tuning_seeds(name):
    for settings in experiment(name).profiles.values():
        assert settings.get("tuning", 2) >= 2
