"""A measured run as one JSON-able document: what `--json` prints and what the report is drawn from.

JSON has neither infinity nor NaN: +inf is the string "inf", undefined is null; flags say why.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from variegrad.along import Point
from variegrad.estimators import Regime
from variegrad.mechanisms import Mechanism
from variegrad.moments import Diversity
from variegrad.per_example.evaluate import trained_parameters, unwrap
from variegrad.problems import Problem

if TYPE_CHECKING:
    from variegrad.cli.measure import Settings

SCHEMA = "variegrad.measure/1"


def document(
    problem: Problem,
    settings: Settings,
    points: Sequence[Point],
    *,
    command: str,
    started: datetime,
    seconds: float,
    interrupted: bool,
) -> dict[str, Any]:
    """Everything a run said, with what is needed to make it again.

    Args:
        problem: what was trained.
        settings: how.
        points: what was measured.
        command: as typed.
        started: when.
        seconds: how long it took.
        interrupted: whether it ended early.

    Returns:
        The document.
    """
    parameters = trained_parameters(unwrap(problem.model))
    return {
        "schema": SCHEMA,
        "problem": {
            "name": problem.name,
            "description": problem.description,
            "examples": len(problem.train),  # type: ignore[arg-type]
            "parameters": sum(p.numel() for p in parameters.values()),
        },
        "settings": {
            "passes": settings.passes,
            "points": settings.points,
            "batch_size": settings.batch_size,
            "step_size": settings.step_size,
            "seed": settings.seed,
            "mechanisms": [str(m) for m in settings.mechanisms],
            "data_root": settings.data_root,
            "max_examples": settings.max_examples,
        },
        "versions": {
            **{name: version(name) for name in ("variegrad", "torch", "numpy")},
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
        "command": command,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "interrupted": interrupted,
        "points": [_point(point, settings.mechanisms) for point in points],
        "advice": advice(points, settings.batch_size),
    }


def _point(point: Point, mechanisms: Sequence[Mechanism]) -> dict[str, Any]:
    d = point.diversity
    return {
        "passes": point.passes,
        "updates": point.updates,
        "loss": _number(point.loss),
        "accuracy": _number(point.accuracy),
        "test_loss": _number(point.test_loss),
        "test_accuracy": _number(point.test_accuracy),
        "count": d.count,
        "dimension": d.dimension,
        **_sums(d),
        "diversity": _number(d.diversity),
        "batch_size_bound_without_replacement": _number(d.batch_size_bound_without_replacement),
        "flags": [flag for flag in ("undefined", "zero_total", "conflicting") if getattr(d, flag)],
        "mechanisms": {
            str(m): {"bound": _number(d.bound_with(m)), "effective_bound": _number(d.effective_bound_with(m))}
            for m in mechanisms
        },
        "per_parameter": {name: {"dimension": part.dimension, **_sums(part), "share": _number(share)}
                          for (name, part), share in zip(d.per_parameter.items(), _shares(d), strict=True)},
    }  # fmt: skip


def _sums(d: Diversity) -> Mapping[str, Any]:
    return {
        "sum_sq_norms": d.sum_sq_norms,
        "sq_norm_of_sum": d.sq_norm_of_sum,
        "batch_size_bound": _number(d.batch_size_bound),
    }


def _shares(d: Diversity) -> list[float]:
    # 1/B_D = Σ_l (A_l/A)(1/B_l), and (A_l/A)(1/B_l) is S_l/(nA): a layer's share is that of ‖Σg‖².
    whole = d.sq_norm_of_sum
    return [part.sq_norm_of_sum / whole if whole else math.nan for part in d.per_parameter.values()]


def _number(value: float | None) -> float | str | None:
    if value is None or math.isnan(value):
        return None
    return ("inf" if value > 0 else "-inf") if math.isinf(value) else value


def advice(points: Sequence[Point], batch_size: int) -> str:
    """One sentence a person can act on.

    Args:
        points: what was measured along the run.
        batch_size: B of the run.

    Returns:
        What batch sizes waste at most half of their examples, where, and how the run's own batch fares.
    """
    defined = [p for p in points if not p.diversity.undefined]
    if not defined:
        return "Nothing can be said about batch sizes: " + (
            "every gradient was zero at every point, so any batch size is harmless."
            if points
            else "nothing was measured."
        )
    least = min(defined, key=lambda p: p.diversity.batch_size_bound)
    end = defined[-1]
    worst = least.diversity.efficiency(batch_size)
    if math.isinf(least.diversity.batch_size_bound):
        return "At every point the gradients cancel (‖Σg‖ is zero up to rounding): no batch size is too large there."
    text = (
        f"Up to pass {end.passes:.3g} a batch of {half(least):,} wastes at most half of its examples "
        f"(the least is at pass {least.passes:.3g})"
    )
    if end is not least:
        text += (
            f"; at pass {end.passes:.3g} " + ("any batch does." if math.isinf(end.diversity.batch_size_bound)
            else f"a batch of {half(end):,} does.")
        )  # fmt: skip
    else:
        text += "."
    final = end.diversity.efficiency(batch_size)
    return text + (
        f" The run's batch of {batch_size} is {Regime.of(worst).value}: {100 * worst:.0f} % of its examples count at "
        f"worst, {100 * final:.0f} % at the end."
    )


def half(point: Point) -> int:
    """The largest batch that wastes at most half of its examples: efficiency 1/(1 + (B−1)/B_D) ≥ ½ ⇔ B ≤ 1 + B_D.

    Args:
        point: what was measured; B_D finite.

    Returns:
        B in examples.
    """
    return math.floor(1 + point.diversity.batch_size_bound)
