"""The times of Table 1: seconds per update by configuration, batch size and link; whole runs that confirm products."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from variegrad.experiments.experiment import Records, Settings, seeds
from variegrad.experiments.records import Cell, Record
from variegrad.experiments.table_1_runs import HALF, NAME, PLAIN, VERSION, Configuration, Updates, masked
from variegrad.experiments.timed_run import run_in_turns, run_whole
from variegrad.experiments.verdict import AtLeast

Link = int | None  # Mbit/s; None for loopback
TIMED_STEP = 0.01  # learning rate of the updates that are timed: their time does not depend on it


@dataclass(frozen=True)
class Times:
    """Times to each accuracy, from the records of a run as far as it has come.

    Attributes:
        settings: of the profile.
        records: what is finished.
    """

    settings: Settings
    records: Records

    @property
    def updates(self) -> Updates:
        """The updates that the times are multiplied by."""
        return Updates(self.settings, self.records)

    @property
    def middle(self) -> float:
        """The target of the primary contrasts."""
        return float(self.settings["targets"][1])

    def cells(self) -> list[Cell]:
        """Every configuration at every batch size on every link; plain gradients twice, as a control."""
        return [
            _cell(self.settings, configuration, size, link, copy)
            for link, size in product(self.settings["links"], self.settings["batch_sizes"])
            for configuration, copy in [
                (PLAIN, 0), (PLAIN, 1), (HALF, 0), *((each, 0) for each in masked(self.settings))
            ]
        ]  # fmt: skip

    def whole_runs(self) -> list[list[Cell]]:
        """Some configurations at their best batch size, from the first update to the middle target, by other seeds.

        Returns:
            One list per run: the same run, timed again and again. Fewer runs if a link cannot be made.
        """
        wanted: list[list[Cell]] = []
        for place, (drop, granularity, link) in enumerate(self.settings["wholes"]):
            if not self.measured(link):
                continue
            configuration = Configuration(drop, granularity)
            size = self.settings["half_size"] if configuration == HALF else self.best_size(configuration, link)
            of = self.updates.runs(configuration, size, self.middle)[place % self.settings["seeds"]]
            wanted.append([
                Cell(experiment=NAME, version=VERSION, values={
                    **of.values, "kind": "whole", "megabits": link, "copy": copy
                })
                for copy in range(self.settings["whole_copies"])
            ])  # fmt: skip
        return wanted

    def whole_cells(self) -> list[Cell]:
        """All whole runs once, then all of them again: they see the same machine."""
        return [cell for copies in zip(*self.whole_runs(), strict=True) for cell in copies]

    def measured(self, link: Link) -> bool:
        """Whether this link could be made.

        Args:
            link: which.

        Returns:
            Whether there are times.
        """
        first = _cell(self.settings, PLAIN, self.settings["batch_sizes"][0], link)
        return "skipped" not in self.records[first.key].values

    def turns(self, configuration: Configuration, size: int, link: Link, copy: int = 0) -> list[float]:
        """The mean seconds per update of each turn: a run's time is a sum, to which slow updates belong.

        Args:
            configuration: which.
            size: B.
            link: which.
            copy: 1 for the second time that plain gradients are timed.

        Returns:
            A number per turn.
        """
        record = self.records[_cell(self.settings, configuration, size, link, copy).key]
        return [statistics.fmean(seconds) for seconds in record["turns"]]

    def per_update(self, configuration: Configuration, size: int, link: Link) -> float:
        """The mean over turns.

        Args:
            configuration: which.
            size: B.
            link: which.

        Returns:
            Seconds.
        """
        return statistics.fmean(self.turns(configuration, size, link))

    def seconds(self, configuration: Configuration, size: int, target: float, link: Link) -> list[float]:
        """Time to a target: updates × time per update. Sums in half precision need the updates of plain ones.

        Args:
            configuration: which.
            size: B.
            target: the accuracy.
            link: which.

        Returns:
            Seconds per seed; at least this many, if a run does not arrive.
        """
        own = PLAIN if configuration == HALF else configuration
        each = self.per_update(configuration, size, link)
        found = self.updates.needed(own, size, target)
        return [AtLeast(count * each) if isinstance(count, AtLeast) else count * each for count in found]

    def best_size(self, configuration: Configuration, link: Link) -> int:
        """The batch size with the least time to the middle target on the tuning seeds, none of which is evaluated.

        Args:
            configuration: which.
            link: which.

        Returns:
            B.
        """
        own = PLAIN if configuration == HALF else configuration

        def cost(size: int) -> float:
            needed = self.updates.needed_in_tuning(own, size, self.middle)
            return needed * self.per_update(configuration, size, link)

        return int(min(self.settings["batch_sizes"], key=cost))

    def whole_over_product(self, cell: Cell) -> float:
        """Seconds of a whole run to the middle target over updates × time per update for its seed.

        Args:
            cell: of the whole run.

        Returns:
            The ratio; NaN if a run does not arrive.
        """
        configuration = Configuration(cell["drop"], cell["granularity"])
        size = cell["batch_size"]
        expected = self.updates.needed(configuration, size, self.middle)[seeds(self.settings).index(cell["seed"])]
        if isinstance(expected, AtLeast):
            return float("nan")
        found = _interpolated(self.records[cell.key], self.middle)
        return found / (expected * self.per_update(configuration, size, cell["megabits"]))


def run_times(group: Sequence[Cell]) -> list[dict[str, Any]]:
    """The cells of one link.

    Args:
        group: either all of times, or all whole runs.

    Returns:
        Their values.
    """
    specs, first = [dict(cell.values) for cell in group], group[0]
    if first["kind"] == "whole":
        return run_whole(specs, workers=first["workers"], megabits=first["megabits"])
    return run_in_turns(
        specs, workers=first["workers"], megabits=first["megabits"], turns=first["turns"], updates=first["updates"]
    )


def _interpolated(record: Record, target: float) -> float:
    """Seconds until the target, as `updates_to`."""
    before, below = 0.0, 0.0
    for spent, accuracy in zip(record["seconds"], record["accuracies"], strict=True):
        if accuracy >= target:
            return float(before + (target - below) / (accuracy - below) * (spent - before))
        before, below = spent, accuracy
    return float("nan")


def _cell(settings: Settings, configuration: Configuration, size: int, link: Link, copy: int = 0) -> Cell:
    fixed = {key: settings[key] for key in ("problem", "max_examples", "data", "network", "workers")}
    turns_of, updates_of = settings["timed"][settings["links"].index(link)]
    return Cell(experiment=NAME, version=VERSION, values={
        **fixed, "kind": "time", "drop": configuration.drop, "granularity": configuration.granularity,
        "batch_size": size, "seed": 0, "step_size": TIMED_STEP / size, "megabits": link, "copy": copy,
        "turns": turns_of, "updates": updates_of,
    })  # fmt: skip
