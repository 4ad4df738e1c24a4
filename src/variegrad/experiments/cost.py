"""What a profile costs, before it is started: runs, floating-point operations, hours here, and hours on a GPU.

Hours here come from updates that are timed now: processor time of one thread, so that other jobs do not count. Hours on
a GPU are an assumption, and said to be one.
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
from variegrad.training import train

REFINEMENTS = 4  # step sizes that a search adds to its grid: half and quarter octaves on both sides of the best
GPU_FLOPS = 40e12  # per second: assumed, of one large GPU on small convolutions
GPU_UPDATE = 1e-3 / 8  # seconds: assumed launch time of an update, shared by eight runs at once


@dataclass(frozen=True, kw_only=True)
class Row:
    """The runs of one configuration.

    Attributes:
        name: what tells it from the others.
        runs: how many, tuning included.
        updates: per run, at most.
        flops: of all runs.
        seconds: of all runs, on one thread of this machine.
    """

    name: str
    runs: int
    updates: int
    flops: float
    seconds: float

    @property
    def gpu_seconds(self) -> float:
        """Assumed, on one large GPU."""
        return max(self.flops / GPU_FLOPS, self.runs * self.updates * GPU_UPDATE)


def rows(chosen: Experiment, settings: Settings, device: torch.device = data.CPU) -> Iterator[Row]:
    """The cost of every configuration of an experiment that trains networks, one after the other.

    Runs with a target are counted as if they never reached it, unless the experiment says what it expects; extensions
    of a grid are not counted. Cells that are timed alone are not counted: they take minutes.

    Args:
        chosen: the experiment.
        settings: of a profile, with its data.
        device: where updates are timed.

    Yields:
        One row per configuration.

    Raises:
        ValueError: if its cells are no training runs.
    """
    configurations: dict[str, list[Cell]] = {}
    for asked in {cell.key: cell for cell in chosen.cells(settings, {})}.values():
        if chosen.alone(asked):
            continue
        cell = asked
        if chosen.length is not None:
            cell = replace(asked, values={**asked.values, "at": [chosen.length(settings, asked)], "exact_masks": True})
        if not {"network", "step_size", "at"} <= cell.values.keys():
            raise ValueError(
                f"--dry-run: cells of {chosen.name} are no training runs of a network, so that their cost is not known "
                "before. Its small profile takes minutes."
            )
        rest = {name: value for name, value in cell.values.items() if name not in ("step_size", "seed")}
        configurations.setdefault(json.dumps(rest, sort_keys=True), []).append(cell)
    constant = set.intersection(*({*json.loads(key).items()} for key in map(_hashable, configurations)))
    for cells in configurations.values():
        first = min(cells, key=lambda cell: float(cell["step_size"]))
        yield _row(first, _runs(cells, settings), constant, device)


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
    config = training_run.config(cell, size(examples))
    times: list[float] = []
    clock, threads = time.process_time if device.type == "cpu" else time.perf_counter, torch.get_num_threads()
    torch.set_num_threads(1)  # as a sweep does
    try:
        begun = clock()
        for _ in itertools.islice(train(model, problem.losses, examples, config), 4):
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


def totals(found: Sequence[Row]) -> Mapping[str, float]:
    """The sums of all rows.

    Args:
        found: all rows.

    Returns:
        Runs, flops, seconds here and assumed seconds on a GPU.
    """
    return {name: sum(getattr(row, name) for row in found) for name in ("runs", "flops", "seconds", "gpu_seconds")}
