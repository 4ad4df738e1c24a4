"""What a run leaves beside its checkpoints: `train.json`, of the whole run, and `weights.safetensors`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from variegrad.cli.training_log import TrainingLog
from variegrad.distributed.world import World
from variegrad.files import whole, write_whole
from variegrad.problems import Problem
from variegrad.problems.subset import size
from variegrad.training import Position, TrainConfig
from variegrad.training.checkpoint import empty, tensors
from variegrad.training.checkpoint.run import CHECKPOINTS, holds_a_run
from variegrad.versions import versions

SCHEMA = "variegrad.train/2"
RECORD, WEIGHTS = "train.json", "weights.safetensors"


def record(
    problem: Problem,
    config: TrainConfig,
    world: World,
    log: TrainingLog,
    *,
    ended: str,
    position: Position,
    starts: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Everything a run came to, over all its parts, with what is needed to make it again.

    Args:
        problem: what was trained.
        config: how.
        world: the workers.
        log: what was seen.
        ended: why it ended.
        position: where the run stands.
        starts: when it was started, resumed and changed.

    Returns:
        The record, strict JSON.
    """
    return {
        "schema": SCHEMA,
        "problem": {"name": problem.name, "description": problem.description, "examples": size(problem.train)},
        "settings": config.settings(),
        "workers": world.size,
        "versions": versions(),
        "command": shlex.join(["variegrad", *sys.argv[1:]]),
        "started": starts[0]["time"],
        "starts": list(starts),
        "seconds": round(log.kept["took"], 3),
        "seconds_of_worker_0": {part: round(value, 3) for part, value in log.kept["seconds"].items()},
        "ended": ended,
        "updates": position.updates,
        "examples": position.examples,
        "left_out": position.left_out,
        "accuracy": log.accuracy,
        "history": log.history,
    }


def write(folder: Path, made: dict[str, Any], model: nn.Module) -> None:
    """Write the weights and then the record, each whole or not at all.

    Args:
        folder: where; created if it does not exist.
        made: the record.
        model: whose weights and buffers are kept, by name.
    """
    with whole(folder / WEIGHTS) as file:
        tensors.write(file, model.state_dict())
    write_whole(folder / RECORD, json.dumps(made, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def refuse_a_used_folder(folder: Path, *, resume: bool) -> None:
    """Nothing of another run is written over, and no run is restarted unasked.

    Args:
        folder: that a run is to write to.
        resume: whether it is to be continued.

    Raises:
        ValueError: if it holds a run that is not to be continued, or cannot be.
    """
    found = [name for name in (RECORD, WEIGHTS) if (folder / name).exists()]
    kept = not empty(folder / CHECKPOINTS)
    if resume and found and not kept:
        raise ValueError(
            f"{folder} holds {' and '.join(found)} of a run but no checkpoint, so that it cannot be resumed: choose "
            "another folder."
        )
    if not resume and (found or kept):
        raise ValueError(holds_a_run(folder, ", ".join([*found, *(["checkpoints"] if kept else [])])))


def is_behind(folder: Path, position: Position) -> bool:
    """Whether the record is missing or of an earlier moment than the run: it was killed before it wrote.

    Args:
        folder: of the run.
        position: where the run stands.

    Returns:
        True also if the weights are missing or the record cannot be read.
    """
    try:
        written = json.loads((folder / RECORD).read_bytes())
        return bool(written["examples"] < position.examples) or not (folder / WEIGHTS).exists()
    except (OSError, ValueError, KeyError, TypeError):
        return True
