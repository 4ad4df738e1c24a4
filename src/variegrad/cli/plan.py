"""`variegrad plan PROBLEM`: from data to a recommended batch size and step, with every number the theory asks for."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, replace
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from variegrad.cli import options
from variegrad.cli.terminal import errors, print_json, print_line

if TYPE_CHECKING:
    from variegrad.decision import Link, Plan


class ScheduleForm(StrEnum):
    """Training codes whose batch schedules are written."""

    MEGATRON_CORE = "megatron-core"
    OLMO_CORE = "olmo-core"
    LEVANTER = "levanter"


class Optimizer(StrEnum):
    """Optimizers that a number is known for."""

    SGD = "sgd"
    ADAMW = "adamw"


LINK = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)bit/s")


def _link(text: str | None) -> str | None:
    if text is not None and not (LINK.fullmatch(text) and float(LINK.fullmatch(text)[1]) > 0):  # type: ignore[index]
        raise typer.BadParameter(f"must be a rate such as 1Gbit/s or 100Mbit/s; got {text!r}.")
    return text


def _read_link(text: str | None) -> Link | None:
    from variegrad.decision import Link  # noqa: PLC0415 - after the options

    if text is None or (found := LINK.fullmatch(text)) is None:
        return None
    return Link(bytes_per_second=float(found[1]) * 1000 ** " kMGT".index(found[2] or " ") / 8)


def plan(
    problem: options.Problem = "digits",
    passes: Annotated[
        float,
        typer.Option(help="Length of the measured run, in passes over the data.", callback=options.number(least=0)),
    ] = 2,
    points: Annotated[
        int, typer.Option(help="Number of exact measurements along that run.", callback=options.number(least=1))
    ] = 6,
    accuracy: Annotated[
        float,
        typer.Option(
            help="Target accuracy ε of the theorems, as a fraction of the initial value, such as 0.1.",
            callback=options.number(least=1e-9, below=1),
        ),
    ] = 0.1,
    delta: Annotated[
        float,
        typer.Option(
            help="For the theorems: δ in B = 1 + δ·B_D. δ = 1 is 50 % efficient, δ = 0.25 is 80 %.",
            callback=options.number(above=0),
        ),
    ] = 1.0,
    l2: Annotated[
        float,
        typer.Option(
            help="λ, if your loss contains a penalty (λ/2)‖w‖²; with it Theorem 5 applies.",
            callback=options.number(least=0),
        ),
    ] = 0.0,
    seconds_per_step: Annotated[
        float | None,
        typer.Option(
            help="Fixed time α of a step: a step of B examples takes α + c′·B seconds. Default: measured.",
            callback=options.number(least=0),
        ),
    ] = None,
    seconds_per_example: Annotated[
        float | None,
        typer.Option(help="Time c′ per example, in seconds. Default: measured.", callback=options.number(above=0)),
    ] = None,
    communication: Annotated[
        float,
        typer.Option(help="Communication time per step, in seconds, added to α.", callback=options.number(least=0)),
    ] = 0.0,
    workers: Annotated[
        int,
        typer.Option(help="Number of workers P that share the examples of a step.", callback=options.number(least=1)),
    ] = 1,
    link: Annotated[
        str | None,
        typer.Option(
            help="Network between workers, such as 1Gbit/s or 100Mbit/s: adds a table over the number of workers.",
            callback=_link,
        ),
    ] = None,
    mechanism: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare the time to an accuracy with this mechanism and without: dropconnect:P.",
            metavar="<mechanism>",
        ),
    ] = None,
    per_worker: Annotated[
        bool, typer.Option("--per-worker", help="Draw the mechanism once per worker instead of once per example.")
    ] = False,
    optimizer: Annotated[
        Optimizer,
        typer.Option(help="Optimizer of your training. For adamw, no learning rate and no stability limit are given."),
    ] = Optimizer.SGD,
    momentum: Annotated[
        float, typer.Option(help="Momentum coefficient of SGD.", callback=options.number(least=0, below=1))
    ] = 0.0,
    schedule: Annotated[
        ScheduleForm | None,
        typer.Option(help="Also print a schedule of growing batch sizes in the format of this training framework."),
    ] = None,
    sequence_length: Annotated[
        int, typer.Option(help="Tokens per example, for --schedule olmo-core.", callback=options.number(least=1))
    ] = 1,
    learning_rate: options.LearningRate = None,
    weights: options.Weights = None,
    seed: options.Seed = 0,
    data_root: options.DataRoot = None,
    max_examples: options.MaxExamples = None,
    json: options.AsJson = False,
) -> None:
    """Measure a problem and recommend a batch size and a learning rate.

    Trains the problem for a short run, measures B_D along it, times a few steps, and takes the smallest of three
    limits: gradient noise (B_D), time (beyond it a larger batch only makes steps slower) and stability (the learning
    rate that a larger batch would need is too large). The output names the limit, the efficiency of the batch, and the
    constants of Theorems 2-9, each marked as a certificate or an estimate.
    """
    if optimizer is not Optimizer.SGD and (momentum or learning_rate is not None):
        named = "--momentum" if momentum else "--learning-rate"
        raise ValueError(f"{named}: belongs to --optimizer sgd, since the measured run is one of plain SGD; omit it.")
    if mechanism is not None and len(mechanism) > 1:
        raise ValueError(f"--mechanism: a plan compares one mechanism; got {len(mechanism)}.")
    if per_worker and mechanism is None:
        raise ValueError("--per-worker: names what a draw of --mechanism is for; there is no --mechanism.")
    chosen = None
    if mechanism is not None:
        from variegrad.cli.mechanisms import parse_mechanism  # noqa: PLC0415 - after the options
        from variegrad.decision.planning import with_a_model  # noqa: PLC0415 - after the options

        chosen = parse_mechanism(mechanism[0])
        try:
            chosen = with_a_model(chosen)
        except ValueError as error:
            raise ValueError(f"--{error}") from None
    console = errors()
    with console.status(f"reading {problem} …"):
        from variegrad.decision import plan as planned  # noqa: PLC0415 - after the options
        from variegrad.decision import stated_step_time, step_time  # noqa: PLC0415
        from variegrad.problems.subset import size  # noqa: PLC0415

        loaded = options.loaded(problem, seed, data_root, max_examples, weights)
    if learning_rate is not None:
        # The measured run is plain SGD, at the learning rate of momentum's slow directions.
        loaded = replace(loaded, step_size=learning_rate / (1 - momentum) / min(64, size(loaded.train)))
    from torch import nn, optim  # noqa: PLC0415

    trained = optim.AdamW if optimizer is Optimizer.ADAMW else optim.SGD([nn.Parameter()], lr=1.0, momentum=momentum)
    with console.status("timing steps …") as status:
        if seconds_per_example is None:
            timed = step_time(loaded)
        else:
            timed = stated_step_time(seconds_per_step or 0.0, seconds_per_example)
        if seconds_per_step is not None:
            timed = replace(timed, seconds_per_step=seconds_per_step, seconds_per_step_range=None)
        made = planned(
            loaded,
            passes=passes,
            points=points,
            accuracy=accuracy,
            delta=delta,
            l2=l2,
            step_time=timed,
            communication=communication,
            workers=workers,
            link=_read_link(link),
            mechanism=chosen,
            granularity="worker" if per_worker else "example",
            optimizer=trained,
            seed=seed,
            on_stage=lambda stage: status.update(f"{stage} …"),
        )
    written = {
        None: lambda: "",
        ScheduleForm.MEGATRON_CORE: made.schedule.megatron_core,
        ScheduleForm.OLMO_CORE: lambda: made.schedule.olmo_core(sequence_length),
        ScheduleForm.LEVANTER: made.schedule.levanter,
    }[schedule]()
    if json:
        print_json(_finite(asdict(made) | ({"schedule_text": written} if written else {})))
    else:
        print_line(_in_words(made), wrap=True)
        if schedule is not None:
            print_line(f"\nBatch schedule for {schedule.value}:\n{written}")


def _finite(value: Any) -> Any:
    """JSON has no infinity and no enumerations: both are written as text."""
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, dict):
        return {_finite(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _in_words(made: Plan) -> str:
    limits = ", ".join(f"{limit.name.lower()} {_count(size)}" for limit, size in made.limits.items())
    adam = math.isnan(made.learning_rate)
    low, high = made.batch_size_range
    lines = [
        *(f"warning: {text}" for text in made.warnings),
        f"{made.problem}: batch size {made.batch_size:,}"
        + (f" (by the timing, between {low:,} and {high:,})" if low < high else "")
        + (
            "; scale your learning rate by the square root of the change, and confirm it with variegrad branch "
            "--optimizer adamw: how far B_D predicts Adam's critical batch size is not settled"
            if adam
            else f", learning rate {made.learning_rate:.2g} (step size {made.step_size:.2g} of the summed gradient)"
        ),
        f"  limited by {made.limited_by.value}",
        f"  limits in examples: {limits}",
        f"  at a learning rate tuned for it, {made.efficiency:.0%} efficient "
        f"(harmonic mean of B_D along the run: {made.harmonic_mean:,.3g})",
        "  B_D was measured along a run of plain SGD, not of Adam"
        if adam
        else f"  learning rate: {made.run_learning_rate:.2g} at batch {made.run_batch_size}, taken as tuned there, "
        f"times {made.learning_rate / made.run_learning_rate:.2g} by the law of B_D; "
        f"{made.learning_rate / made.stable_learning_rate:.2g} of the largest stable one",
        f"  step time{' of one worker' if made.workers > 1 else ''}: {made.step_time}",
    ]
    together = f", with {made.workers:,} workers" if made.workers > 1 else ""
    if made.communication:
        together += f", {1e3 * made.communication:.2g} ms of communication per step"
    if made.time_limit is None:
        lines.append("  the step time does not measurably depend on the batch size, so time sets no limit")
    elif made.step_time.sizes and made.time_limit.value < made.step_time.sizes[0]:
        lines.append(
            f"  fastest batch by these times{together}: below {made.step_time.sizes[0]} examples, "
            "the smallest one timed"
        )
    else:
        lines.append(f"  fastest batch by these times{together}: {made.time_limit} examples")
    if made.mechanism is not None:
        lines.append(f"  {made.mechanism}")
    lines.append(f"  batch sizes that follow B_D: {made.schedule}")
    if made.at_workers:
        lines += ["", "Workers (α-β model of an all-reduce; all rows but the first are extrapolated)"]
        lines += [
            f"  P = {row.workers:>6,}: batch {row.batch_size:>7,}, {1e3 * row.seconds_per_step:.2g} ms per step, "
            f"{row.efficiency:.2g} efficient, {row.speed_up:.2g} times as fast" + ("" if row.measured else " *")
            for row in made.at_workers
        ]
    lines += ["", "Constants"]
    lines += [f"  {name} = {constant}" for name, constant in made.constants.items()]
    lines += [
        "",
        "What the theorems guarantee for plain SGD with these constants (worst cases: compare ratios, not iterations)",
    ]
    lines += [f"  {line}" for rates in made.rates for line in str(rates).splitlines()]
    lines += [
        f"  along the measured run (Theorem 2 with the measured δ_k and M_k²): mean ‖∇F‖² ≤ {made.certificate:.4g}"
    ]
    if made.stability is not None:
        lines += [f"  {line}" for line in str(made.stability).splitlines()]
    return "\n".join(lines)


def _count(size: float) -> str:
    return "∞" if math.isinf(size) else f"{float(f'{size:.2g}'):,.0f}"
