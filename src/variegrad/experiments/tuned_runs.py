"""Arms of training runs (replication, DropConnect, batch size): each arm's step-size search, and its repeats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from variegrad.experiments.experiment import Records, Settings, seeds
from variegrad.experiments.records import Cell, Record
from variegrad.experiments.step_sizes import Search, search, step_size
from variegrad.experiments.training_run import aligned


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What is tuned by itself.

    Attributes:
        batch_size: B.
        r: the replication.
        drop: p of DropConnect on each example's gradient, 0 for none.
    """

    batch_size: int
    r: int = 1
    drop: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TunedRuns:
    """The runs of an experiment's arms, all measured after the same numbers of samples; B_D at each measurement.

    Attributes:
        experiment: its name.
        version: of its code.
    """

    experiment: str
    version: int

    def search(self, settings: Settings, records: Records, arm: Arm) -> Search:
        """How far the step size of an arm is known; the score is the mean loss over all updates.

        Args:
            settings: of the profile.
            records: what is finished.
            arm: which.

        Returns:
            The search.
        """
        return search(
            self._cell_at(settings, arm), lambda record: float(record["online_loss"]), records, grid=settings["grid"],
            seeds=seeds(settings), tuning_seeds=seeds(settings)[: settings["tuning"]],
        )  # fmt: skip

    def repeats(self, settings: Settings, records: Records, arm: Arm) -> list[Record]:
        """An arm at its tuned step size.

        Args:
            settings: of the profile.
            records: all are finished.
            arm: which.

        Returns:
            One record per seed.
        """
        best = self.search(settings, records, arm).best
        assert best is not None
        return [records[self._cell_at(settings, arm)(best, seed).key] for seed in seeds(settings)]

    def _cell_at(self, settings: Settings, arm: Arm) -> Callable[[int, int], Cell]:
        fixed = {key: settings[key] for key in ("problem", "max_examples", "data", "network")}
        largest = max(settings["batch_sizes"])
        at = aligned(settings["passes"], settings["points"], settings["examples"], largest)
        return lambda half_octaves, seed: Cell(experiment=self.experiment, version=self.version, values={
            **fixed, "r": arm.r, "drop": arm.drop, "batch_size": arm.batch_size, "seed": seed, "at": at, "bounds": True,
            "step_size": step_size(half_octaves, arm.batch_size),
        })  # fmt: skip
