"""The cells of the adjudication: first the curves of every batch size, then windows at the tuned learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from variegrad.experiments.critical_batch import measure
from variegrad.experiments.critical_batch.measure import STARTS
from variegrad.experiments.critical_batch.tuned import Tuned
from variegrad.experiments.experiment import Records, Settings, Values
from variegrad.experiments.records import Cell

NAME, VERSION = "critical-batch", 1
# Half octaves of the learning rates tried: the first and the last.
GRID = {"sgd": (-10, 6), "momentum": (-16, 0), "adamw": (-20, -4), "sign": (-28, -12), "muon": (-18, -2)}
FIXED = ("source", "max_examples", "network", "pool", "evaluated", "length")
OF_WINDOWS = ("window", "windows", "branch_windows", "batch_sizes")


def cells(settings: Settings, records: Records) -> list[Cell]:
    """Task by task, each to its end: the curves of every batch size; then, at the tuned rate of B₀, the windows."""
    found: list[Cell] = []
    for name, optimizers in runs_of(settings).items():
        task = settings["tasks"][name]
        for optimizer in optimizers:
            found += [curve_cell(settings, name, optimizer, size) for size in task["tuned_batch_sizes"]]
            if (tuned := tuned_of(settings, records, name, optimizer)) is not None:
                found += window_cells(settings, name, optimizer, tuned.best)
        if any(cell.key not in records for cell in found):
            break  # one task after the other
    return found


def runs_of(settings: Settings) -> dict[str, list[str]]:
    """The optimizers of each task whose data are there; `finished` names them where a run is committed unfinished."""
    return settings.get("finished") or {name: settings["tasks"][name]["optimizers"] for name in settings["data"]}


def tuned_of(settings: Settings, records: Records, name: str, optimizer: str) -> Tuned | None:
    """The tuned runs of a task and optimizer; None before they are finished."""
    task = settings["tasks"][name]
    arms = {size: curve_cell(settings, name, optimizer, size).key for size in task["tuned_batch_sizes"]}
    if any(key not in records for key in arms.values()):
        return None
    return Tuned.of({size: records[key] for size, key in arms.items()}, _grid(task, optimizer), task["length"], STARTS)


def curve_cell(settings: Settings, name: str, optimizer: str, batch_size: int) -> Cell:
    """The curves of one batch size."""
    task = settings["tasks"][name]
    return _cell(settings, name, optimizer, part="curves", batch_size=batch_size, half_octaves=_grid(task, optimizer),
                 repeats=task.get("repeats", settings["seeds"]))  # fmt: skip


def window_cells(settings: Settings, name: str, optimizer: str, best: int) -> list[Cell]:
    """The windows of a task and optimizer, and B_D along its run at the tuned rate."""
    task = settings["tasks"][name]
    fixed = {"best": best, **{key: task[key] for key in OF_WINDOWS}}
    return [
        *(
            _cell(settings, name, optimizer, part="windows", slower=slower, checkpoint=task["length"] // s, **fixed)
            for slower in task["slower"] for s in STARTS
        ),
        _cell(settings, name, optimizer, part="along", **fixed),
    ]  # fmt: skip


def _cell(settings: Settings, name: str, optimizer: str, **values: Any) -> Cell:
    task = settings["tasks"][name]
    return Cell(experiment=NAME, version=VERSION, values={
        "task": name, "optimizer": optimizer, "seed": settings.get("seed_offset", 0),
        "data": settings["data"][name], **{key: task[key] for key in FIXED}, **values,
    })  # fmt: skip


def _grid(task: Mapping[str, Any], optimizer: str) -> list[int]:
    first, last = GRID[optimizer]
    return list(range(first, last + 1, task["spacing"]))


def group(cell: Cell) -> object:
    """Curves of a batch size alone; all windows of a task and optimizer together."""
    alone = cell["batch_size"] if cell["part"] == "curves" else None
    return cell["task"], cell["optimizer"], alone


def run(group: Sequence[Cell]) -> list[Values]:
    """One batch size's curves, or all windows of a task and optimizer."""
    if group[0]["part"] == "curves":
        return [measure.curves(cell) for cell in group]
    return measure.windows(group)
