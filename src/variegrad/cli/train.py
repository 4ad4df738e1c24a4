"""`variegrad train`: mini-batch SGD on a problem, on one worker or on all that torchrun started."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import typer
from rich.console import Console

from variegrad.cli import options
from variegrad.cli.mechanisms import parse_mechanism
from variegrad.cli.training_log import TrainingLog
from variegrad.cli.training_record import RECORD, WEIGHTS, is_behind, record, refuse_a_used_folder, write
from variegrad.distributed.agreement import failing_together
from variegrad.distributed.workers import workers
from variegrad.distributed.world import World
from variegrad.problems import Problem
from variegrad.problems.subset import size
from variegrad.training import Cadence, Epochs, Evaluation, Skip, Stop, TrainConfig, WithReplacement, train
from variegrad.training.checkpoint import Run
from variegrad.training.update import Update

INTERRUPTED = "interrupted"
TWICE_SECONDS = 2.0  # within which two signals are one request
NOMINAL_BATCH = 64  # what the step sizes of the built-in problems are for


def train_command(
    *,
    problem: str,
    batch_size: int,
    step_size: float | None,
    passes: float,
    mechanism: str | None,
    per_worker: bool,
    epochs: bool,
    weights: Path | None,
    seed: int,
    out: Path | None,
    target_accuracy: float | None,
    evaluate_every: float,
    bound_every: int | None,
    tensorboard: Path | None,
    checkpoint_every: int | None,
    resume: bool,
    skip_not_finite: int,
    timeout: float,
    data_root: str | None,
    max_examples: int | None,
) -> None:
    """The work of `variegrad train`; `variegrad.cli.train_options` documents its arguments and has checked them."""
    errors = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    chosen = None if mechanism is None else parse_mechanism(mechanism)
    if per_worker and chosen is None:
        raise ValueError("--per-worker says where a mechanism is applied: pass --mechanism as well.")
    _check_folder(out, resume, checkpoint_every)
    cadence = Cadence(passes=evaluate_every)
    with workers(timeout=timeout) as world, ends_together(world) as signals:
        with failing_together(world):
            if out is not None and world.is_first:
                refuse_a_used_folder(out, resume=resume)
        loaded = options.loaded(problem, seed, data_root, max_examples, weights)
        config = TrainConfig(
            batch_size=batch_size, passes=passes, mechanism=chosen, seed=seed,
            step_size=default_step_size(loaded, batch_size) if step_size is None else step_size,
            granularity="worker" if per_worker else "example", sampling=_sampling(loaded, epochs, batch_size),
            when_not_finite=Skip(skip_not_finite) if skip_not_finite else Stop(),
        )  # fmt: skip
        evaluation = _evaluation(loaded, cadence, target_accuracy)
        loaded.model.to(world.device)
        run = None
        if out is not None:
            run = Run(
                out, loaded.model, config, world, resume=resume,
                every=None if checkpoint_every is None else Cadence(updates=checkpoint_every),
                settings={"problem": loaded.name, "examples": size(loaded.train)},
            )  # fmt: skip
        with nullcontext() if run is None else run:
            for note in run.notes if run is not None and world.is_first else ():
                errors.print(note)
            log = TrainingLog(
                loaded, config, world, errors, cadence, tensorboard if world.is_first else None,
                None if run is None else run.state,
            )  # fmt: skip
            estimates = None if bound_every is None else Cadence(updates=bound_every)
            failure = _trained(loaded, config, world, log, run, evaluation, estimates)
            if log.last is None and failure is not None:
                raise failure
            ended = _ended(loaded, config, log, failure, signals, target_accuracy)
            if world.is_first:
                line = log.summary(ended) if log.last is not None else f"{loaded.name}: nothing to do: {ended}"
                Console(markup=False, highlight=False, soft_wrap=True).print(line)
            if run is not None:
                _write(run, loaded, config, log, ended, errors, failure)
            if failure is not None:
                raise failure
    if ended == INTERRUPTED:
        raise typer.Exit(128 + signals[0])


def _trained(
    problem: Problem,
    config: TrainConfig,
    world: World,
    log: TrainingLog,
    run: Run | None,
    evaluation: Evaluation | None,
    estimates: Cadence | None,
) -> Exception | None:
    """Make the run's updates; what ended it before its time is returned, so that the weights can be kept."""
    if evaluation is not None and _reached(log, evaluation.target):
        return None
    with log:
        try:
            updates: Iterator[Update] = train(
                problem.model, problem.losses, problem.train, config, world, evaluation=evaluation,
                bound_every=estimates, start=0 if run is None else run.start,
            )  # fmt: skip
            for update in updates if run is None else run.of(updates):
                log.note(update, 0.0 if run is None else run.seconds)
        except Exception as error:  # noqa: BLE001 - raised once the weights are kept
            return error
    return None


