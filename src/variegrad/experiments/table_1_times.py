"""The times of Table 1: seconds per update by configuration, batch size and link; whole runs that confirm products."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import product
from typing import Any

from variegrad.experiments.experiment import Records, Settings, seeds
from variegrad.experiments.records import Cell, Record
from variegrad.experiments.table_1_runs import (
    HALF,
    NAME,
    PLAIN,
    VERSION,
    Configuration,
    masked,
    run_cell,
    tuning_updates,
    updates,
)
from variegrad.experiments.timed_run import run_in_turns, run_whole
from variegrad.experiments.verdict import AtLeast

Link = int | None  # Mbit/s; None for loopback
TIMED_STEP = 0.01  # learning rate of the updates that are timed: their time does not depend on it


def cells(settings: Settings) -> list[Cell]:
    """Every configuration at every batch size on every link; plain gradients twice, to compare them with themselves.

    Args:
        settings: of the profile.

    Returns:
        The cells.
    """
    return [
        _cell(settings, configuration, size, link, copy)
        for link, size in product(settings["links"], settings["batch_sizes"])
        for configuration, copy in [(PLAIN, 0), (PLAIN, 1), (HALF, 0), *((each, 0) for each in masked(settings))]
    ]


def whole_cells(settings: Settings, records: Records) -> list[Cell]:
    """Some configurations at their best batch size, from the first update to the middle target, by other seeds.

    Args:
        settings: of the profile.
        records: all others are finished.

    Returns:
        The cells; fewer if a link cannot be made.
    """
    wanted: list[Cell] = []
    for place, (drop, granularity, link) in enumerate(settings["wholes"]):
        if not measured(settings, records, link):
            continue
        configuration = Configuration(drop, granularity)
        size = settings["half_size"] if configuration == HALF else best_size(settings, records, configuration, link)
        seed = seeds(settings)[place % settings["seeds"]]
        of = run_cell(settings, records, configuration, size, middle(settings), seed)
        wanted.append(Cell(experiment=NAME, version=VERSION, values={**of.values, "kind": "whole", "megabits": link}))
    return wanted


def run(group: Sequence[Cell]) -> list[dict[str, Any]]:
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


def middle(settings: Settings) -> float:
    """The target of the primary contrasts.

    Args:
        settings: of the profile.

    Returns:
        The accuracy.
    """
    return float(settings["targets"][1])


def measured(settings: Settings, records: Records, link: Link) -> bool:
    """Whether this link could be made.

    Args:
        settings: of the profile.
        records: its times.
        link: which.

    Returns:
        Whether there are times.
    """
    return "skipped" not in records[_cell(settings, PLAIN, settings["batch_sizes"][0], link).key].values


def turns(
    settings: Settings, records: Records, configuration: Configuration, size: int, link: Link, copy: int = 0
) -> list[float]:
    """The median seconds per update of each turn.

    Args:
        settings: of the profile.
        records: its times.
        configuration: which.
        size: B.
        link: which.
        copy: 1 for the second time that plain gradients are timed.

    Returns:
        A number per turn.
    """
    record = records[_cell(settings, configuration, size, link, copy).key]
    return [statistics.median(seconds) for seconds in record["turns"]]


def time_per_update(settings: Settings, records: Records, configuration: Configuration, size: int, link: Link) -> float:
    """The median over turns.

    Args:
        settings: of the profile.
        records: its times.
        configuration: which.
        size: B.
        link: which.

    Returns:
        Seconds.
    """
    return statistics.median(turns(settings, records, configuration, size, link))


def seconds(
    settings: Settings, records: Records, configuration: Configuration, size: int, target: float, link: Link
) -> list[float]:
    """Time to a target: updates × time per update. Plain gradients in half precision need the updates of plain ones.

    Args:
        settings: of the profile.
        records: all are finished.
        configuration: which.
        size: B.
        target: the accuracy.
        link: which.

    Returns:
        Seconds per seed; at least this many, if a run does not arrive.
    """
    own = PLAIN if configuration == HALF else configuration
    each = time_per_update(settings, records, configuration, size, link)
    found = updates(settings, records, own, size, target)
    return [AtLeast(count * each) if isinstance(count, AtLeast) else count * each for count in found]


def best_size(settings: Settings, records: Records, configuration: Configuration, link: Link) -> int:
    """The batch size with the least time to the middle target on the tuning seeds, none of which is evaluated.

    Args:
        settings: of the profile.
        records: all searches and times are finished.
        configuration: which.
        link: which.

    Returns:
        B.
    """
    own = PLAIN if configuration == HALF else configuration

    def cost(size: int) -> float:
        needed = tuning_updates(settings, records, own, size, middle(settings))
        return needed * time_per_update(settings, records, configuration, size, link)

    return int(min(settings["batch_sizes"], key=cost))


def whole_over_product(settings: Settings, records: Records, cell: Cell) -> float:
    """Seconds of a whole run to the middle target over updates × time per update for its seed.

    Args:
        settings: of the profile.
        records: all are finished.
        cell: of the whole run.

    Returns:
        The ratio; NaN if a run does not arrive.
    """
    configuration = Configuration(cell["drop"], cell["granularity"])
    size, link = cell["batch_size"], cell["megabits"]
    place = seeds(settings).index(cell["seed"])
    expected = updates(settings, records, configuration, size, middle(settings))[place]
    found = _interpolated(records[cell.key], middle(settings))
    if isinstance(expected, AtLeast):
        return float("nan")
    return found / (expected * time_per_update(settings, records, configuration, size, link))


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
