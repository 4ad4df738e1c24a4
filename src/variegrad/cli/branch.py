"""`variegrad branch PROBLEM`: the critical batch size at the learning rate in use, measured by short branches."""

from __future__ import annotations

import math
from dataclasses import asdict
from enum import Enum, StrEnum
from json import loads
from pathlib import Path
from typing import Annotated, Any

import typer

from variegrad.cli import options
from variegrad.cli.terminal import errors, print_json, print_line


def _ledger_file(path: Path | None) -> Path | None:
    """Refuse a file that cannot be written, or that exists and was not written by this command."""
    path = options.writable_file(path)
    if path is not None and path.exists():
        with path.open("rb") as file:
            first = file.readline(10_000)
        try:
            settings = loads(first)
        except ValueError:
            settings = None
        if not isinstance(settings, dict) or "start_loss" not in settings:
            raise typer.BadParameter(f"{path}: was not written by `variegrad branch`. Choose another file.")
    return path


class Rule(StrEnum):
    """How the learning rate follows the batch size, by the name that is typed."""

    LINEAR = "linear"
    SQUARE_ROOT = "square-root"
    FIXED = "fixed"


class Kind(StrEnum):
    """Optimizers of the command; from Python, `vg.branch` takes any loop."""

    SGD = "sgd"
    ADAMW = "adamw"


def branch(
    problem: options.Problem = "digits",
    batch_size: Annotated[
        int, typer.Option(help="Your current batch size B₀, in examples.", callback=options.number(least=1))
    ] = 16,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Your current learning rate, of the mean loss. Default: the problem's own, at batch size 64.",
            callback=options.number(above=0),
        ),
    ] = None,
    optimizer: Annotated[Kind, typer.Option(help="Optimizer of the training loop.")] = Kind.SGD,
    momentum: Annotated[
        float, typer.Option(help="Momentum coefficient of SGD.", callback=options.number(least=0, below=1))
    ] = 0.0,
    rule: Annotated[
        Rule,
        typer.Option(help="How the learning rate follows the batch size: times B/B₀, times √(B/B₀), or not at all."),
    ] = Rule.LINEAR,
    half_lives: Annotated[
        bool,
        typer.Option(
            "--half-lives",
            help="Also adjust momentum and Adam's β, so that they average over the same number of examples "
            "at every batch size.",
        ),
    ] = False,
    weights: options.Weights = None,
    after: Annotated[
        float,
        typer.Option(help="Passes over the data to train before the branches start.", callback=options.number(least=0)),
    ] = 1.0,
    window: Annotated[
        int | None,
        typer.Option(help="Examples per branch. Default: 128 batches of B₀.", callback=options.number(least=1)),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            help="Accept a batch size if it loses at most this share of the progress per example.",
            callback=options.number(above=0, below=1),
        ),
    ] = 0.1,
    windows: Annotated[
        int, typer.Option(help="At most this many pairs of branches per batch size.", callback=options.number(least=4))
    ] = 32,
    budget: Annotated[
        int | None,
        typer.Option(help="Stop after training on this many examples in total.", callback=options.number(least=1)),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(
            help="Keep finished branches in this file; the same command then resumes from it.",
            callback=_ledger_file,
        ),
    ] = None,
    seed: options.Seed = 0,
    data_root: options.DataRoot = None,
    max_examples: options.MaxExamples = None,
    json: options.AsJson = False,
) -> None:
    """Measure the critical batch size at your learning rate: how far the batch can grow without losing progress.

    Trains pairs of short branches from one checkpoint, at your batch size B₀ and at 2, 4, 8, … times B₀, on the same
    examples, and compares how far the loss falls. A batch size is accepted or rejected with 95 % confidence, or stays
    undecided. Ctrl-C keeps finished branches if --ledger is given.
    """
    if window is not None and window % (8 * batch_size):
        raise ValueError(f"--window: must be a multiple of 8 batches, {8 * batch_size} examples; got {window}.")
    from torch import nn, optim  # noqa: PLC0415

    from variegrad.decision import LearningRateRule, step_limits  # noqa: PLC0415
    from variegrad.decision import branch as check  # noqa: PLC0415
    from variegrad.decision.problem_loop import ProblemLoop, first_batch  # noqa: PLC0415

    console = errors()
    loaded = options.loaded(problem, seed, data_root, max_examples, weights)
    rate = 64 * loaded.step_size if learning_rate is None else learning_rate

    def make(parameters: list[nn.Parameter]) -> optim.Optimizer:
        if optimizer is Kind.ADAMW:
            return optim.AdamW(parameters, lr=rate)
        return optim.SGD(parameters, lr=rate, momentum=momentum)

    examples = len(loaded.train)  # type: ignore[arg-type]
    with console.status("training to the checkpoint …"):
        loop = ProblemLoop(loaded, make, batch_size=batch_size, warm_up=round(after * examples), seed=seed)
        limits = None
        if optimizer is Kind.SGD:
            limits = step_limits(
                loaded.model,
                loaded.losses,
                first_batch(loaded.train, 1024, seed=seed),
                learning_rate=rate,
                batch_size=batch_size,
                momentum=momentum,
            )
    with console.status("branches …") as status:
        result = check(
            loop,
            batch_size=batch_size,
            start_loss=loop.start_loss,
            window=128 * batch_size if window is None else window,
            rule=LearningRateRule[rule.name],
            half_lives=half_lives,
            tolerance=tolerance,
            windows=windows,
            budget=budget,
            limits=limits,
            ledger=ledger,
            settings={
                "problem": problem,
                "optimizer": optimizer.value,
                "learning_rate": rate,
                "momentum": momentum,
                "seed": seed,
            },
            on_window=lambda trial, loss, spent: status.update(
                f"batch {trial.batch_size:,}, window {trial.seed + 1}: loss {loss:.4g}; {spent:,} examples trained …"
            ),
        )
    document = _finite(asdict(result) | {"critical": result.critical})
    if json:
        print_json(document)
    else:
        print_line(str(result), wrap=True)


def _finite(value: Any) -> Any:
    """JSON has no infinity and no enumerations: both are written as text."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
