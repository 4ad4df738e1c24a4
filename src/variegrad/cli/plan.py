"""`variegrad plan PROBLEM`: from data to a recommended batch size and step, with every number the theory asks for."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from variegrad.cli import options
from variegrad.cli.terminal import errors, print_json, print_line

if TYPE_CHECKING:
    from variegrad.cli.planning import Plan


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
            help="ε, as a share of the criterion's value at the start.", callback=options.number(above=0, below=1)
        ),
    ] = 0.1,
    delta: Annotated[
        float,
        typer.Option(help="δ: how far beyond efficiency 1 to go; 1 wastes half.", callback=options.number(above=0)),
    ] = 1.0,
    l2: Annotated[
        float,
        typer.Option(
            help="λ of a term (λ/2)‖w‖² in the loss, if any; enables Theorem 5.",
            callback=options.number(least=0),
        ),
    ] = 0.0,
    seconds_per_step: Annotated[
        float | None,
        typer.Option(help="α of a step of α + c′B seconds. Default: measured here.", callback=options.number(least=0)),
    ] = None,
    seconds_per_example: Annotated[
        float | None, typer.Option(help="c′. Default: measured here.", callback=options.number(above=0))
    ] = None,
    communication: Annotated[
        float,
        typer.Option(help="Seconds per step spent communicating, added to α.", callback=options.number(least=0)),
    ] = 0.0,
    workers: Annotated[
        int, typer.Option(help="P: this many workers share the examples of a step.", callback=options.number(least=1))
    ] = 1,
    weights: options.Weights = None,
    seed: options.Seed = 0,
    data_root: options.DataRoot = None,
    max_examples: options.MaxExamples = None,
    json: options.AsJson = False,
) -> None:
    """Measure a problem and recommend a batch size and step size, with the constants of Theorems 2-9.

    Each constant is labelled certificate or estimate. Example: `variegrad plan digits --communication 0.01 --workers 4`
    """
    console = errors()
    with console.status(f"reading {problem} …"):
        from variegrad.cli.planning import make_plan, measure_run, step_time_of  # noqa: PLC0415 - after the options

        loaded = options.loaded(problem, seed, data_root, max_examples, weights)
    with console.status("timing a step …"):
        alpha, per_example = step_time_of(loaded)
    alpha = (alpha if seconds_per_step is None else seconds_per_step) + communication
    per_example = (per_example if seconds_per_example is None else seconds_per_example) / workers
    with console.status("measuring along a run …"):
        found, curvatures = measure_run(loaded, passes, points, seed)
    with console.status("bounding the constants …"):
        made = make_plan(
            loaded, found, curvatures, accuracy=accuracy, delta=delta, l2=l2, step_time=(alpha, per_example)
        )
    if json:
        print_json(_finite(asdict(made)))
    else:
        print_line(_in_words(made), wrap=True)


def _finite(value: Any) -> Any:
    """JSON has no infinity: it is written as text."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _in_words(made: Plan) -> str:
    choice, learning_rate = made.choice, made.step_size * made.choice.batch_size
    lines = [f"{made.problem}: constants"]
    lines += [f"  {name} = {constant}" for name, constant in made.constants.items()]
    lines += ["", "What the theorems promise at these constants (worst cases: read the ratios, not the iterations)"]
    lines += [f"  {line}" for rates in made.rates for line in str(rates).splitlines()]
    lines += [
        f"  along the measured run (Theorem 2 with the δ_k and M_k² of its points): mean ‖∇F‖² ≤ {made.certificate:.4g}"
    ]
    if made.stability is not None:
        lines += [f"  {line}" for line in str(made.stability).splitlines()]
    lines += [
        "",
        f"Recommended, for steps of {made.seconds_per_step:.3g} s + {made.seconds_per_example:.3g} s × B:",
        f"  B = {choice.batch_size:,} examples (B* = √(α(B_D−1)/c′) = {choice.continuous:.4g}), "
        f"efficiency {choice.efficiency:.2f}, speed-up {choice.speed_up:.3g} serial steps, "
        f"{choice.gain:.3g} times faster than B = 1",
        f"  γ = {made.step_size:.4g} for summed gradients (learning rate {learning_rate:.4g} for their mean): "
        "the problem's own step, retuned by 1/(1+δ)",
    ]
    if made.step_size > made.stable_step_size:
        lines.append(f"  warning: this γ exceeds 2/(βB) = {made.stable_step_size:.4g}; start with less")
    return "\n".join(lines)
