"""Figures 3b and 3c: how much the test accuracy varies between seeds at two large batch sizes, beside a small one.

All runs stop at the same training accuracy, so that they are compared at the end of training and not at equal passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import stdev
from typing import Any

from matplotlib.figure import Figure

from variegrad.experiments import stacked_runs, training_run
from variegrad.experiments.experiment import Experiment, Records, Settings
from variegrad.experiments.intervals import Interval, interval
from variegrad.experiments.records import Cell, Record
from variegrad.experiments.training_run import passes_needed, passes_said, passes_score
from variegrad.experiments.tuned_runs import Configuration, TunedRuns
from variegrad.experiments.verdict import Check, Finding, deviations, learned, paired
from variegrad.reports.curves import Series, panels

NAME, VERSION = "figure-3bc", 2
CHANCE = 0.1  # the accuracy of guessing one of ten classes
MARGIN = math.log(1.25)  # of the ratio of standard deviations between seeds
MEAN = math.log(1.05)  # of the ratio of mean test accuracies
SMALL: dict[str, Any] = {
    "problem": "cifar10/2", "without_data": "digits", "max_examples": 1024, "network": "convnet:8", "target": 0.9,
    "batch_sizes": [32, 512, 1024], "passes": [150, 700, 1300], "points": 60, "grid": [-16, -12, -8], "seeds": 16,
    "tuning": 2,
}  # fmt: skip
PROFILES = {
    "smoke": {**SMALL, "problem": "digits", "max_examples": 64, "network": "mlp:8:relu", "target": 0.5,
              "batch_sizes": [4, 32, 64], "passes": [4, 8, 8], "points": 4, "grid": [-8, -4], "seeds": 3},
    "small": SMALL,
    "paper": {**SMALL, "problem": "cifar10", "max_examples": 50_000, "network": "convnet:64", "passes": [100] * 3,
              "points": 25, "seeds": 24},
}  # fmt: skip


def cells(settings: Settings, records: Records) -> list[Cell]:
    """The step-size search of every batch size, and every seed at the step size found."""
    return RUNS.cells(settings, records, _configurations(settings))


def plot(settings: Settings, records: Records) -> Figure:
    """Test accuracy at the target against batch size: single seeds, and their mean."""
    sizes = settings["batch_sizes"]
    accuracies = [_accuracies(_repeats(settings, records, size)) for size in sizes]
    means = [interval(found) for found in accuracies]
    return panels(
        f"Test accuracy at {100 * settings['target']:g} % training accuracy",
        [("batch size B", "test accuracy", [
            Series.of("mean, and single seeds", sizes, means, runs=list(zip(*accuracies, strict=True))),
            Series.reference("chance", sizes, [CHANCE] * len(sizes)),
        ])], log_x=True,
    )  # fmt: skip


def summary(settings: Settings, records: Records) -> list[Finding | Check]:
    """For each large batch: its spread between seeds and its mean, beside those of the small batch."""
    few, *larger = settings["batch_sizes"]
    small = _repeats(settings, records, few)
    findings: list[Finding | Check] = []
    for many in larger:
        large = _repeats(settings, records, many)
        ends = [_accuracies(runs) for runs in (small, large)]
        accuracies: dict[str, Interval | str] = {
            f"test accuracy, B = {size}": interval(of_size) for size, of_size in zip((few, many), ends, strict=True)
        }
        spread: dict[str, Interval | str] = {
            f"standard deviation, B = {size}": f"{stdev(of_size):.3g}"
            for size, of_size in zip((few, many), ends, strict=True)
        }
        passes: dict[str, Interval | str] = {
            f"passes, B = {size}": passes_said([passes_needed(record) for record in runs])
            for size, runs in ((few, small), (many, large))
        }
        arrived = [record for record in [*small, *large] if math.isfinite(record["needed"])]
        have_learned = learned([*small, *large]) and len(arrived) == len(small) + len(large)
        findings += [
            Finding(
                claim=f"test accuracy varies more between seeds at B = {many} than at B = {few}",
                numbers=spread, learned=have_learned,
                primary=deviations(f"standard deviation, B = {few} to {many}", *ends, margin=MARGIN),
            ),
            Finding(
                claim=f"B = {many} generalises worse than B = {few} at the same training accuracy",
                numbers=accuracies | passes, learned=have_learned,
                primary=paired(f"test accuracy, B = {many} to {few}", ends[1], ends[0], margin=MEAN),
            ),
        ]  # fmt: skip
    return [*findings, RUNS.interior(settings, records, _configurations(settings))]


def _accuracies(runs: Sequence[Record]) -> list[float]:
    return [float(record["test_accuracy"]) for record in runs]


def _repeats(settings: Settings, records: Records, batch_size: int) -> list[Record]:
    return RUNS.repeats(settings, records, {"batch_size": batch_size})


def _configurations(settings: Settings) -> list[Configuration]:
    return [{"batch_size": size} for size in settings["batch_sizes"]]


def _values(settings: Settings, configuration: Configuration, tuning: bool) -> Mapping[str, Any]:
    fixed = {key: settings[key] for key in ("problem", "max_examples", "data", "network", "target")}
    at = training_run.points_of(settings, configuration["batch_size"])
    return {**fixed, "at": at, "test": not tuning}


RUNS = TunedRuns(experiment=NAME, version=VERSION, values=_values, score=passes_score)
EXPERIMENT = Experiment(
    name=NAME,
    version=VERSION,
    title="Figures 3b and 3c: generalisation at B = 512 and 1024",
    claim="With large batches the models show higher variance in their generalisation behaviour.",
    choices="The small profile has 1,024 training images of 16 × 16 pixels and an eighth of the network's channels. "
    "All runs stop at 90 % training accuracy, and are tested there on all 10,000 test images; the step size of each "
    "batch size is the one that arrives first. The small batch is our control: the paper compares the two large "
    "ones by eye, over three runs.",
    profiles=PROFILES, cells=cells, run=stacked_runs.run, plot=plot, summary=summary, on_device=True,
    stack=stacked_runs.stack,
)  # fmt: skip
