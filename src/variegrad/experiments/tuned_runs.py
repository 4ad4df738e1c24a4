"""The runs of an experiment's configurations, each at a step size of its own, tuned on seeds of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from variegrad.experiments.experiment import Records, Settings, seeds, tuning_seeds
from variegrad.experiments.records import Cell, Record
from variegrad.experiments.step_sizes import Search, search, step_size
from variegrad.experiments.step_sizes import interior as interior_of
from variegrad.experiments.verdict import Check

Configuration = Mapping[str, Any]


def online_loss(record: Record) -> float:
    """The mean loss over all updates: what most experiments tune for, and report.

    Args:
        record: of a run.

    Returns:
        The loss.
    """
    return float(record["online_loss"])


@dataclass(frozen=True, kw_only=True)
class TunedRuns:
    """The runs of an experiment's configurations.

    A configuration is what is tuned by itself: `batch_size`, and whatever else tells one cell from another, by name.

    Attributes:
        experiment: its name.
        version: of its code.
        values: (settings, configuration, whether for tuning) → the values of a cell besides the configuration, its step
            size and its seed. Tuning runs may be measured at fewer points.
        score: of a tuning run: the quantity that the experiment reports, smaller is better.
        grid: (settings, configuration) → quarter octaves to begin with.
    """

    experiment: str
    version: int
    values: Callable[[Settings, Configuration, bool], Mapping[str, Any]]
    score: Callable[[Record], float] = online_loss
    grid: Callable[[Settings, Configuration], Sequence[int]] = lambda settings, _: settings["grid"]

    def search(self, settings: Settings, records: Records, configuration: Configuration) -> Search:
        """How far the step size of a configuration is known.

        Args:
            settings: of the profile.
            records: what is finished.
            configuration: which.

        Returns:
            The search.
        """
        return search(
            self._cell_at(settings, configuration, tuning=True), self.score, records,
            grid=self.grid(settings, configuration), seeds=tuning_seeds(settings), finest=settings.get("finest", 1),
        )  # fmt: skip

    def cells(self, settings: Settings, records: Records, configurations: Iterable[Configuration]) -> list[Cell]:
        """Every cell that is needed as far as is known: each search, and each seed at the step size that it found.

        Args:
            settings: of the profile.
            records: what is finished.
            configurations: all of them.

        Returns:
            The cells.
        """
        needed: list[Cell] = []
        for configuration in configurations:
            found = self.search(settings, records, configuration)
            needed += found.cells
            if found.best is not None:
                needed += [self.cell(settings, configuration, found.best, seed) for seed in seeds(settings)]
        return needed

    def cell(self, settings: Settings, configuration: Configuration, quarter_octaves: int, seed: int) -> Cell:
        """One run that is evaluated.

        Args:
            settings: of the profile.
            configuration: which.
            quarter_octaves: of its step size.
            seed: of the run.

        Returns:
            The cell.
        """
        return self._cell_at(settings, configuration, tuning=False)(quarter_octaves, seed)

    def best(self, settings: Settings, records: Records, configuration: Configuration) -> int:
        """The tuned step size of a configuration whose search is finished.

        Args:
            settings: of the profile.
            records: all of its tuning runs.
            configuration: which.

        Returns:
            Quarter octaves.
        """
        found = self.search(settings, records, configuration).best
        assert found is not None
        return found

    def repeats(self, settings: Settings, records: Records, configuration: Configuration) -> list[Record]:
        """A configuration at its tuned step size.

        Args:
            settings: of the profile.
            records: all are finished.
            configuration: which.

        Returns:
            One record per seed.
        """
        best = self.best(settings, records, configuration)
        return [records[self.cell(settings, configuration, best, seed).key] for seed in seeds(settings)]

    def interior(self, settings: Settings, records: Records, configurations: Iterable[Configuration]) -> Check:
        """The row that says whether every tuned step size is interior.

        Args:
            settings: of the profile.
            records: all are finished.
            configurations: all of them.

        Returns:
            The check.
        """
        return interior_of([self.search(settings, records, configuration) for configuration in configurations])

    def _cell_at(self, settings: Settings, configuration: Configuration, *, tuning: bool) -> Callable[[int, int], Cell]:
        values = {**self.values(settings, configuration, tuning), **configuration}
        return lambda quarter_octaves, seed: Cell(
            experiment=self.experiment, version=self.version,
            values={**values, "seed": seed, "step_size": step_size(quarter_octaves, configuration["batch_size"])},
        )  # fmt: skip