def _check_folder(out: Path | None, resume: bool, checkpoint_every: int | None) -> None:
    if out is None:
        if resume or checkpoint_every is not None:
            raise ValueError("--resume and --checkpoint-every need a folder: pass --out.")
        return
    if not (standing := next(p for p in (out, *out.parents) if p.exists())).is_dir():
        raise ValueError(f"--out {out}: {standing} is a file; name a folder.")


def _sampling(problem: Problem, epochs: bool, batch_size: int) -> Epochs | WithReplacement:
    if epochs and 0 < (count := size(problem.train)) < batch_size:
        raise ValueError(
            f"--epochs: a batch must not be larger than the training set ({count:,} examples); got {batch_size}."
        )
    return Epochs() if epochs else WithReplacement()


def _write(
    run: Run,
    problem: Problem,
    config: TrainConfig,
    log: TrainingLog,
    ended: str,
    errors: Console,
    failure: Exception | None,
) -> None:
    """Keep the weights; if that fails, it ends all workers, unless something else has ended the run already."""
    position = run.start if log.last is None else log.last.position
    try:
        with nullcontext() if failure else failing_together(run.world):
            if run.world.is_first and (log.last is not None or is_behind(run.folder, position)):
                made = record(problem, config, run.world, log, ended=ended, position=position, starts=run.starts)
                write(run.folder, made, problem.model)
                errors.print(f"saved: {run.folder / RECORD}, {run.folder / WEIGHTS}")
    except OSError as error:
        if failure is None:
            raise
        errors.print(f"not saved: {error}")


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


def _evaluation(problem: Problem, every: Cadence, target: float | None) -> Evaluation | None:
    if problem.accuracy is None:
        if target is not None:
            raise ValueError(f"--target-accuracy: {problem.name} has no accuracy, only a loss.")
        return None
    data = problem.train if problem.test is None else problem.test
    return Evaluation(accuracy=problem.accuracy, data=data, every=every, target=target) if size(data) else None


def _ended(
    problem: Problem,
    config: TrainConfig,
    log: TrainingLog,
    failure: Exception | None,
    signals: list[int],
    target: float | None,
) -> str:
    if failure is not None:
        return f"failed: {' '.join(str(failure).split())}"
    if _reached(log, target):
        return "target reached"
    made = log.last is None or log.last.examples >= config.passes * size(problem.train) * (1 - 1e-12)
    return INTERRUPTED if signals and not made else "finished"


def _reached(log: TrainingLog, target: float | None) -> bool:
    return target is not None and log.accuracy is not None and log.accuracy >= target


@contextmanager
def ends_together(world: World) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM request that all workers stop after the current update; another one, later, ends this process.

    The same request may come twice: a terminal or scheduler sends it to every process, and torchrun passes it on.

    Args:
        world: the workers.

    Yields:
        The signals that came.
    """
    came: list[int] = []
    first = math.inf

    def ask(number: int, _frame: object) -> None:
        nonlocal first
        if time.monotonic() - first > TWICE_SECONDS:
            raise KeyboardInterrupt
        if not came:
            came.append(number)
            first = time.monotonic()
            world.request_stop()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.stdout.flush()
