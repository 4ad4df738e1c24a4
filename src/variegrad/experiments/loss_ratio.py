"""Figures 2b and 2c: the loss of a large batch over that of a small one along the passes, under r-replication.

One experiment per network; each configuration (r, batch size, with or without DropConnect) has its own step size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from typing import Any

from matplotlib.figure import Figure

from variegrad.experiments import stacked_runs
from variegrad.experiments.experiment import Experiment, Records, Settings
from variegrad.experiments.intervals import Interval, geometric
from variegrad.experiments.records import Cell, Record
from variegrad.experiments.training_run import aligned
from variegrad.experiments.tuned_runs import Configuration, TunedRuns
from variegrad.experiments.verdict import Check, Contrast, Finding, learned, paired
from variegrad.reports.curves import Series, panels

VERSION = 2
MARGIN = math.log(1.05)  # of both primary contrasts: growth from the least to the largest r; DropConnect, mean over r


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

    def values(settings: Settings, configuration: Configuration, tuning: bool) -> Mapping[str, Any]:  # noqa: ARG001
        at = aligned(settings["passes"], settings["points"], settings["examples"], max(settings["batch_sizes"]))
        fixed = {key: settings[key] for key in ("problem", "max_examples", "data", "network")}
        return {**fixed, "at": at[-1:] if tuning else at}

    runs_of = TunedRuns(experiment=name, version=VERSION, values=values)

    def tuned(settings: Settings, records: Records, drop: float, r: int, batch_size: int) -> list[Record]:
        return runs_of.repeats(settings, records, {"drop": drop, "r": r, "batch_size": batch_size})

    def cells(settings: Settings, records: Records) -> list[Cell]:
        return runs_of.cells(settings, records, configurations(settings))

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

    def summary(settings: Settings, records: Records) -> list[Finding | Check]:
        found = replication(settings, repeats(runs_of, settings, records))
        return [*found, runs_of.interior(settings, records, configurations(settings))]

    return Experiment(
        name=name, version=VERSION, title=title, choices=choices, profiles=profiles, cells=cells, run=stacked_runs.run,
        plot=plot, summary=summary, on_device=True, stack=stacked_runs.stack,
        claim="The more the data are replicated, the more a large batch falls behind a small one; the large batch "
        "performs best with DropConnect.",
    )  # fmt: skip


def replication(settings: Settings, runs: Mapping[tuple[float, int, int], Sequence[Record]]) -> list[Finding]:
    """Whether the loss ratio of a large to a small batch grows with r, and whether DropConnect lowers it.

    The loss is what the step size is tuned for, the mean over all updates: at its least it hardly depends on the step
    size, so that a tie in the search makes no finding.

    Args:
        settings: of the profile.
        runs: tuned, one per seed, by (drop, r, batch size).

    Returns:
        The two findings.
    """
    small, large = settings["batch_sizes"]
    ratios = {(drop, r): online_ratios(runs[drop, r, small], runs[drop, r, large])
              for drop, r in product(settings["drops"], settings["replications"])}  # fmt: skip
    plain, dropped = settings["drops"]
    every = settings["replications"]

    def growth(few: int, many: int) -> Contrast:
        return paired(f"r = {few} to {many}", ratios[plain, few], ratios[plain, many], margin=MARGIN)

    def pooled(drop: float) -> list[float]:
        return [math.prod(of_seed) ** (1 / len(every)) for of_seed in
                zip(*(ratios[drop, r] for r in every), strict=True)]  # fmt: skip

    def numbers(drop: float) -> dict[str, Interval | str]:
        what = f"DropConnect {drop:g}" if drop else "no mechanism"
        return {f"{what}, r = {r}": geometric(ratios[drop, r]) for r in every}

    def cost() -> dict[str, Interval | str]:
        """What DropConnect does to each batch size by itself."""
        return {
            f"mean loss with over without, B = {size}, r = {r}": geometric(
                online_ratios(runs[plain, r, size], runs[dropped, r, size])
            )
            for size, r in product(settings["batch_sizes"], every)
        }

    def have_learned(*drops: float) -> bool:
        return all(learned(found) for (drop, _, _), found in runs.items() if drop in drops)

    return [
        Finding(
            claim="the ratio of mean losses grows with r", numbers=numbers(plain),
            primary=growth(every[0], every[-1]), secondary=[growth(*pair) for pair in pairwise(every)],
            learned=have_learned(plain),
        ),
        Finding(
            claim="DropConnect lowers the ratio, mean over r", numbers=numbers(dropped) | cost(),
            primary=paired("without over with DropConnect", pooled(dropped), pooled(plain), margin=MARGIN),
            secondary=[paired(f"r = {r}", ratios[dropped, r], ratios[plain, r], margin=MARGIN) for r in every],
            learned=have_learned(plain, dropped),
        ),
    ]  # fmt: skip


def online_ratios(one: Sequence[Record], other: Sequence[Record]) -> list[float]:
    """Mean loss over all updates of some runs over that of others, by seed.

    Args:
        one: runs.
        other: for the same seeds.

    Returns:
        One ratio per seed, the other's over the one's.
    """
    return [float(b["online_loss"]) / float(a["online_loss"]) for a, b in zip(one, other, strict=True)]


def configurations(settings: Settings) -> list[Configuration]:
    """Every drop probability, replication and batch size.

    Args:
        settings: of the profile.

    Returns:
        All of them.
    """
    every = product(settings["drops"], settings["replications"], settings["batch_sizes"])
    return [{"drop": drop, "r": r, "batch_size": size} for drop, r, size in every]


def repeats(runs: TunedRuns, settings: Settings, records: Records) -> dict[tuple[float, int, int], list[Record]]:
    """All configurations at their tuned step sizes.

    Args:
        runs: of the experiment.
        settings: of the profile.
        records: finished.

    Returns:
        One record per seed, by (drop, r, batch size).
    """
    return {(one["drop"], one["r"], one["batch_size"]): runs.repeats(settings, records, one)
            for one in configurations(settings)}  # fmt: skip
