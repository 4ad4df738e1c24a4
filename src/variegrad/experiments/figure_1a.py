"""Figure 1a: the speed-up of one pass over the data against the batch size, measured and by t = α + c·B/P an update."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from variegrad.experiments.experiment import Experiment, Records, Settings, Values, seeds
from variegrad.experiments.intervals import geometric
from variegrad.experiments.records import Cell
from variegrad.experiments.timed_run import run_in_turns
from variegrad.experiments.verdict import Contrast, Finding, paired
from variegrad.reports.curves import Series, panels

NAME, VERSION = "figure-1a", 3
MARGIN = math.log(1.1)  # primary contrast: the speed-up of a pass from the smallest to the largest batch
SMALL: dict[str, Any] = {
    "problem": "cifar10", "without_data": "digits", "max_examples": 512, "network": "convnet:16", "workers": [1, 2],
    "batch_sizes": [16, 64, 256], "turns": 20, "seeds": 6,
}  # fmt: skip
PROFILES = {
    "smoke": {**SMALL, "problem": "digits", "max_examples": 64, "network": "mlp:8:relu", "workers": [1],
              "batch_sizes": [4, 16], "turns": 4, "seeds": 2},
    "small": SMALL,
    "paper": {**SMALL, "max_examples": 50_000, "network": "convnet:64", "batch_sizes": [16, 32, 64, 128, 256, 512, 1024,
              2048], "workers": [1, 2, 4, 8], "turns": 50},
}  # fmt: skip


def cells(settings: Settings, records: Records) -> list[Cell]:  # noqa: ARG001 - an experiment's signature
    """Every batch size on every number of workers, for every repeat."""
    return [
        _cell(settings, workers, size, seed)
        for seed in seeds(settings) for workers in settings["workers"] for size in settings["batch_sizes"]
    ]  # fmt: skip


def run(group: Sequence[Cell]) -> list[Values]:
    """The median time of an update, for every batch size on the same workers, one update each in turns."""
    specs = [dict(cell.values) for cell in group]
    found = run_in_turns(specs, workers=group[0]["workers"], turns=group[0]["turns"], updates=1)
    times = [[seconds for turn in one["turns"] for seconds in turn] for one in found]
    return [{"seconds_per_update": statistics.median(of_size), "updates": of_size} for of_size in times]


def speed_ups(settings: Settings, records: Records, workers: int) -> dict[int, list[float]]:
    """Time of a pass at the smallest batch on one worker over that at each batch size, by seed.

    Args:
        settings: of the profile.
        records: finished.
        workers: P.

    Returns:
        Speed-ups by batch size.
    """
    first = settings["batch_sizes"][0]
    base = [_seconds(settings, records, settings["workers"][0], first, seed) / first for seed in seeds(settings)]
    return {
        size: [one * size / _seconds(settings, records, workers, size, seed)
               for one, seed in zip(base, seeds(settings), strict=True)]
        for size in settings["batch_sizes"]
    }  # fmt: skip


def plot(settings: Settings, records: Records) -> Figure:
    """Speed-up against batch size, for each number of workers, with the model fitted to it."""
    sizes = settings["batch_sizes"]
    series = []
    for workers in settings["workers"]:
        found = speed_ups(settings, records, workers)
        name = f"{workers} worker{'s' if workers > 1 else ''}"
        series.append(Series.of(name, sizes, [geometric(found[size]) for size in sizes]))
    for place, workers in enumerate(settings["workers"]):
        alpha, slope = _model(settings, records, workers)
        base = geometric(
            [_seconds(settings, records, settings["workers"][0], sizes[0], s) for s in seeds(settings)]
        ).mean
        law = [base / sizes[0] * size / (alpha + slope * size) for size in sizes]
        series.append(Series.reference("α + c·B/P" if workers == settings["workers"][0] else "", sizes, law, of=place))
    return panels("Speed-up of one pass", [("batch size B", "speed-up", series)], log_x=True, log_y=True)


def summary(settings: Settings, records: Records) -> list[Finding]:
    """Whether a pass gets faster with the batch size, and with workers."""
    findings = []
    for workers in settings["workers"]:
        found = speed_ups(settings, records, workers)
        alpha, slope = _model(settings, records, workers)
        sizes = settings["batch_sizes"]

        def faster(few: int, many: int, speeds: dict[int, list[float]] = found) -> Contrast:
            return paired(f"B = {few} to {many}", speeds[few], speeds[many], margin=MARGIN)

        findings.append(Finding(
            claim=f"a pass gets faster with the batch size, P = {workers}",
            numbers={**{f"B = {size}": geometric(found[size]) for size in sizes},
                     "fitted": f"α = {1000 * alpha:.3g} ms, c/P = {1e6 * slope:.4g} µs per example"},
            primary=faster(sizes[0], sizes[-1]), secondary=[faster(*pair) for pair in pairwise(sizes)],
        ))  # fmt: skip
    return findings


def _model(settings: Settings, records: Records, workers: int) -> tuple[float, float]:
    """α and c/P of seconds = α + (c/P)·B, by least squares of relative errors."""
    sizes = [size for size in settings["batch_sizes"] for _ in seeds(settings)]
    times = [_seconds(settings, records, workers, size, s) for size in settings["batch_sizes"] for s in seeds(settings)]
    rows = np.array([[1 / t, size / t] for size, t in zip(sizes, times, strict=True)])
    alpha, slope = np.linalg.lstsq(rows, np.ones(len(times)), rcond=None)[0]
    return float(alpha), float(slope)


def _seconds(settings: Settings, records: Records, workers: int, batch_size: int, seed: int) -> float:
    return float(records[_cell(settings, workers, batch_size, seed).key]["seconds_per_update"])


def _cell(settings: Settings, workers: int, batch_size: int, seed: int) -> Cell:
    fixed = {key: settings[key] for key in ("problem", "max_examples", "data", "network", "turns")}
    return Cell(experiment=NAME, version=VERSION, values={
        **fixed, "workers": workers, "batch_size": batch_size, "step_size": 0.01 / batch_size, "seed": seed,
        "drop": 0.0, "rescale": True, "granularity": "example",
    })  # fmt: skip


EXPERIMENT = Experiment(
    name=NAME,
    version=VERSION,
    title="Figure 1a: speed-up of one pass against batch size",
    claim="Large batches give large speed-ups of a pass over the data, since there are fewer rounds of communication.",
    choices="Speed-up over one worker at the smallest batch. Workers are processes on one machine over loopback, one "
    "thread each. Within a block (a seed) the batch sizes take turns on the same processes, one update each, after "
    "warming up, so that a machine that changes its speed changes all of them; times are medians over the turns.",
    profiles=PROFILES, cells=cells, run=run, plot=plot, summary=summary,
    group=lambda cell: (cell["workers"], cell["seed"]), alone=lambda _: True,
)  # fmt: skip
