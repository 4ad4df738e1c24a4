"""Figure 3a: two runs on data sets that differ in one example, and how far apart their weights end up.

Both runs start alike and draw the same positions. √(‖w−w′‖²/(‖w‖²+‖w′‖²)) and the differential B_D(w, w′) along the
way, with the step size γ of the sum held fixed across batch sizes, and with the step size tuned for each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure

from variegrad.experiments import data, training_run
from variegrad.experiments.experiment import Experiment, Records, Settings, Values, seeds
from variegrad.experiments.intervals import geometric
from variegrad.experiments.records import Cell, Record
from variegrad.experiments.step_sizes import Search, search, step_size
from variegrad.experiments.verdict import Contrast, Finding, learned, paired
from variegrad.problems import neighbours
from variegrad.reports.curves import Series, panels
from variegrad.training import Every, TrainConfig, twin_runs

NAME, VERSION = "figure-3a", 1
MARGIN = math.log(1.1)  # primary contrast: the distance at the end, from the smallest to the largest batch
SMALL: dict[str, Any] = {
    "problem": "cifar10", "without_data": "digits", "max_examples": 512, "network": "convnet:8",
    "batch_sizes": [32, 128, 512], "grid": [-14, -12, -10, -8, -6], "passes": 10, "points": 5, "seeds": 10, "tuning": 1,
}  # fmt: skip
PROFILES = {
    "smoke": {**SMALL, "problem": "digits", "max_examples": 96, "network": "mlp:8:relu", "batch_sizes": [8, 32],
              "grid": [-8, -6], "passes": 2, "points": 2, "seeds": 2},
    "small": SMALL,
    "paper": {**SMALL, "max_examples": None, "network": "convnet:64", "batch_sizes": [32, 128, 512, 1024],
              "passes": 50, "points": 50},
}  # fmt: skip


def cells(settings: Settings, records: Records) -> list[Cell]:
    """A step-size search for each batch size, then every batch size at the largest one's γ."""
    searches = {size: _search(settings, records, size) for size in settings["batch_sizes"]}
    every = [cell for found in searches.values() for cell in found.cells]
    if all(found.best is not None for found in searches.values()):
        sizes = settings["batch_sizes"]
        every += [
            cell for size in sizes for fixed in (True, False) for cell in _arm(settings, records, size, fixed=fixed)
        ]
    return every


