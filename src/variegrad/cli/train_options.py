"""The options of `variegrad train`; the work is in `variegrad.cli.train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from variegrad.cli import options


def train(
    problem: options.Problem = "digits",
    batch_size: Annotated[
        int,
        typer.Option(
            help="Batch size B: examples per update, over all workers. May change on resuming.",
            callback=options.number(least=1),
        ),
    ] = 64,
    step_size: options.StepSize = None,
    learning_rate: options.LearningRate = None,
    passes: Annotated[
        float,
        typer.Option(help="Length of the run, in passes over the training set.", callback=options.number(above=0)),
    ] = 10,
    mechanism: Annotated[
        list[str] | None,
        typer.Option(
            help="Mechanism to apply to the gradient of each example: dropconnect:P, langevin:SIGMA or quantize.",
            metavar="<mechanism>",
        ),
    ] = None,
    per_worker: Annotated[
        bool, typer.Option("--per-worker", help="Apply the mechanism to each worker's sum instead of each example.")
    ] = False,
    epochs: Annotated[
        bool,
        typer.Option(
            "--epochs", help="Shuffle instead of drawing with replacement: every pass visits each example once."
        ),
    ] = False,
    weights: options.Weights = None,
    seed: options.Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the record, the weights and the checkpoints.", callback=options.writable_folder),
    ] = None,
    target_accuracy: Annotated[
        float | None,
        typer.Option(
            help="Stop at this accuracy, such as 0.95 (on the test set if there is one).",
            callback=options.number(above=0, most=1),
        ),
    ] = None,
    evaluate_every: Annotated[
        float, typer.Option(help="Passes between two evaluations of the accuracy.", callback=options.number(above=0))
    ] = 0.5,
    bound_every: Annotated[
        int | None,
        typer.Option(help="Updates between two estimates of B_D. Default: none.", callback=options.number(least=1)),
    ] = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option(help="Also write TensorBoard events to this folder.", callback=options.writable_folder),
    ] = None,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            help="Updates between two checkpoints. Default: only one at the end.",
            callback=options.number(least=1),
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Resume from the last checkpoint in --out, or start the run if there is none."),
    ] = False,
    skip_not_finite: Annotated[
        int,
        typer.Option(
            help="Skip at most this many updates with a loss or gradient that is not finite; 0 stops at the first.",
            callback=options.number(least=0),
        ),
    ] = 0,
    timeout: Annotated[
        float,
        typer.Option(
            help="Seconds of silence after which a worker counts as failed.", callback=options.number(above=0)
        ),
    ] = 60.0,
    data_root: options.DataRoot = None,
    max_examples: options.MaxExamples = None,
) -> None:
    """Train a problem by mini-batch SGD, w ← w − γ·Σ m(∇f_i), on one worker or several.

    With `torchrun --nproc-per-node P -m variegrad train …` each of P workers takes B/P examples of every batch; the
    result does not depend on P. Ctrl-C or SIGTERM stops all workers after the current update. However a run with --out
    ends, it saves its weights, its record and a checkpoint; the same command with --resume continues it.
    """
    step = options.step_size_of(step_size, learning_rate, batch_size)
    chosen = mechanism[0] if mechanism else None
    if mechanism is not None and len(mechanism) > 1:
        raise ValueError(f"--mechanism: a run applies one mechanism; got {len(mechanism)}.")
    from variegrad.cli.train import train_command  # noqa: PLC0415 - after the options: torch takes seconds to import

    train_command(
        problem=problem, batch_size=batch_size, step_size=step, passes=passes, mechanism=chosen,
        per_worker=per_worker, epochs=epochs, weights=weights, seed=seed, out=out, target_accuracy=target_accuracy,
        evaluate_every=evaluate_every, bound_every=bound_every, tensorboard=tensorboard,
        checkpoint_every=checkpoint_every, resume=resume, skip_not_finite=skip_not_finite, timeout=timeout,
        data_root=data_root, max_examples=max_examples,
    )  # fmt: skip
