"""The runs of Table 1: updates to each accuracy, at a step size tuned for it, by configuration and batch size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Literal

from variegrad.experiments.experiment import Records, Settings, seeds, tuning_seeds
from variegrad.experiments.records import Cell, Record
from variegrad.experiments.step_sizes import Search, search, step_size
from variegrad.experiments.updates_to_accuracy import updates_to
from variegrad.experiments.verdict import AtLeast
from variegrad.theory.mechanism_speed import updates_factor

NAME, VERSION = "table-1", 3
HALF_OCTAVE = 2  # in quarter octaves


@dataclass(frozen=True)
class Configuration:
    """How gradients are computed and added up.

    Attributes:
        drop: p of DropConnect; 0 for none.
        granularity: what a mask is for: "example" or "worker"; "half": plain gradients, added up in float16.
    """

    drop: float = 0.0
    granularity: Literal["example", "worker", "half"] = "example"

    @property
    def mask_for(self) -> Literal["example", "worker"]:
        """What a draw is for, as theory has it."""
        return "worker" if self.granularity == "worker" else "example"

    def __str__(self) -> str:
        if self.granularity == "half":
            return "plain, sent in half precision"
        return f"DropConnect {self.drop:g} per {self.granularity}" if self.drop else "plain"


PLAIN, HALF = Configuration(), Configuration(granularity="half")


def masked(settings: Settings) -> list[Configuration]:
    """Every configuration with DropConnect.

    Args:
        settings: of the profile.

    Returns:
        The configurations.
    """
    kinds: tuple[Literal["example", "worker"], ...] = ("example", "worker")
    return [Configuration(p, kind) for kind, p in product(kinds, settings["drops"])]


def tuned(settings: Settings) -> list[Configuration]:
    """The configurations with a step size of their own: plain gradients in half precision have that of plain ones.

    Args:
        settings: of the profile.

    Returns:
        The configurations.
    """
    return [PLAIN, *masked(settings)]


def to_the_last(settings: Settings) -> list[Configuration]:
    """The configurations that are run to the last target, too: plain gradients, and masks of the kinds `last_kinds`.

    Args:
        settings: of the profile.

    Returns:
        The configurations.
    """
    return [each for each in tuned(settings) if each == PLAIN or each.granularity in settings["last_kinds"]]


@dataclass(frozen=True)
class Updates:
    """Updates to each accuracy, from the records of a run as far as it has come.

    Attributes:
        settings: of the profile.
        records: what is finished.
    """

    settings: Settings
    records: Records

    def cells(self) -> list[Cell]:
        """The search of each step size; as soon as one is tuned, its runs; runs to the last target after all others."""
        *early, last = self.settings["targets"]
        every, half = tuned(self.settings), self.settings["half_size"]
        wanted: list[Cell] = []
        for size, configuration, target in product(self.settings["batch_sizes"], every, early):
            wanted += [*self.search(configuration, size, target).cells, *self.runs(configuration, size, target)]
        for target in early if half in self.settings["batch_sizes"] else ():
            wanted += self.runs(HALF, half, target)
        if any(cell.key not in self.records for cell in wanted):
            return wanted
        for size, configuration in product(self.settings["last_sizes"], to_the_last(self.settings)):
            wanted += [*self.search(configuration, size, last).cells, *self.runs(configuration, size, last)]
        return wanted

    def needed(self, configuration: Configuration, batch_size: int, target: float) -> list[float]:
        """Updates to a target at the step size tuned for it; at least those of the whole run, if it was not reached.

        Args:
            configuration: which.
            batch_size: B.
            target: the accuracy.

        Returns:
            A number per seed; none if the batch size has no runs to this target.
        """
        found = [self.records[cell.key] for cell in self.runs(configuration, batch_size, target)]
        return [_censored(record, target) for record in found]

    def needed_in_tuning(self, configuration: Configuration, batch_size: int, target: float) -> float:
        """The score of the tuned step size: on tuning seeds, so that a batch size may be chosen by it.

        Args:
            configuration: which.
            batch_size: B.
            target: the accuracy.

        Returns:
            Updates, as the geometric mean plus one standard error.
        """
        found = self.search(configuration, batch_size, target)
        assert found.best is not None
        return math.exp(found.tried[found.best])

    def search(self, configuration: Configuration, batch_size: int, target: float) -> Search:
        """How far the step size of a configuration is known at a batch size, for a target.

        Args:
            configuration: which.
            batch_size: B.
            target: the accuracy.

        Returns:
            The search.
        """
        *early, last = self.settings["targets"]
        longest = last if target == last else max(early)  # one run serves all early targets

        def score(record: Record) -> float:
            reached = updates_to(record.values, target)
            if math.isfinite(reached):
                return math.log(reached)
            # Worse than any run that arrives; by its best accuracy, so that the search knows where to go.
            best, most = max(record["accuracies"], default=0.0), _most(self.settings, batch_size, target)
            return math.inf if record["diverged"] else math.log(most) + 1 + target - best

        return search(
            _cell_at(self.settings, configuration, batch_size, longest), score, self.records,
            grid=_grid(self.settings, configuration, batch_size), seeds=tuning_seeds(self.settings),
            finest=HALF_OCTAVE,
        )  # fmt: skip

    def runs(self, configuration: Configuration, batch_size: int, target: float) -> list[Cell]:
        """The runs to a target that are evaluated.

        Args:
            configuration: which.
            batch_size: B.
            target: the accuracy.

        Returns:
            One cell per seed; none while the step size is not known.
        """
        *early, last = self.settings["targets"]
        own = PLAIN if configuration == HALF else configuration
        best = {t: self.search(own, batch_size, t).best for t in (early if target != last else [last])}
        chosen = best[target]
        if None in best.values() or chosen is None:
            return []
        at = _cell_at(self.settings, configuration, batch_size, max(t for t, k in best.items() if k == chosen))
        count = self.settings["last_seeds" if target == last else "seeds"]
        return [at(chosen, seed) for seed in seeds(self.settings)[:count]]


def expected_examples(settings: Settings, cell: Cell) -> int:
    """What theory expects a run to the last early target to take: U∞·f(B)·B examples.

    Args:
        settings: of the profile.
        cell: of updates.

    Returns:
        Examples.
    """
    configuration = Configuration(cell["drop"], cell["granularity"])
    expected = settings["expected_updates"] * _factor(settings, configuration, cell["batch_size"]) * cell["batch_size"]
    return min(int(expected), int(cell["most_examples"]))


def _factor(settings: Settings, configuration: Configuration, batch_size: int) -> float:
    return updates_factor(
        bound=settings["expected_bound"], batch_size=batch_size, granularity=configuration.mask_for,
        relative_variance=configuration.drop / (1 - configuration.drop), workers=settings["workers"],
    )  # fmt: skip


def _grid(settings: Settings, configuration: Configuration, batch_size: int) -> list[int]:
    """Three half octaves about η∞/f(B), theory's prediction."""
    f = _factor(settings, configuration, batch_size)
    middle = HALF_OCTAVE * round(4 * math.log2(settings["expected_learning_rate"] / f) / HALF_OCTAVE)
    return [middle - HALF_OCTAVE, middle, middle + HALF_OCTAVE]


def _most(settings: Settings, batch_size: int, target: float) -> int:
    """Examples after which a run gives up."""
    if target == settings["targets"][-1]:
        return int(settings["last_examples"])
    return int(settings["most_examples"][settings["batch_sizes"].index(batch_size)])


def _cell_at(
    settings: Settings, configuration: Configuration, batch_size: int, target: float
) -> Callable[[int, int], Cell]:
    fixed = {key: settings[key] for key in ("problem", "max_examples", "data", "network", "workers", "scored", "first")}
    return lambda quarter_octaves, seed: Cell(experiment=NAME, version=VERSION, values={
        **fixed, "kind": "updates", "drop": configuration.drop, "granularity": configuration.granularity,
        "batch_size": batch_size, "seed": seed, "step_size": step_size(quarter_octaves, batch_size), "target": target,
        "most_examples": _most(settings, batch_size, target),
    })  # fmt: skip


def _censored(record: Record, target: float) -> float:
    found = updates_to(record.values, target)
    return found if math.isfinite(found) else AtLeast(record.cell["most_examples"] / record.cell["batch_size"])
