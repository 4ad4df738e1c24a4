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


def cells(settings: Settings, records: Records) -> list[Cell]:
    """The search of each step size; as soon as one is tuned, its runs; runs to the last target after all others.

    Args:
        settings: of the profile.
        records: what is finished.

    Returns:
        The cells as far as they are known.
    """
    *early, last = settings["targets"]
    wanted: list[Cell] = []
    for size, configuration, target in product(settings["batch_sizes"], tuned(settings), early):
        wanted += _cells(settings, records, configuration, size, target)
    for target in early if settings["half_size"] in settings["batch_sizes"] else ():
        wanted += _repeats(settings, records, HALF, settings["half_size"], target)
    if any(cell.key not in records for cell in wanted):
        return wanted
    for size, configuration in product(settings["last_sizes"], tuned(settings)):
        wanted += _cells(settings, records, configuration, size, last)
    return wanted


def updates(
    settings: Settings, records: Records, configuration: Configuration, batch_size: int, target: float
) -> list[float]:
    """Updates to a target at the step size tuned for it; at least those of the whole run, if it was not reached.

    Args:
        settings: of the profile.
        records: finished.
        configuration: which.
        batch_size: B.
        target: the accuracy.

    Returns:
        A number per seed; none if the batch size has no runs to this target.
    """
    found = [records[cell.key] for cell in _repeats(settings, records, configuration, batch_size, target)]
    return [_censored(record, target) for record in found]


def tuning_updates(
    settings: Settings, records: Records, configuration: Configuration, batch_size: int, target: float
) -> float:
    """The score of the tuned step size: on tuning seeds, so that a batch size may be chosen by it.

    Args:
        settings: of the profile.
        records: finished.
        configuration: which.
        batch_size: B.
        target: the accuracy.

    Returns:
        Updates, as the geometric mean plus one standard error.
    """
    found = search_of(settings, records, configuration, batch_size, target)
    assert found.best is not None
    return math.exp(found.tried[found.best])


def search_of(
    settings: Settings, records: Records, configuration: Configuration, batch_size: int, target: float
) -> Search:
    """How far the step size of a configuration is known at a batch size, for a target.

    Args:
        settings: of the profile.
        records: what is finished.
        configuration: which.
        batch_size: B.
        target: the accuracy.

    Returns:
        The search.
    """
    *early, last = settings["targets"]
    longest = last if target == last else max(early)  # one run serves all early targets

    def score(record: Record) -> float:
        reached = updates_to(record.values, target)
        if math.isfinite(reached):
            return math.log(reached)
        # Worse than any run that arrives; by its best accuracy, so that the search knows where to go.
        best = max(record["accuracies"], default=0.0)
        return math.inf if record["diverged"] else math.log(_most(settings, batch_size, target)) + 1 + target - best

    return search(
        _cell_at(settings, configuration, batch_size, longest), score, records,
        grid=_grid(settings, configuration, batch_size), seeds=tuning_seeds(settings), finest=HALF_OCTAVE,
    )  # fmt: skip


def run_cell(
    settings: Settings, records: Records, configuration: Configuration, batch_size: int, target: float, seed: int
) -> Cell:
    """The run of one seed to a target.

    Args:
        settings: of the profile.
        records: all searches are finished.
        configuration: which.
        batch_size: B.
        target: the accuracy.
        seed: of the run.

    Returns:
        The cell.
    """
    return next(cell for cell in _repeats(settings, records, configuration, batch_size, target) if cell["seed"] == seed)


def _cells(settings: Settings, records: Records, configuration: Configuration, size: int, target: float) -> list[Cell]:
    search_cells = search_of(settings, records, configuration, size, target).cells
    return [*search_cells, *_repeats(settings, records, configuration, size, target)]


def _repeats(
    settings: Settings, records: Records, configuration: Configuration, size: int, target: float
) -> list[Cell]:
    """One cell per seed; none while the step size is not known."""
    *early, last = settings["targets"]
    own = PLAIN if configuration == HALF else configuration
    best = {t: search_of(settings, records, own, size, t).best for t in (early if target != last else [last])}
    chosen = best[target]
    if None in best.values() or chosen is None:
        return []
    longest = max(t for t, k in best.items() if k == chosen)
    at = _cell_at(settings, configuration, size, longest)
    count = settings["last_seeds"] if target == last else settings["seeds"]
    return [at(chosen, seed) for seed in seeds(settings)[:count]]


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
