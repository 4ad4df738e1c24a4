"""What a training run leaves behind: `train.json`, `weights.safetensors`, and checkpoints to go on from."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from datetime import datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_safetensors
from torch import nn

from variegrad.cli.training_log import TrainingLog
from variegrad.distributed.workers import World
from variegrad.problems import Problem
from variegrad.problems.subset import size
from variegrad.reports.writing import write_whole
from variegrad.training import TrainConfig
from variegrad.training.checkpoint import Progress, save
from variegrad.training.update import Update

SCHEMA = "variegrad.train/1"
CHECKPOINTS = "checkpoints"


def record(
    problem: Problem,
    config: TrainConfig,
    world: World,
    log: TrainingLog,
    *,
    ended: str,
    started: datetime,
    seconds: float,
    start: int,
) -> dict[str, Any]:
    """Everything a run came to, with what is needed to make it again.

    Args:
        problem: what was trained.
        config: how.
        world: the workers.
        log: what was seen.
        ended: why it ended.
        started: when.
        seconds: how long it took.
        start: samples seen before it.

    Returns:
        The record, strict JSON.
    """
    last = log.last
    return {
        "schema": SCHEMA,
        "problem": {"name": problem.name, "description": problem.description, "examples": size(problem.train)},
        "settings": config.settings(),
        "workers": world.size,
        "versions": versions(),
        "command": shlex.join(["variegrad", *sys.argv[1:]]),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "seconds_of_worker_0": {part: round(value, 3) for part, value in log.seconds.items()},
        "ended": ended,
        "start": start,
        "updates": 0 if last is None else last.updates,
        "examples": start if last is None else last.examples,
        "skipped": 0 if last is None else last.left_out,
        "accuracy": next((at["accuracy"] for at in reversed(log.history) if at["accuracy"] is not None), None),
        "history": log.history,
    }


def write(folder: Path, made: dict[str, Any], model: nn.Module) -> None:
    """Write the record and the weights, each whole or not at all.

    Args:
        folder: where; made where it does not exist.
        made: the record.
        model: whose weights and buffers are kept, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "weights.safetensors", to_safetensors(_tensors(model)))
    text = json.dumps(made, indent=1, allow_nan=False, ensure_ascii=False)
    write_whole(folder / "train.json", f"{text}\n".encode())


def saved(folder: Path, step: Update, problem: Problem, config: TrainConfig, world: World) -> None:
    """Keep a checkpoint; every worker calls it, worker 0 writes.

    Args:
        folder: of the run.
        step: after which update.
        problem: what is trained.
        config: the settings.
        world: the workers.
    """
    if not world.is_first:
        return
    progress = Progress(
        samples_seen=step.examples, workers=world.size, batch_size=config.batch_size, seed=config.seed,
        settings=settings(problem, config, world), state={"skipped": step.left_out, "versions": versions()},
    )  # fmt: skip
    save(folder / CHECKPOINTS, step.updates, dict(problem.model.state_dict()), progress)


def settings(problem: Problem, config: TrainConfig, world: World) -> dict[str, Any]:
    """What a run must have in common with the one that it goes on from.

    Args:
        problem: what is trained.
        config: how.
        world: the workers.

    Returns:
        Name → plain value.
    """
    return {
        "problem": problem.name, "examples": size(problem.train), **config.settings(), "workers": world.size
    }  # fmt: skip


@cache  # reading the packages' files takes milliseconds, and every checkpoint says them
def versions() -> dict[str, str]:
    """What the numbers of a run depend on beside its settings.

    Returns:
        Package → version.
    """
    return {**{name: version(name) for name in ("variegrad", "torch", "numpy")}, "python": platform.python_version()}


def _tensors(model: nn.Module) -> dict[str, Any]:
    # Tied weights share memory, which the format refuses: each name gets numbers of its own.
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
