"""Every arm's step size is searched alike: whole grid, extended until the best is interior, refined once."""

import math

import pytest

from variegrad.experiments.records import Cell, Record
from variegrad.experiments.step_sizes import search, step_size


def cell_at(half_octaves, seed):
    return Cell(experiment="parabola", version=1, values={"k": half_octaves, "seed": seed})


def searched(score, grid=(-4, -2, 0, 2), seeds=(0, 1), tuning=None):
    """Run a search to its end with the scores of a function."""
    records, rounds = {}, 0
    while True:
        found = search(cell_at, lambda record: record["score"], records, grid=grid, seeds=seeds, tuning_seeds=tuning)
        missing = [cell for cell in found.cells if cell.key not in records]
        if not missing:
            return found, records, rounds
        rounds += 1
        for cell in missing:
            records[cell.key] = Record(cell=cell, values={"score": score(cell["k"], cell["seed"])}, seconds=0.0)


@pytest.mark.parametrize("minimum", [-1, 0, 1, 5, -9])
def test_the_best_is_found_and_interior(minimum):
    found, _, _ = searched(lambda k, _: float((k - minimum) ** 2))
    assert found.best == minimum
    assert found.interior
    assert {minimum - 1, minimum + 1} <= found.tried.keys() or minimum % 2


def test_the_grid_is_tried_whole_before_anything_is_decided():
    found = search(cell_at, lambda record: record["score"], {}, grid=[-4, -2, 0], seeds=[0, 1])
    assert sorted((cell["k"], cell["seed"]) for cell in found.cells) == [(k, s) for k in (-4, -2, 0) for s in (0, 1)]
    assert found.best is None


def test_an_optimum_beyond_every_extension_is_not_called_interior():
    found, _, _ = searched(lambda k, _: float(-k))
    assert not found.interior
    assert found.best == max(found.tried)


def test_a_run_that_diverged_is_never_best():
    found, _, _ = searched(lambda k, _: math.nan if k > 0 else float((k - 2) ** 2))
    assert found.best == 0
    assert found.interior


def test_the_choice_rests_on_the_tuning_repeats_and_all_repeats_are_run_at_it():
    found, records, _ = searched(lambda k, seed: float(k**2 + 100 * seed * k), seeds=(0, 1, 2), tuning=(0,))
    assert found.best == 0
    assert {cell["seed"] for cell in found.cells if cell["k"] == 0} == {0, 1, 2}
    assert {cell["seed"] for cell in found.cells if cell["k"] != 0} == {0}
    assert len(records) == len({cell.key for cell in found.cells})


def test_the_mean_over_tuning_repeats_decides():
    found, _, _ = searched(lambda k, seed: float((k - 2 * seed) ** 2))  # 0 for one repeat, 2 for the other
    assert found.best == 1


def test_divergence_everywhere_is_an_error():
    with pytest.raises(ValueError, match=r"every step size from 2\^-2 to 2\^1 diverged \(parabola: k -4, seed 0\)"):
        searched(lambda *_: math.inf)


def test_half_octaves_are_learning_rates_of_the_mean():
    assert step_size(-6, 16) * 16 == 2.0**-3
    assert step_size(1, 2) == pytest.approx(math.sqrt(2) / 2, rel=1e-15)
