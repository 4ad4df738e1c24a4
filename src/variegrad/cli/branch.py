"""`variegrad branch PROBLEM`: the critical batch size at the learning rate in use, measured by short branches."""

from __future__ import annotations

import math
from dataclasses import asdict
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from variegrad.cli import options
from variegrad.cli.terminal import errors, print_json, print_line


class Rule(StrEnum):
    """How the learning rate follows the batch, by the name that is typed."""

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
        int, typer.Option(help="B₀: batch size in use, in examples.", callback=options.number(least=1))
    ] = 16,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Of the mean gradient. Default: the problem's own, for its batch of 64.",
            callback=options.number(above=0),
        ),
    ] = None,
    optimizer: Annotated[Kind, typer.Option(help="Optimizer of the loop.")] = Kind.SGD,
    momentum: Annotated[float, typer.Option(help="Of SGD.", callback=options.number(least=0, below=1))] = 0.0,
    rule: Annotated[Rule, typer.Option(help="How the learning rate grows with the batch.")] = Rule.LINEAR,
    half_lives: Annotated[
        bool, typer.Option("--half-lives", help="Rescale momentum and Adam's β with the batch, too.")
    ] = False,
    weights: options.Weights = None,
    after: Annotated[
        float,
        typer.Option(help="Passes to train at the batch in use before branching.", callback=options.number(least=0)),
    ] = 1.0,
    window: Annotated[
        int | None,
        typer.Option(help="Examples per branch. Default: 128 batches of B₀.", callback=options.number(least=1)),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            help="Loss of progress per example that counts as none.", callback=options.number(above=0, below=1)
        ),
    ] = 0.1,
    windows: Annotated[
        int, typer.Option(help="Pairs of branches per batch size at most.", callback=options.number(least=4))
    ] = 32,
    budget: Annotated[
        int | None, typer.Option(help="Examples to train in all.", callback=options.number(least=1))
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(
            help="File that keeps finished branches: the same command resumes from it.", callback=options.writable_file
        ),
    ] = None,
    seed: options.Seed = 0,
    data_root: options.DataRoot = None,
    max_examples: options.MaxExamples = None,
    json: options.AsJson = False,
) -> None:
    """Find the largest batch that trains as well per example as the one in use.

    Trains pairs of short branches from one checkpoint, at the batch in use and at 2, 4, 8, … times it, on the same
    examples. Example: `variegrad branch digits --batch-size 16 --learning-rate 0.1`
    """
    if window is not None and (window < 8 * batch_size or window % batch_size):
        raise ValueError(f"--window: must be a multiple of --batch-size, at least 8 of {batch_size}; got {window}.")
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
