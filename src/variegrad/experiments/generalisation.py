"""Figures 3b and 3c: training and test accuracy along the passes at one large batch size, beside a small one.

The paper's claim is about variance: the standard deviation of the test accuracy between repeats.
"""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import Figure

from variegrad.experiments import training_run
from variegrad.experiments.experiment import Experiment, Records, Settings
from variegrad.experiments.intervals import interval
from variegrad.experiments.records import Cell, Record
from variegrad.experiments.step_sizes import interior
from variegrad.experiments.tuned_runs import Arm, TunedRuns
from variegrad.experiments.verdict import Check, Finding, deviations, learned, paired
from variegrad.reports.curves import Series, panels

VERSION = 1
CHANCE = 0.1  # the accuracy of guessing one of ten classes
MARGIN = math.log(1.25)  # of the ratio of standard deviations between seeds
BEHIND = math.log(1.05)  # of the ratio of mean test accuracies


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

    def summary(settings: Settings, records: Records) -> list[Finding | Check]:
        small, large = (tuned(settings, records, size) for size in settings["batch_sizes"])
        few, many = settings["batch_sizes"]
        ends = [[float(record["test_accuracies"][-1]) for record in runs] for runs in (small, large)]
        have_learned = learned([*small, *large])
        numbers = f"test accuracy B = {few}: {interval(ends[0])}, B = {many}: {interval(ends[1])}"
        return [
            Finding(
                claim=f"test accuracy varies more between seeds at B = {many} than at B = {few}",
                numbers=numbers, learned=have_learned,
                primary=deviations(f"standard deviation, B = {few} to {many}", *ends, margin=MARGIN),
            ),
            Finding(
                claim=f"B = {many} is behind B = {few} in test accuracy after the same passes",
                numbers=numbers, learned=have_learned,
                primary=paired(f"test accuracy, B = {many} to {few}", ends[1], ends[0], margin=BEHIND),
            ),
            interior([runs_of.search(settings, records, Arm(batch_size=size)) for size in settings["batch_sizes"]]),
        ]  # fmt: skip

    return Experiment(
        name=name, title=title, choices=choices, profiles=profiles, cells=cells, run=training_run.run, plot=plot,
        summary=summary, claim="With large batches the models show higher variance in their generalisation behaviour.",
    )  # fmt: skip
