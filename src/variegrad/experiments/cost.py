"""What a profile costs, before it is started: runs, floating-point operations, hours here, and hours on a GPU.

Hours here come from updates that are timed now: processor time of one thread, so that other jobs do not count. Hours on
a GPU are an assumption, and said to be one. Cells that train no network are timed whole, one group of each kind.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from variegrad.experiments import data, training_run
from variegrad.experiments.experiment import Experiment, Settings
from variegrad.experiments.records import Cell
from variegrad.problems.subset import size

REFINEMENTS = 4  # step sizes that a search adds to its grid: half and quarter octaves on both sides of the best
KIND = ("workers", "batch_size")  # what the time of a cell depends on that trains no network
GPU_FLOPS = 40e12  # per second: assumed, of one large GPU on small convolutions
GPU_UPDATE = 1e-3 / 8  # seconds: assumed launch time of an update, shared by eight runs at once


@dataclass(frozen=True, kw_only=True)
class Row:
    """The runs of one configuration.

    Attributes:
        name: what tells it from the others.
        runs: how many, tuning included.
        updates: per run, at most; None if it trains no network.
        flops: of all runs; None likewise.
        seconds: of all runs, on one thread of this machine.
    """

    name: str
    runs: int
    updates: int | None
    flops: float | None
    seconds: float

    @property
    def gpu_seconds(self) -> float | None:
        """Assumed, on one large GPU."""
        if self.updates is None or self.flops is None:
            return None
        return max(self.flops / GPU_FLOPS, self.runs * self.updates * GPU_UPDATE)


def rows(chosen: Experiment, settings: Settings, device: torch.device = data.CPU) -> Iterator[Row]:
    """The cost of every configuration of an experiment, one after the other.

    Runs with a target are counted as if they never reached it, unless the experiment says what it expects; extensions
    of a grid are not counted. Of cells that train no network one group of each kind is computed, and not kept. In a
    table of both, cells that are timed alone are not counted: they take minutes.

    Args:
        chosen: the experiment.
        settings: of a profile, with its data.
        device: where updates are timed.

    Yields:
        One row per configuration.

    Raises:
        ValueError: if which cells there are follows from the results of others.
    """
    if "tasks" in settings:
        raise ValueError(
            f"--dry-run: which cells {chosen.name} has follows from the results of earlier ones, so their cost is not "
            "known before. Its page says what each profile took."
        )
    asked = {cell.key: cell for cell in chosen.cells(settings, {})}.values()
    cells = [cell if chosen.length is None else _expected(chosen, settings, cell)
             for cell in asked if not chosen.alone(cell)]  # fmt: skip
    if not cells or not {"network", "step_size", "at"} <= cells[0].values.keys():
        yield from _timed_whole(chosen, settings, cells or list(asked))
        return
    configurations: dict[str, list[Cell]] = {}
    for cell in cells:
        rest = {name: value for name, value in cell.values.items() if name not in ("step_size", "seed")}
        configurations.setdefault(json.dumps(rest, sort_keys=True), []).append(cell)
    constant = set.intersection(*({*json.loads(key).items()} for key in map(_hashable, configurations)))
    for runs in configurations.values():
        first = min(runs, key=lambda cell: float(cell["step_size"]))
        yield _row(first, _runs(runs, settings), constant, device)


def _expected(chosen: Experiment, settings: Settings, cell: Cell) -> Cell:
    """The run of a cell with a target, as long as it is expected to take."""
    assert chosen.length is not None
    return replace(cell, values={**cell.values, "at": [chosen.length(settings, cell)], "exact_masks": True})


def _timed_whole(chosen: Experiment, settings: Settings, cells: Sequence[Cell]) -> Iterator[Row]:
    """Cells by what their time depends on; one group of each kind is computed."""
    kinds: dict[str, list[Cell]] = {}
    for cell in cells:
        kinds.setdefault(", ".join(f"{k} {cell[k]}" for k in KIND if k in cell.values) or "all", []).append(cell)
    for name, alike in kinds.items():
        group = [cell for cell in alike if chosen.group(cell) == chosen.group(alike[0])]
        clock = time.perf_counter if chosen.alone(group[0]) else time.process_time
        begun = clock()
        chosen.run(group)
        each = (clock() - begun) / len(group)
        searches = {json.dumps([cell.values.get(k) for k in ("drop", "r")]) for cell in alike}
        runs = _runs(alike[: len(alike) // len(searches)], settings) * len(searches)
        yield Row(name=name, runs=runs, updates=None, flops=None, seconds=runs * each)


def _hashable(key: str) -> str:
    return json.dumps({name: str(value) for name, value in json.loads(key).items()})


def _runs(cells: Sequence[Cell], settings: Settings) -> int:
    """Tuning runs, refinements included; then every seed, with its twins at both readings of the step size."""
    refinements = settings.get("refinements", REFINEMENTS)
    tuning = len(cells) + refinements * settings["tuning"] if "tuning" in settings else len(cells)
    per_seed = 2 * (1 + settings["replaced"]) if "replaced" in settings else 1
    return tuning + (settings["seeds"] * per_seed if "tuning" in settings else 0)


def _row(cell: Cell, runs: int, constant: set[tuple[str, Any]], device: torch.device) -> Row:
    seconds, flops = _per_update(cell, device)
    updates = max(1, cell["at"][-1] // cell["batch_size"])
    names = [
        f"{name} {value}" for name, value in cell.values.items()
        if name not in ("step_size", "seed", "at") and (name, str(value)) not in constant
    ]  # fmt: skip
    return Row(
        name=", ".join(names) or "all", runs=runs, updates=updates, flops=runs * updates * flops,
        seconds=runs * updates * seconds,
    )  # fmt: skip


def _per_update(cell: Cell, device: torch.device) -> tuple[float, float]:
    """Seconds of an update, the least of a few, and its floating-point operations without a mechanism."""
    problem = data.problem(cell["problem"], cell["max_examples"])
    examples = data.replicated(cell["problem"], cell["max_examples"], cell.values.get("r", 1), cell["seed"], device)
    model = training_run.fresh(cell, data.tensors(cell["problem"], cell["max_examples"])).to(device)
    times: list[float] = []
    clock, threads = time.process_time if device.type == "cpu" else time.perf_counter, torch.get_num_threads()
    torch.set_num_threads(1)  # as a sweep does
    try:
        begun = clock()
        for _ in itertools.islice(training_run.updates(cell, model, problem.losses, examples), 4):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(clock() - begun)
            begun = clock()
    finally:
        torch.set_num_threads(threads)
    with FlopCounterMode(display=False) as counter:
        problem.losses(model, tuple(column[: cell["batch_size"]] for column in examples.tensors)).sum().backward()
    rows_counted = min(cell["batch_size"], size(examples))
    return min(times[1:] or times), counter.get_total_flops() * cell["batch_size"] / rows_counted


def totals(found: Sequence[Row]) -> Mapping[str, float | None]:
    """The sums of all rows.

    Args:
        found: all rows.

    Returns:
        Runs, flops, seconds here and assumed seconds on a GPU; None if that is not known of some row.
    """
    columns = {name: [getattr(row, name) for row in found] for name in ("runs", "flops", "seconds", "gpu_seconds")}
    return {name: None if None in column else sum(column) for name, column in columns.items()}
