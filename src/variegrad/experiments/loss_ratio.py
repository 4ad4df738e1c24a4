"""Figures 2b and 2c: the loss of a large batch over that of a small one along the passes, under r-replication.

One experiment for each network; each arm (r, batch size, with or without DropConnect) has its own tuned step size.
"""

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import Any

from matplotlib.figure import Figure

from variegrad.experiments import training_run
from variegrad.experiments.experiment import Experiment, Records, Settings
from variegrad.experiments.intervals import Finding, Interval, geometric, interval, verdict
from variegrad.experiments.records import Cell, Record
from variegrad.experiments.tuned_runs import Arm, TunedRuns
from variegrad.reports.curves import Series, panels

VERSION = 1


def loss_ratio(*, name: str, title: str, choices: str, profiles: dict[str, dict[str, Any]]) -> Experiment:
    """The experiment for one network.

    Args:
        name: what is typed.
        title: what it shows.
        choices: what was chosen where the paper is silent.
        profiles: settings; `network` names the network.

    Returns:
        The experiment.
    """
    runs_of = TunedRuns(experiment=name, version=VERSION)

    def tuned(settings: Settings, records: Records, drop: float, r: int, batch_size: int) -> list[Record]:
        return runs_of.repeats(settings, records, Arm(drop=drop, r=r, batch_size=batch_size))

    def cells(settings: Settings, records: Records) -> list[Cell]:
        return [cell for arm in _arms(settings) for cell in runs_of.search(settings, records, arm).cells]

    def ratios(settings: Settings, records: Records, drop: float, r: int) -> list[list[float]]:
        small, large = (tuned(settings, records, drop, r, size) for size in settings["batch_sizes"])
        return [
            [b / a if a else math.inf for a, b in zip(few["losses"][1:], many["losses"][1:], strict=True)]
            for few, many in zip(small, large, strict=True)
        ]

    def plot(settings: Settings, records: Records) -> Figure:
        small, large = settings["batch_sizes"]
        parts = []
        for drop in settings["drops"]:
            series = []
            for r in settings["replications"]:
                runs = ratios(settings, records, drop, r)
                passes = tuned(settings, records, drop, r, large)[0]["passes"][1:]
                series.append(Series.of(f"r = {r}", passes, [geometric(at) for at in zip(*runs, strict=True)]))
            what = f"DropConnect {drop:g}" if drop else "no mechanism"
            parts.append(("passes over the data", f"ratio of losses, {what}", series))
        return panels(f"Loss at B = {large} over loss at B = {small}", parts, log_y=True, same_y=True)

    def summary(settings: Settings, records: Records) -> list[Finding]:
        table = {
            (drop, r): [sum(run) / len(run) for run in ratios(settings, records, drop, r)]
            for drop, r in product(settings["drops"], settings["replications"])
        }
        plain, dropped = settings["drops"]
        growth = [_gap(table[plain, a], table[plain, b]) for a, b in pairwise(settings["replications"])]
        lower = [_gap(table[dropped, r], table[plain, r]) for r in settings["replications"]]
        found = [runs_of.search(settings, records, arm) for arm in _arms(settings)]
        inside = sum(one.interior for one in found)
        return [
            Finding(
                claim="the mean loss ratio grows with r",
                found="; ".join(f"r = {r}: {geometric(table[plain, r])}" for r in settings["replications"]),
                verdict=verdict(growth),
            ),
            Finding(
                claim="DropConnect lowers the ratio at every r",
                found="with DropConnect "
                + "; ".join(f"r = {r}: {geometric(table[dropped, r])}" for r in settings["replications"]),
                verdict=verdict(lower),
            ),
            Finding(
                claim="every arm's tuned step size is interior to its grid",
                found=f"{inside} of {len(found)} arms, {min(len(one.tried) for one in found)} to "
                f"{max(len(one.tried) for one in found)} step sizes each",
                verdict="holds" if inside == len(found) else "holds partly",
            ),
        ]

    return Experiment(
        name=name, title=title, choices=choices, profiles=profiles, cells=cells, run=training_run.run, plot=plot,
        summary=summary, claim="The more the data are replicated, the more a large batch falls behind a small one; the "
        "large batch performs best with DropConnect.",
    )  # fmt: skip


def _arms(settings: Settings) -> list[Arm]:
    sizes = product(settings["drops"], settings["replications"], settings["batch_sizes"])
    return [Arm(drop=drop, r=r, batch_size=size) for drop, r, size in sizes]


def _gap(one: list[float], other: list[float]) -> Interval:
    return interval([math.log(b / a) for a, b in zip(one, other, strict=True)])
