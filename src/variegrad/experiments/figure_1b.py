"""Figure 1b: how many passes a training accuracy takes, against the batch size, each with its own step size."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure

from variegrad.experiments import training_run
from variegrad.experiments.experiment import Experiment, Records, Settings, seeds
from variegrad.experiments.intervals import geometric
from variegrad.experiments.records import Cell, Record
from variegrad.experiments.step_sizes import Search, interior, search, step_size
from variegrad.experiments.verdict import AtLeast, Check, Contrast, Finding, learned, paired
from variegrad.reports.curves import Series, panels

NAME, VERSION = "figure-1b", 2
MARGIN = math.log(1.1)  # primary contrast: passes from the smallest to the largest batch
SMALL: dict[str, Any] = {
    "problem": "cifar10", "without_data": "digits", "max_examples": 512, "network": "convnet:8", "target": 0.95,
    "batch_sizes": [16, 32, 64, 256], "grid": [-14, -12, -10, -8, -6], "passes": 60, "points": 60, "seeds": 3,
    "tuning": 1,
}  # fmt: skip
PROFILES = {
    "smoke": {**SMALL, "problem": "digits", "max_examples": 64, "network": "mlp:16:relu", "target": 0.6,
              "batch_sizes": [4, 16], "grid": [-6, -4], "passes": 6, "points": 12, "seeds": 2},
    "small": SMALL,
    "paper": {**SMALL, "max_examples": 50_000, "network": "convnet:64", "batch_sizes": [16, 32, 64, 128, 256, 512, 1024,
              2048], "passes": 200, "points": 400},
}  # fmt: skip


def cells(settings: Settings, records: Records) -> list[Cell]:
    """The step-size search of every batch size."""
    return [cell for size in settings["batch_sizes"] for cell in _search(settings, records, size).cells]


def passes_needed(record: Record) -> float:
    """Passes until the training accuracy first reaches the target; +inf where it does not.

    Args:
        record: of a run.

    Returns:
        A number of passes.
    """
    target = record.cell["target"]
    pairs = zip(record["passes"], record["accuracies"], strict=True)
    return next((float(passes) for passes, accuracy in pairs if accuracy >= target), math.inf)


def plot(settings: Settings, records: Records) -> Figure:
    """Passes against batch size, beside the law 1 + (B−1)/B_D with the bound met along the runs."""
    sizes = settings["batch_sizes"]
    found = {size: _tuned(settings, records, size) for size in sizes}
    passes = {size: [passes_needed(record) for record in found[size]] for size in sizes}
    least = geometric(passes[sizes[0]]).mean
    bound = _harmonic(found[sizes[0]])
    law = [least * (1 + (size - 1) / bound) / (1 + (sizes[0] - 1) / bound) for size in sizes]
    return panels(
        f"Passes to {100 * settings['target']:g} % training accuracy",
        [("batch size B", "passes over the data", [
            Series.of("measured", sizes, [geometric(passes[size]) for size in sizes]),
            Series.reference(f"efficiency law, $B_D$ = {bound:.3g}", sizes, law),
        ])], log_x=True, log_y=True,
    )  # fmt: skip


def summary(settings: Settings, records: Records) -> list[Finding | Check]:
    """Whether larger batches take more passes."""
    sizes = settings["batch_sizes"]
    runs = {size: _tuned(settings, records, size) for size in sizes}
    passes = {size: [_censored(record) for record in runs[size]] for size in sizes}

    def growth(few: int, many: int) -> Contrast:
        return paired(f"B = {few} to {many}", passes[few], passes[many], margin=MARGIN)

    return [
        Finding(
            claim="passes to the target grow with the batch size",
            numbers="; ".join(f"B = {size}: {_said(passes[size])}" for size in sizes)
            + f"; harmonic mean of B_D along the runs at B = {sizes[0]}: {_harmonic(runs[sizes[0]]):.4g}",
            primary=growth(sizes[0], sizes[-1]), secondary=[growth(*pair) for pair in pairwise(sizes)],
            learned=all(map(learned, runs.values())),
        ),
        interior([_search(settings, records, size) for size in sizes]),
    ]  # fmt: skip


def _censored(record: Record) -> float:
    """Passes until the target; at least those that were run, if it was not reached."""
    needed = passes_needed(record)
    return needed if math.isfinite(needed) else AtLeast(record["passes"][-1])


def _said(passes: list[float]) -> str:
    late = [needed for needed in passes if isinstance(needed, AtLeast)]
    return f"more than {min(late):g} in {len(late)} of {len(passes)} runs" if late else str(geometric(passes))


def _harmonic(records: list[Record]) -> float:
    """The harmonic mean of B_D until the target: what 1 + (B−1)/B_D averages to along a run."""
    bounds = [
        float(bound) for record in records
        for passes, bound in zip(record["passes"], record["bounds"], strict=True)
        if passes <= passes_needed(record) and bound > 0
    ]  # fmt: skip
    return len(bounds) / sum(1 / bound for bound in bounds)


def _search(settings: Settings, records: Records, batch_size: int) -> Search:
    return search(
        _cell_at(settings, batch_size), _score, records, grid=settings["grid"], seeds=seeds(settings),
        tuning_seeds=seeds(settings)[: settings["tuning"]],
    )  # fmt: skip


def _score(record: Record) -> float:
    """Passes needed; beyond the end of the run, the more the further the accuracy stayed away."""
    needed = passes_needed(record)
    if math.isfinite(needed) or record["diverged"]:
        return needed
    return float(record["passes"][-1] * (2 + record.cell["target"] - max(record["accuracies"])))


def _tuned(settings: Settings, records: Records, batch_size: int) -> list[Record]:
    best = _search(settings, records, batch_size).best
    assert best is not None
    return [records[_cell_at(settings, batch_size)(best, seed).key] for seed in seeds(settings)]


def _cell_at(settings: Settings, batch_size: int) -> Callable[[int, int], Cell]:
    fixed = {key: settings[key] for key in ("problem", "max_examples", "data", "network", "target")}
    largest = max(settings["batch_sizes"])
    at = training_run.aligned(settings["passes"], settings["points"], settings["examples"], largest)
    return lambda half_octaves, seed: Cell(experiment=NAME, version=VERSION, values={
        **fixed, "r": 1, "drop": 0.0, "batch_size": batch_size, "seed": seed, "at": at, "bounds": True,
        "step_size": step_size(half_octaves, batch_size),
    })  # fmt: skip


EXPERIMENT = Experiment(
    name=NAME,
    title="Figure 1b: passes to a training accuracy against batch size",
    claim="A desired accuracy takes more passes over the data with larger batches.",
    choices="Training accuracy (the paper does not say which). The small profile has 512 training images and an eighth "
    "of the network's channels. The step size of each batch size is the one that reaches the target first. The dashed "
    "line is what 1 + (B − 1)/B_D predicts, with the bound measured along the runs of the smallest batch.",
    profiles=PROFILES, cells=cells, run=training_run.run, plot=plot, summary=summary,
)  # fmt: skip
