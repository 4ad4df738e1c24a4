"""What an experiment is: data plus functions. Its file holds PROFILES, cells, run, plot and summary, and no more.

`cells` is asked again after every round, with the records so far, until it asks for nothing new: a step-size search is
then a pure function of records, and an interrupted sweep resumes where it stopped. `plot` and `summary` never compute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from variegrad.experiments import data
from variegrad.experiments.records import Cell, Record
from variegrad.experiments.verdict import Check, Finding

Settings = Mapping[str, Any]
Records = Mapping[str, Record]
Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A figure or table of the paper, or a theorem or question of it, as it is computed here.

    Attributes:
        name: what is typed.
        version: of its code; a change that changes numbers raises it.
        title: what it shows.
        claim: what the paper says, in short.
        choices: what the paper leaves open and how it is chosen here.
        profiles: settings by the name of their size: smoke, small, paper. `problem` names the data where there is any,
            `without_data` what replaces it if the files are missing, `seeds` how many seeds.
        cells: (settings, records so far) → every cell needed as far as is known.
        run: cells of one group → the values of each, in their order.
        plot: (settings, records) → the picture.
        summary: (settings, records) → findings.
        group: which cells are computed together: those for which it is equal. By default each cell is alone.
        alone: whether a cell measures wall-clock time and must have the machine for itself.
        settled: (settings, required) → settings whose data are there, and a sentence about the data.
        length: (settings, cell) → examples that a run with a target is expected to take; None if runs have a length.
        on_device: whether cells can be computed on another device: `run` then takes it as its second argument.
        stack: which cells are computed together on another device than the CPU; as `group` by default.
    """

    name: str
    version: int
    title: str
    claim: str
    choices: str
    profiles: Mapping[str, Settings]
    cells: Callable[[Settings, Records], Sequence[Cell]]
    run: Callable[..., Sequence[Values]]
    plot: Callable[[Settings, Records], Figure]
    summary: Callable[[Settings, Records], Sequence[Finding | Check]]
    group: Callable[[Cell], object] = lambda cell: cell.key
    alone: Callable[[Cell], bool] = lambda _: False
    settled: Callable[..., tuple[Settings, str]] = data.settled
    length: Callable[[Settings, Cell], int] | None = None
    on_device: bool = False
    stack: Callable[[Cell], object] | None = None


TUNING = 10_000  # how far the seeds of tuning are from those of the runs that are evaluated


def seeds(settings: Settings) -> list[int]:
    """The seeds of the runs that are evaluated.

    Args:
        settings: of a profile, with the offset that was asked for.

    Returns:
        `settings["seeds"]` consecutive numbers from `settings["seed_offset"]` on.
    """
    first = settings.get("seed_offset", 0)
    return list(range(first, first + settings["seeds"]))


def tuning_seeds(settings: Settings) -> list[int]:
    """The seeds of the runs that step sizes are tuned on, none of which is evaluated.

    Args:
        settings: of a profile, with the offset that was asked for.

    Returns:
        `settings["tuning"]` consecutive numbers, far from `seeds(settings)`.
    """
    first = settings.get("seed_offset", 0) + TUNING
    return list(range(first, first + settings["tuning"]))
