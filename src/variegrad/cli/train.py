"""`variegrad train`: mini-batch SGD on a problem, on one worker or on all that torchrun started."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from variegrad.cli.mechanisms import parse_mechanism
from variegrad.cli.training_log import TrainingLog
from variegrad.cli.training_record import CHECKPOINTS, record, saved, write
from variegrad.cli.training_resumed import resumed
from variegrad.distributed.agreement import failing_together
from variegrad.distributed.workers import World, workers
from variegrad.problems import Problem, load
from variegrad.problems.subset import size
from variegrad.training import Epochs, Evaluation, Every, Skip, Stop, TrainConfig, WithReplacement, train
from variegrad.training.checkpoint import lock, steps
from variegrad.training.update import Position, Update

NOMINAL_BATCH = 64  # what the step sizes of the built-in problems are for


def train_command(
    problem: Annotated[
        str, typer.Argument(help="A built-in problem (variegrad list), a LIBSVM file, or package.module:function.")
    ] = "digits",
    batch_size: Annotated[int, typer.Option(help="B, examples an update, over all workers together.")] = 64,
    step_size: Annotated[
        float | None,
        typer.Option(
            help="γ of the SUMMED gradient (learning rate of the mean, divided by B). Default: the problem's."
        ),
    ] = None,
    passes: Annotated[float, typer.Option(help="How long to train, in passes over the training set.")] = 10,
    mechanism: Annotated[
        str | None, typer.Option(help="Applied to each gradient: dropconnect:P, langevin:SIGMA or quantize.")
    ] = None,
    per_worker: Annotated[
        bool, typer.Option("--per-worker", help="Apply the mechanism to the sum of each worker, not to each example.")
    ] = False,
    epochs: Annotated[
        bool, typer.Option("--epochs", help="Draw without replacement: every pass visits each example once.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the starting weights and of every draw.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for train.json and weights.safetensors.")] = None,
    target_accuracy: Annotated[
        float | None, typer.Option(help="End as soon as this accuracy is reached, such as 0.95 (test set if any).")
    ] = None,
    evaluate_every: Annotated[float, typer.Option(help="Evaluate accuracy every so many passes.")] = 0.5,
    bound_every: Annotated[int | None, typer.Option(help="Estimate B_D every so many updates.")] = None,
    tensorboard: Annotated[Path | None, typer.Option(help="Also write TensorBoard events into this folder.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Keep a checkpoint every so many updates.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in --out, or begin there.")
    ] = False,
    skip_not_finite: Annotated[
        int, typer.Option(help="Leave out at most so many updates that are not finite; 0 ends the run at the first.")
    ] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds after which a silent worker is an error.")] = 60.0,
    data_root: Annotated[
        str | None, typer.Option(help="Where data files are. Default: VARIEGRAD_DATA, else ~/.cache/variegrad.")
    ] = None,
    max_examples: Annotated[int | None, typer.Option(help="Use so many training examples at most.")] = None,
) -> None:
    """Train a problem by mini-batch SGD, w ← w − γ·Σ m(∇f_i), on one worker or on several.

    With `torchrun --nproc-per-node P -m variegrad train …` each of P workers takes B/P examples of every batch; the
    result does not depend on P. Ctrl-C ends all workers after the update at hand and keeps what was learnt.

    Examples: `variegrad train digits --target-accuracy 0.9`,
    `torchrun --nproc-per-node 2 -m variegrad train mnist --batch-size 512 --mechanism dropconnect:0.4 --out runs/a`
    """
    errors = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    chosen = None if mechanism is None else parse_mechanism(mechanism)
    if per_worker and chosen is None:
        raise ValueError("--per-worker says where a mechanism is applied: give --mechanism too.")
    at_least_one = {"--batch-size": batch_size, "--bound-every": bound_every, "--checkpoint-every": checkpoint_every}
    _check_numbers(at_least_one, skip_not_finite, target_accuracy)
    _check_folder(out, resume, checkpoint_every)
    rhythm = Every(passes=evaluate_every)
    with workers(timeout=timeout) as world, ends_together(world) as signals:
        loaded = load(problem, seed=seed, data_root=data_root, max_examples=max_examples)
        config = TrainConfig(
            batch_size=batch_size, passes=passes, mechanism=chosen, seed=seed,
            step_size=default_step_size(loaded, batch_size) if step_size is None else step_size,
            granularity="worker" if per_worker else "example", sampling=_sampling(loaded, epochs, batch_size),
            when_not_finite=Skip(skip_not_finite) if skip_not_finite else Stop(),
        )  # fmt: skip
        evaluation = _evaluation(loaded, rhythm, target_accuracy)
        loaded.model.to(world.device)
        with ExitStack() as held:
            start = Position()
            if out is not None:
                with failing_together(world):
                    if world.is_first:
                        held.enter_context(lock(out))
                    if resume:
                        start = resumed(out, loaded, config, world, errors)
            began, started = time.perf_counter(), datetime.now(UTC)
            failure: Exception | None = None
            with TrainingLog(loaded, config, world, errors, tensorboard if world.is_first else None) as log:
                try:
                    run = train(
                        loaded.model, loaded.losses, loaded.train, config, world, evaluation=evaluation, start=start,
                        bound_every=None if bound_every is None else Every(updates=bound_every),
                    )  # fmt: skip
                    for step in run:
                        log.note(step)
                        if out is not None and checkpoint_every is not None and step.updates % checkpoint_every == 0:
                            with failing_together(world):
                                saved(out, step, loaded, config, world)
                except Exception as error:  # what was learnt before is kept, whatever ended it
                    if log.last is None:
                        raise
                    failure = error
            ended = _ended(failure, signals, log.last, target_accuracy)
            made = record(
                loaded, config, world, log, ended=ended, started=started, seconds=time.perf_counter() - began,
                start=start.examples,
            )  # fmt: skip
            if world.is_first:
                Console(markup=False, highlight=False, soft_wrap=True).print(log.summary(ended))
            if out is not None:
                _write(out, made, loaded, world, errors, failure)
        if failure is not None:
            raise failure
    if signals:
        raise typer.Exit(128 + signals[0])


def _check_numbers(at_least_one: Mapping[str, int | None], skip_not_finite: int, target: float | None) -> None:
    if target is not None and not 0 < target <= 1:
        raise ValueError(f"--target-accuracy must lie in (0, 1], such as 0.95; got {target}.")
    for name, number in at_least_one.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1; got {number}.")
    if skip_not_finite < 0:
        raise ValueError(f"--skip-not-finite must not be negative; got {skip_not_finite}.")


def _check_folder(out: Path | None, resume: bool, checkpoint_every: int | None) -> None:
    if out is None:
        if resume or checkpoint_every is not None:
            raise ValueError("--resume and --checkpoint-every need a folder: give --out.")
        return
    if not (standing := next(p for p in (out, *out.parents) if p.exists())).is_dir():
        raise ValueError(f"--out {out}: {standing} is a file; name a folder.")
    if checkpoint_every is not None and not resume and (kept := steps(out / CHECKPOINTS)):
        raise ValueError(
            f"--out {out} holds checkpoints of a run, up to update {kept[0]:,}: go on from them with --resume, or "
            "choose another folder."
        )


def _sampling(problem: Problem, epochs: bool, batch_size: int) -> Epochs | WithReplacement:
    if epochs and 0 < (count := size(problem.train)) < batch_size:
        raise ValueError(f"--epochs: a batch cannot hold more than the {count:,} examples there are; got {batch_size}.")
    return Epochs() if epochs else WithReplacement()


def _write(
    out: Path, made: dict[str, Any], problem: Problem, world: World, errors: Console, failure: Exception | None
) -> None:
    """Keep what was learnt; where that fails, it ends all workers, unless something else has ended the run already."""
    try:
        with nullcontext() if failure else failing_together(world):
            if world.is_first:
                write(out, made, problem.model)
                errors.print(f"kept: {out / 'train.json'}, {out / 'weights.safetensors'}")
    except OSError as error:
        if failure is None:
            raise
        errors.print(f"not kept: {error}")


def default_step_size(problem: Problem, batch_size: int) -> float:
    """The problem's step, which is for batches of 64, retuned for B by the efficiency law at a nominal B_D of 64.

    γ_B = γ_64·(B_D + 63)/(B_D + B − 1): unchanged for small batches, and for large ones a learning rate of the mean
    that levels off at twice that of a batch of 64. A beginning, not a tuned choice.

    Args:
        problem: whose step.
        batch_size: B.

    Returns:
        γ of the summed gradient.
    """
    return problem.step_size * (2 * NOMINAL_BATCH - 1) / (NOMINAL_BATCH + max(batch_size, NOMINAL_BATCH) - 1)


def _evaluation(problem: Problem, every: Every, target: float | None) -> Evaluation | None:
    if problem.accuracy is None:
        if target is not None:
            raise ValueError(f"--target-accuracy: {problem.name} has no accuracy, only a loss.")
        return None
    data = problem.train if problem.test is None else problem.test
    return Evaluation(accuracy=problem.accuracy, data=data, every=every, target=target) if size(data) else None


def _ended(failure: Exception | None, signals: list[int], last: Update | None, target: float | None) -> str:
    if failure is not None:
        return f"failed: {' '.join(str(failure).split())}"
    if signals:
        return "interrupted"
    reached = last is not None and last.accuracy is not None and target is not None and last.accuracy >= target
    return "target reached" if reached else "all passes made"


@contextmanager
def ends_together(world: World) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM ask all workers to end after the update at hand; a second one ends this process at once.

    Args:
        world: the workers.

    Yields:
        The signals that came.
    """
    came: list[int] = []

    def ask(number: int, _frame: object) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)
        world.request_stop()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.stdout.flush()