def run(group: Sequence[Cell]) -> list[Values]:
    """A plain run of the search, or twin runs side by side."""
    (cell,) = group
    if not cell["twins"]:
        return list(training_run.run(group))
    problem = data.problem(cell["problem"], cell["max_examples"])
    whole = data.tensors(cell["problem"], cell["max_examples"])
    pair = neighbours(whole, problem.test, seed=cell["seed"])
    config = TrainConfig(
        batch_size=cell["batch_size"],
        step_size=cell["step_size"],
        passes=cell["at"][-1] / len(whole),
        seed=cell["seed"],
    )
    found = twin_runs(
        training_run.fresh(cell, whole), problem.losses, pair.first, pair.second, config,
        every=Every(updates=cell["at"][0] // cell["batch_size"]),
    )  # fmt: skip
    return [{"passes": found.passes, "distances": found.normalised_distances, "bounds": found.bounds}]


def distances(settings: Settings, records: Records, batch_size: int, *, fixed: bool) -> list[list[float]]:
    """The distances along the run of every seed.

    Args:
        settings: of the profile.
        records: finished.
        batch_size: B.
        fixed: whether γ is the same for all batch sizes.

    Returns:
        One list a seed.
    """
    return [_of(records, cell)["distances"] for cell in _arm(settings, records, batch_size, fixed=fixed)]


def plot(settings: Settings, records: Records) -> Figure:
    """Distance against passes, for each batch size and both choices of the step size."""
    parts = []
    for fixed, title in ((True, "same γ"), (False, "γ tuned for each B")):
        series = []
        for size in settings["batch_sizes"]:
            runs = distances(settings, records, size, fixed=fixed)
            passes = _of(records, _arm(settings, records, size, fixed=fixed)[0])["passes"]
            series.append(Series.of(f"B = {size}", passes, [geometric(at) for at in zip(*runs, strict=True)]))
        parts.append(("passes over the data", f"normalised distance, {title}", series))
    return panels("Twin runs, one training example replaced", parts, log_y=True)


def summary(settings: Settings, records: Records) -> list[Finding]:
    """Whether the distance at the end grows with the batch size."""
    sizes = settings["batch_sizes"]
    have_learned = all(learned(_tuning_runs(settings, records, size)) for size in sizes)
    findings = []
    for fixed, title in ((False, "with γ tuned for each B"), (True, "with the same γ for all B")):
        ends = {size: [run[-1] for run in distances(settings, records, size, fixed=fixed)] for size in sizes}

        def growth(few: int, many: int, far: dict[int, list[float]] = ends) -> Contrast:
            return paired(f"B = {few} to {many}", far[few], far[many], margin=MARGIN)

        findings.append(Finding(
            claim=f"the normalised distance at the end grows with B, {title}",
            numbers="; ".join(f"B = {size}: {geometric(ends[size])}" for size in sizes),
            primary=growth(sizes[0], sizes[-1]), secondary=[growth(*pair) for pair in pairwise(sizes)],
            learned=have_learned,
        ))  # fmt: skip
    least = {
        size: [min(map(float, _of(records, cell)["bounds"])) for cell in _arm(settings, records, size, fixed=False)]
        for size in sizes
    }

    def below(size: int) -> Contrast:
        return paired(f"least B_D(w, w′) over B = {size}", [size] * len(least[size]), least[size], margin=MARGIN)

    findings.append(Finding(
        claim="the largest batch stays below the differential bound B_D(w, w′) met along the run (empirical, no bound)",
        numbers="; ".join(f"B = {size}: least B_D(w, w′) {geometric(least[size])}" for size in sizes),
        primary=below(sizes[-1]), secondary=[below(size) for size in sizes[:-1]], learned=have_learned,
    ))  # fmt: skip
    return findings


def _tuning_runs(settings: Settings, records: Records, batch_size: int) -> list[Record]:
    """The plain runs at the tuned step size: twin runs keep no losses."""
    best = _search(settings, records, batch_size).best
    assert best is not None
    gamma = step_size(best, batch_size)
    return [_of(records, _cell(settings, batch_size, gamma, seed, twins=False)) for seed in _tuning_seeds(settings)]


def _tuning_seeds(settings: Settings) -> list[int]:
    return seeds(settings)[: settings["tuning"]]


def _of(records: Records, cell: Cell) -> Record:
    return records[cell.key]


def _arm(settings: Settings, records: Records, batch_size: int, *, fixed: bool) -> list[Cell]:
    largest = max(settings["batch_sizes"])
    best = _search(settings, records, largest if fixed else batch_size).best
    assert best is not None
    gamma = step_size(best, largest if fixed else batch_size)
    return [_cell(settings, batch_size, gamma, seed, twins=True) for seed in seeds(settings)]


def _search(settings: Settings, records: Records, batch_size: int) -> Search:
    return search(
        lambda half_octaves, seed: _cell(settings, batch_size, step_size(half_octaves, batch_size), seed, twins=False),
        lambda record: float(record["online_loss"]), records,
        grid=settings["grid"], seeds=_tuning_seeds(settings),
    )  # fmt: skip


def _cell(settings: Settings, batch_size: int, gamma: float, seed: int, *, twins: bool) -> Cell:
    fixed = {name: settings[name] for name in ("problem", "max_examples", "data", "network")}
    # At equal distances, which are whole updates of the largest batch.
    every = max(1, round(settings["passes"] * settings["examples"] / settings["points"] / max(settings["batch_sizes"])))
    at = [max(settings["batch_sizes"]) * every * k for k in range(1, settings["points"] + 1)]
    return Cell(experiment=NAME, version=VERSION, values={
        **fixed, "batch_size": batch_size, "step_size": gamma, "seed": seed, "at": at, "r": 1, "drop": 0.0,
        "bounds": False, "twins": twins,
    })  # fmt: skip


EXPERIMENT = Experiment(
    name=NAME,
    title="Figure 3a: stability, the distance of twin runs",
    claim="The normalised distance between the models of two data sets that differ in one point grows with the "
    "batch size.",
    choices="The replaced example comes from the test set; both runs draw the same positions, with replacement, "
    "without augmentation or dropout. The paper does not say how the step size depends on the batch: both "
    "readings are shown.",
    profiles=PROFILES, cells=cells, run=run, plot=plot, summary=summary,
)  # fmt: skip
