"""Where a run goes on: at its newest checkpoint that verifies, at the beginning where it has kept none yet.

So one command serves the first start and every restart after it, as torchrun makes them.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from variegrad.cli.training_record import CHECKPOINTS, settings, versions
from variegrad.distributed.workers import World
from variegrad.problems import Problem
from variegrad.training import TrainConfig
from variegrad.training.checkpoint import check_settings, empty, load
from variegrad.training.update import Position

MAY_CHANGE = ("passes", "when_not_finite")


def resumed(folder: Path, problem: Problem, config: TrainConfig, world: World, errors: Console) -> Position:
    """Load the newest checkpoint that verifies into the model, and say on worker 0 which, and what was passed over.

    Args:
        folder: of the run.
        problem: whose model takes the weights and buffers.
        config: today's settings.
        world: today's workers; their number may be another unless a mechanism acts on each worker's sum.
        errors: where it is said.

    Returns:
        Where the run stands; the beginning if nothing was kept yet.

    Raises:
        ValueError: if none can be used, or it is of other settings or another model.
    """
    kept_in = folder / CHECKPOINTS

    def said(line: str) -> None:
        if world.is_first:
            errors.print(line)

    if empty(kept_in):
        said(f"{folder}: no checkpoint yet; the run begins at update 0")
        return Position()
    kept = load(kept_in)
    may_change = (
        MAY_CHANGE if config.mechanism is not None and config.granularity == "worker" else (*MAY_CHANGE, "workers")
    )
    check_settings(kept.progress.settings, settings(problem, config, world), may_change=may_change)
    try:
        problem.model.load_state_dict(dict(kept.tensors))
    except RuntimeError as error:
        raise ValueError(f"{kept.folder} is a checkpoint of another model: {' '.join(str(error).split())}") from error
    for one in kept.skipped:
        said(f"checkpoint passed over: {one}")
    then = kept.progress.state.get("versions", {})
    if changed := [
        f"{name} {then.get(name)} then, {now} now" for name, now in versions().items() if then.get(name) != now
    ]:
        said(f"other versions ({'; '.join(changed)}): the run goes on, but numbers may differ in their last digits")
    seen, skipped = kept.progress.samples_seen, int(kept.progress.state.get("skipped", 0))
    left_out = f", {skipped:,} updates left out" if skipped else ""
    said(f"{folder}: goes on from update {kept.step:,} ({seen:,} samples seen{left_out})")
    return Position(examples=seen, updates=kept.step, left_out=skipped)
