"""`variegrad plan PROBLEM`: from data to a recommended batch size and step, with every number the theory asks for."""

from __future__ import annotations

import json as json_format
import math
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console

from variegrad.cli.planning import Plan, make_plan, measure_run, step_time_of
from variegrad.problems import load


def plan(
    problem: Annotated[
        str, typer.Argument(help="A built-in problem (variegrad list), a LIBSVM file, or package.module:function.")
    ] = "digits",
    passes: Annotated[float, typer.Option(help="How long to train for the measurements, in passes.")] = 2,
    points: Annotated[int, typer.Option(help="How many exact measurements along that run.")] = 6,
    accuracy: Annotated[float, typer.Option(help="ε, as a share of the criterion's value at the start.")] = 0.1,
    delta: Annotated[float, typer.Option(help="δ: how far beyond efficiency 1 to go; 1 wastes half.")] = 1.0,
    l2: Annotated[float, typer.Option(help="λ, where the loss holds a term (λ/2)‖w‖²; enables Theorem 5.")] = 0.0,
    seconds_per_step: Annotated[
        float | None, typer.Option(help="α of a step of α + c′B seconds; measured here by default.")
    ] = None,
    seconds_per_example: Annotated[float | None, typer.Option(help="c′; measured here by default.")] = None,
    communication: Annotated[float, typer.Option(help="Seconds a step spends communicating, added to α.")] = 0.0,
    workers: Annotated[int, typer.Option(help="P: the examples of a step are shared by so many workers.")] = 1,
    seed: Annotated[int, typer.Option(help="Of starting weights and draws.")] = 0,
    data_root: Annotated[str | None, typer.Option(help="Where data files are.")] = None,
    max_examples: Annotated[int | None, typer.Option(help="Use so many training examples at most.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Measure a problem and recommend a batch size and step size, with the constants of Theorems 2-9.

    Each constant is labelled certificate or estimate. Example: `variegrad plan digits --communication 0.01 --workers 4`
    """
    if workers < 1:
        raise ValueError(f"--workers must be at least 1; got {workers}.")
    if not 0 < accuracy < 1:
        raise ValueError(f"--accuracy must lie between 0 and 1; got {accuracy}.")
    errors = Console(stderr=True)
    with errors.status(f"reading {problem} …"):
        loaded = load(problem, seed=seed, data_root=data_root, max_examples=max_examples)
    with errors.status("timing a step …"):
        alpha, per_example = step_time_of(loaded)
    alpha = (alpha if seconds_per_step is None else seconds_per_step) + communication
    per_example = (per_example if seconds_per_example is None else seconds_per_example) / workers
    with errors.status("measuring along a run …"):
        found, curvatures = measure_run(loaded, passes, points, seed)
    with errors.status("bounding the constants …"):
        made = make_plan(
            loaded, found, curvatures, accuracy=accuracy, delta=delta, l2=l2, step_time=(alpha, per_example)
        )
    typer.echo(json_format.dumps(_finite(asdict(made)), indent=1) if json else _in_words(made))


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
