"""Figure 1b: how many passes a training accuracy takes, against the batch size, each with its own step size.

The paper has SGD. Momentum and Adam are our rows: whether the efficiency law survives them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure

from variegrad.experiments import stacked_runs, training_run
from variegrad.experiments.experiment import Experiment, Records, Settings
from variegrad.experiments.intervals import geometric
from variegrad.experiments.records import Cell, Record
from variegrad.experiments.training_run import passes_needed, passes_said, passes_score
from variegrad.experiments.tuned_runs import Configuration, TunedRuns
from variegrad.experiments.verdict import AtLeast, Check, Contrast, Finding, Numbers, learned, paired
from variegrad.reports.curves import Series, panels

NAME, VERSION = "figure-1b", 3
MARGIN = math.log(1.1)  # primary contrast of growth: passes at the largest over the smallest batch
SGD = "SGD"
LAW = math.log(1.25)  # of passes found over passes predicted, at each batch size
SMALL: dict[str, Any] = {
    "problem": "cifar10/2", "without_data": "digits", "max_examples": 512, "network": "convnet:8", "target": 0.95,
    "batch_sizes": [16, 32, 64, 128, 256], "passes": [90, 180, 240, 360, 600], "grid": [-16, -12, -8], "points": 40,
    "bounds_every": 4, "seeds": 24, "tuning": 2,
    "optimizers": {"momentum": [-28, -24, -20], "Adam": [-44, -40, -36]}, "optimizer_batch_sizes": [16, 64, 256],
}  # fmt: skip
PROFILES = {
    "smoke": {**SMALL, "problem": "digits", "max_examples": 64, "network": "mlp:16:relu", "target": 0.6,
              "batch_sizes": [4, 16], "passes": [6, 8], "grid": [-12, -8], "points": 12, "seeds": 2,
              "optimizers": {"momentum": [-24, -20], "Adam": [-32, -28]}, "optimizer_batch_sizes": [4, 16]},
    "small": SMALL,
    "paper": {**SMALL, "problem": "cifar10", "max_examples": 50_000, "network": "convnet:64", "target": 0.95,
              "batch_sizes": [16, 32, 64, 128, 256, 512, 1024, 2048], "passes": [200] * 8, "points": 50,
              "seeds": 8, "optimizer_batch_sizes": [16, 64, 256, 1024]},
}  # fmt: skip


def cells(settings: Settings, records: Records) -> list[Cell]:
    """The step-size search of every optimizer and batch size, and every seed at the step size found."""
    return RUNS.cells(settings, records, _configurations(settings))


def plot(settings: Settings, records: Records) -> Figure:
    """Passes against batch size, beside the law 1 + (B−1)/B_D with the bound met along the runs; for each optimizer."""
    parts = []
    for optimizer, runs in _runs(settings, records).items():
        sizes = list(runs)
        few = sizes[0]
        passes = {size: [passes_needed(record) for record in runs[size]] for size in sizes}
        law = [geometric(_predicted(runs[few], few, size)).mean for size in sizes]
        bound = geometric([_harmonic(record) for record in runs[few]]).mean
        parts.append(("batch size B", f"passes over the data, {optimizer}", [
            Series.of("measured", sizes, [geometric(passes[size]) for size in sizes],
                      beyond=[_last(runs[size]) if _late(passes[size]) else None for size in sizes]),
            Series.reference(f"efficiency law, $B_D$ = {bound:.3g}", sizes, law),
        ]))  # fmt: skip
    title = f"Passes to {100 * settings['target']:g} % training accuracy"
    return panels(title, parts, log_x=True, log_y=True, same_y=True)


def summary(settings: Settings, records: Records) -> list[Finding | Check]:
    """Whether larger batches take more passes, and as many as the efficiency law predicts."""
    runs = _runs(settings, records)
    findings: list[Finding | Check] = [_growth(runs[SGD])]
    for optimizer, by_size in runs.items():
        findings += _against_the_law(optimizer, by_size)
    return [*findings, RUNS.interior(settings, records, _configurations(settings))]


def _growth(runs: Mapping[int, list[Record]]) -> Finding:
    """Whether passes grow with B."""
    sizes = list(runs)
    passes = {size: [passes_needed(record) for record in runs[size]] for size in sizes}

    def growth(few: int, many: int) -> Contrast:
        return paired(f"B = {few} to {many}", passes[few], passes[many], margin=MARGIN)

    return Finding(
        claim="passes to the target grow with the batch size",
        numbers={f"B = {size}": passes_said(passes[size]) for size in sizes}
        | {f"harmonic mean of B_D along the runs at B = {size}": geometric([_harmonic(r) for r in runs[size]])
           for size in sizes if not _late(passes[size])},
        primary=growth(sizes[0], sizes[-1]), secondary=[growth(*pair) for pair in pairwise(sizes)],
        learned=all(map(learned, runs.values())),
    )  # fmt: skip


def _against_the_law(optimizer: str, runs: Mapping[int, list[Record]]) -> list[Finding]:
    """Passes at each batch size against those that the runs of the smallest one predict."""
    few, *larger = runs
    start = f"with {optimizer}, "
    base: Numbers = {
        f"passes, B = {few}": passes_said([passes_needed(record) for record in runs[few]]),
        f"harmonic mean of B_D along the runs at B = {few}": geometric([_harmonic(record) for record in runs[few]]),
    }
    if optimizer == SGD:
        start, base = "", {}  # the first finding has them
    found = []
    for size in larger:
        predicted, passes = _predicted(runs[few], few, size), [passes_needed(record) for record in runs[size]]
        own = _predicted(runs[few], few, size, [_harmonic(record) for record in runs[size]])
        with_own = paired("found over predicted with the B_D of its own runs", own, passes, margin=LAW)
        found.append(Finding(
            claim=f"{start}B = {size} takes more passes than the efficiency law predicts from B = {few}",
            numbers={**base, "predicted passes": geometric(predicted), "passes": passes_said(passes),
                     **dict([str(with_own).split(": ")])},
            primary=paired("found over predicted", predicted, passes, margin=LAW), secondary=[with_own],
            learned=all(map(learned, runs.values())),
        ))  # fmt: skip
    return found


def _late(passes: list[float]) -> bool:
    return any(isinstance(needed, AtLeast) for needed in passes)


def _last(records: list[Record]) -> float:
    return max(float(record["passes"][-1]) for record in records)


def _harmonic(record: Record) -> float:
    """The harmonic mean of B_D until the target: what 1 + (B−1)/B_D averages to along a run."""
    needed = passes_needed(record)
    bounds = [float(bound) for passes, bound in zip(record["bound_passes"], record["bounds"], strict=True)
              if passes <= needed]  # fmt: skip
    return len(bounds) / sum(1 / bound for bound in bounds)


def _predicted(smallest: list[Record], few: int, many: int, met: Sequence[float] | None = None) -> list[float]:
    """Passes at a batch size from those at the smallest, seed by seed: proportional to 1 + (B−1)/B_D.

    B_D is that of the smallest batch's runs; `met` is that of the others', by seed, if it is not the same.
    """
    found = []
    for record, there in zip(smallest, met or map(_harmonic, smallest), strict=True):
        needed = passes_needed(record)
        scale = (1 + (many - 1) / there) / (1 + (few - 1) / _harmonic(record))
        found.append(type(needed)(needed * scale))
    return found


def _arms(settings: Settings) -> dict[str, list[Configuration]]:
    """The configurations of each optimizer; those of SGD do not name it."""
    arms: dict[str, list[Configuration]] = {SGD: [{"batch_size": size} for size in settings["batch_sizes"]]}
    for name in settings["optimizers"]:
        arms[name] = [{"batch_size": size, "optimizer": name} for size in settings["optimizer_batch_sizes"]]
    return arms


def _configurations(settings: Settings) -> list[Configuration]:
    return [one for arm in _arms(settings).values() for one in arm]


def _runs(settings: Settings, records: Records) -> dict[str, dict[int, list[Record]]]:
    """The tuned runs, one per seed, by optimizer and batch size."""
    return {
        name: {one["batch_size"]: RUNS.repeats(settings, records, one) for one in arm}
        for name, arm in _arms(settings).items()
    }


def _grid(settings: Settings, configuration: Configuration) -> list[int]:
    name = configuration.get("optimizer")
    found: list[int] = settings["optimizers"][name] if name else settings["grid"]
    return found


def _values(settings: Settings, configuration: Configuration, tuning: bool) -> Mapping[str, Any]:
    fixed = {key: settings[key] for key in ("problem", "max_examples", "data", "network", "target")}
    at = training_run.points_of(settings, configuration["batch_size"])
    return {**fixed, "at": at, "bounds_every": 0 if tuning else settings["bounds_every"]}


RUNS = TunedRuns(experiment=NAME, version=VERSION, values=_values, score=passes_score, grid=_grid)
EXPERIMENT = Experiment(
    name=NAME,
    version=VERSION,
    title="Figure 1b: passes to a training accuracy against batch size",
    claim="A desired accuracy takes more passes over the data with larger batches.",
    choices="Training accuracy (the paper does not say which). The small profile has 512 training images of 16 × 16 "
    "pixels and an eighth of the network's channels. The step size of each batch size is the one that reaches the "
    "target first. The efficiency law is 1 + (B − 1)/B_D, with the harmonic mean of B_D along the runs of the smallest "
    "batch until the target; nothing is fitted. Momentum (0.9) and Adam are not in the paper; they are tuned and "
    "predicted alike, each from its own runs.",
    profiles=PROFILES, cells=cells, run=stacked_runs.run, plot=plot, summary=summary, on_device=True,
    stack=stacked_runs.stack,
)  # fmt: skip
