"""Figures 3b and 3c: training and test accuracy along the passes at one large batch size, beside a small one.

The paper's claim is about variance: the standard deviation of the test accuracy between repeats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import f as fisher

from variegrad.experiments import training_run
from variegrad.experiments.experiment import Experiment, Records, Settings
from variegrad.experiments.intervals import Finding, interval, verdict
from variegrad.experiments.records import Cell, Record
from variegrad.experiments.tuned_runs import Arm, TunedRuns
from variegrad.reports.curves import Series, panels

VERSION = 1
CHANCE = 0.1  # the accuracy of guessing one of ten classes


def generalisation(*, name: str, title: str, choices: str, profiles: dict[str, dict[str, Any]]) -> Experiment:
    """The experiment for one large batch size.

    Args:
        name: what is typed.
        title: what it shows.
        choices: what was chosen where the paper is silent.
        profiles: settings; `batch_sizes` are the small and the large one.

    Returns:
        The experiment.
    """
    runs_of = TunedRuns(experiment=name, version=VERSION)

    def tuned(settings: Settings, records: Records, batch_size: int) -> list[Record]:
        return runs_of.repeats(settings, records, Arm(batch_size=batch_size))

    def cells(settings: Settings, records: Records) -> list[Cell]:
        searches = [runs_of.search(settings, records, Arm(batch_size=size)) for size in settings["batch_sizes"]]
        return [cell for found in searches for cell in found.cells]

    def plot(settings: Settings, records: Records) -> Figure:
        parts = []
        for curve, what in (("accuracies", "training accuracy"), ("test_accuracies", "test accuracy")):
            series = []
            for size in settings["batch_sizes"]:
                runs = tuned(settings, records, size)
                points = list(zip(*(record[curve] for record in runs), strict=True))
                # Each run, because the claim is about their spread.
                mean = [sum(p) / len(p) for p in points]
                series.append(Series(
                    label=f"B = {size}", x=runs[0]["passes"], mean=mean, low=mean, high=mean,
                    runs=[record[curve] for record in runs],
                ))  # fmt: skip
            ends = [series[0].x[0], series[0].x[-1]]
            series.append(Series.reference("chance", ends, [CHANCE, CHANCE]))
            parts.append(("passes over the data", f"{what}: runs and mean", series))
        return panels("Accuracy along the passes", parts)

    def summary(settings: Settings, records: Records) -> list[Finding]:
        small, large = (tuned(settings, records, size) for size in settings["batch_sizes"])
        few, many = settings["batch_sizes"]
        ends = [[float(record["test_accuracies"][-1]) for record in runs] for runs in (small, large)]
        low, ratio, high = _ratio_of_deviations(*ends)
        wider = low > 1
        gap = interval([b - a for a, b in zip(*ends, strict=True)])
        return [
            Finding(
                claim=f"test accuracy varies more between repeats at B = {many} than at B = {few}",
                found=f"ratio of standard deviations at the end {ratio:.4g} [{low:.4g}, {high:.4g}] (F test, normal "
                f"repeats); test accuracy B = {few}: {interval(ends[0])}, B = {many}: {interval(ends[1])}",
                verdict="holds" if wider else "does not hold here",
            ),
            Finding(
                claim=f"B = {many} generalises worse than B = {few} after the same passes",
                found=f"difference of test accuracies {gap}",
                verdict=verdict([interval([a - b for a, b in zip(*ends, strict=True)])]),
            ),
        ]

    return Experiment(
        name=name, title=title, choices=choices, profiles=profiles, cells=cells, run=training_run.run, plot=plot,
        summary=summary, claim="With large batches the models show higher variance in their generalisation behaviour.",
    )  # fmt: skip


def _ratio_of_deviations(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """sd(other)/sd(one) with its 95 % interval for independent normal repeats: lower end, ratio, upper end."""
    a, b = float(np.std(one, ddof=1)), float(np.std(other, ddof=1))
    if a == 0:
        return 0.0, math.inf if b else 1.0, math.inf
    freedom = (len(other) - 1, len(one) - 1)
    low, high = (float(fisher.ppf(level, *freedom)) for level in (0.975, 0.025))
    return b / a / math.sqrt(low), b / a, b / a / math.sqrt(high)
