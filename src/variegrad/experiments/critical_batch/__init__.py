"""Which number predicts the critical batch size: measured by full sweeps over B, by branches, and predicted from one batch.

What is measured, predicted and claimed is declared in decision 0020; `cells` and `measure` compute it, `judge` compares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from variegrad.experiments.critical_batch import judge, measure
from variegrad.experiments.critical_batch.measure import SLOWER, STARTS
from variegrad.experiments.critical_batch.tasks import TEXT, settled
from variegrad.experiments.experiment import Experiment, Records, Settings, Values
from variegrad.experiments.records import Cell

NAME, VERSION = "critical-batch", 1

# Half octaves of the learning rates tried: the first and the last.
GRID = {"sgd": (-10, 6), "momentum": (-16, 0), "adamw": (-20, -4), "sign": (-28, -12), "muon": (-18, -2)}
HALF_OCTAVES = [12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768]
OCTAVES = [16, 32, 64, 128, 256]
CHEAP: dict[str, Any] = {
    "pool": 1, "evaluated": 1024, "length": 8192, "window": 3072, "windows": 24, "branch_windows": 16, "spacing": 1,
    "tuned_batch_sizes": [8, 16, 32, 64, 128, 256, 512], "batch_sizes": HALF_OCTAVES,
    "optimizers": ["sgd", "momentum", "adamw", "sign", "muon"], "slower": list(SLOWER),
}  # fmt: skip
DEAR = {
    **CHEAP, "evaluated": 512, "length": 3072, "window": 1024, "windows": 6, "branch_windows": 8, "spacing": 2,
    "repeats": 2, "tuned_batch_sizes": [8, 16, 32, 64, 128, 256], "batch_sizes": OCTAVES,
    "optimizers": ["sgd", "adamw", "muon"],
}  # fmt: skip
TASKS: dict[str, dict[str, Any]] = {
    "a9a logistic": {**CHEAP, "source": "a9a", "max_examples": 16384, "network": "logistic", "held_out": False,
                     "optimizers": ["sgd", "momentum", "adamw", "sign"]},
    "digits MLP": {**CHEAP, "source": "digits", "max_examples": 2000, "network": "mlp:32:tanh", "held_out": False},
    "MNIST CNN": {**DEAR, "source": "mnist", "max_examples": 8192, "network": "mnist-cnn:4", "pool": 2,
                  "held_out": False, "optimizers": ["sgd", "momentum", "adamw"]},
    "digits logistic": {**CHEAP, "source": "digits", "max_examples": 2000, "network": "logistic", "held_out": True},
    "MNIST MLP": {**CHEAP, "source": "mnist", "max_examples": 8192, "network": "mlp:32:relu", "pool": 2,
                  "held_out": True},
    "CIFAR CNN": {**DEAR, "source": "cifar10", "max_examples": 8192, "network": "groupnorm-cnn:8", "pool": 2,
                  "held_out": True},
    "character GPT": {**DEAR, "source": TEXT, "max_examples": 16384, "network": "gpt:2x32", "pool": 16, "length": 2048,
                      "windows": 4, "slower": [1, 16], "held_out": True},
}  # fmt: skip
SMOKE = {
    "pool": 1, "evaluated": 64, "length": 64, "window": 128, "windows": 4, "branch_windows": 4, "spacing": 4,
    "tuned_batch_sizes": [8, 32], "batch_sizes": [16, 32], "optimizers": ["sgd", "adamw"], "slower": [1],
    "source": "digits", "max_examples": 128, "repeats": 2,
}  # fmt: skip
LARGE = {
    "length": 65536, "window": 6144, "windows": 32, "branch_windows": 32, "spacing": 1, "evaluated": 2048, "repeats": 4,
    "tuned_batch_sizes": [8 * 2**j for j in range(9)], "batch_sizes": HALF_OCTAVES,
    "optimizers": ["sgd", "momentum", "adamw", "sign", "muon"], "slower": list(SLOWER),
}  # fmt: skip
PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {"seeds": 2, "tasks": {
        "digits logistic": {**SMOKE, "network": "logistic", "held_out": False},
        "digits MLP": {**SMOKE, "network": "mlp:4:tanh", "held_out": True},
    }},
    "small": {"seeds": 4, "tasks": TASKS},
    "paper": {"seeds": 8, "tasks": {
        name: {**task, **LARGE, "optimizers": task["optimizers"] if name == "a9a logistic" else LARGE["optimizers"],
               **({"pool": 1, "network": "mnist-cnn:32"} if name == "MNIST CNN" else {}),
               **({"network": "groupnorm-cnn:32"} if name == "CIFAR CNN" else {}),
               **({"network": "gpt:5x128", "pool": 64} if name == "character GPT" else {})}
        for name, task in TASKS.items()
    }},
}  # fmt: skip
FIXED = ("source", "data", "max_examples", "network", "pool", "evaluated", "length")
OF_WINDOWS = ("window", "windows", "branch_windows", "batch_sizes")


def cells(settings: Settings, records: Records) -> list[Cell]:
    """Task by task, each to its end: the curves of every batch size; then, at the tuned rate of B₀, the windows."""
    found: list[Cell] = []
    for name, task in settings["tasks"].items():
        for optimizer in task["optimizers"]:
            found += [curve_cell(settings, name, optimizer, size) for size in task["tuned_batch_sizes"]]
            if (tuned := tuned_of(settings, records, name, optimizer)) is not None:
                found += window_cells(settings, name, optimizer, tuned.best)
        if any(cell.key not in records for cell in found):
            break  # one task after the other
    return found


def tuned_of(settings: Settings, records: Records, name: str, optimizer: str) -> judge.Tuned | None:
    """The tuned runs of a task and optimizer; None before they are finished."""
    task = settings["tasks"][name]
    arms = {size: curve_cell(settings, name, optimizer, size).key for size in task["tuned_batch_sizes"]}
    if any(key not in records for key in arms.values()):
        return None
    return judge.Tuned.of(
        {size: records[key] for size, key in arms.items()}, _grid(task, optimizer), task["length"], STARTS
    )


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
        **{key: task.get(key) for key in FIXED}, **values,
    })  # fmt: skip


def _grid(task: Mapping[str, Any], optimizer: str) -> list[int]:
    first, last = GRID[optimizer]
    return list(range(first, last + 1, task["spacing"]))


def run(group: Sequence[Cell]) -> list[Values]:
    """One batch size's curves, or all windows of a task and optimizer."""
    if group[0]["part"] == "curves":
        return [measure.curves(cell) for cell in group]
    return measure.windows(group)
