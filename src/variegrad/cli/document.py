"""A measured run as one JSON-able document: what `--json` prints and what the report is drawn from.

JSON has neither infinity nor NaN: +inf is the string "inf", undefined is null; flags say why.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from variegrad.along import AlongRun, Point, over_run
from variegrad.cli.table import two_digits
from variegrad.estimators import Regime
from variegrad.mechanisms import Mechanism
from variegrad.moments import Diversity
from variegrad.per_example.evaluate import trained_parameters, unwrap
from variegrad.problems import Problem
from variegrad.reports.document import layer_kinds
from variegrad.versions import version

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
    """The results of a run, with what is needed to repeat it.

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
            "layers": layer_kinds(unwrap(problem.model)),
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
            "weights": settings.weights,
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
        "over_run": _over_run(over_run(points, settings.batch_size)),
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


def _over_run(found: AlongRun | None) -> dict[str, float | str | None] | None:
    return None if found is None else {name: _number(value) for name, value in asdict(found).items()}


def advice(points: Sequence[Point], batch_size: int) -> str:
    """Advice in words: B_D over the run, the efficiency of the run's batch size, and the largest efficient batch size.

    Args:
        points: what was measured along the run.
        batch_size: B of the run.

    Returns:
        Two or three sentences; numbers have the two digits that a dozen points support.
    """
    found = over_run(points, batch_size)
    if found is None:
        return "No advice on batch sizes: " + (
            "every gradient was zero at every point, so the batch size does not matter."
            if points
            else "nothing was measured."
        )
    if math.isinf(found.harmonic_mean):
        return "At every point the gradients cancel (‖Σg‖ is zero up to rounding): no batch size is too large there."
    length = points[-1].passes - points[0].passes
    over = (
        f"Over {length:.3g} pass{'' if length == 1 else 'es'} B_D is"
        if length
        else f"At pass {points[0].passes:.3g} B_D is"
    )
    mean = " (harmonic mean over the run)" if length else ""
    least = f"least: {two_digits(found.least)} at pass {found.least_at:.3g}"
    below = (
        f"B_D is below {batch_size:,} for {_share(found.share_below)} of the run ({least}). "
        if found.share_below
        else f"B_D stays above {batch_size:,} ({least}). "
    )
    largest = two_digits(half(found.harmonic_mean), down=True)
    return (
        f"{over} {two_digits(found.harmonic_mean)} examples{mean}. Your batch of {batch_size:,} is "
        f"{Regime.of(found.efficiency).value}: {_share(found.efficiency)} efficient. {below if length else ''}"
        f"Batches up to {largest} are at least 50 % efficient{' over the run' if length else ''}."
    )


def _share(value: float) -> str:
    percent = 100 * value
    return "under 1 %" if percent < 1 else f"{math.floor(percent):.0f} %"


def half(bound: float) -> int:
    """The largest batch that is at least half efficient: 1/(1 + (B−1)/B_D) ≥ ½ ⇔ B ≤ 1 + B_D.

    Args:
        bound: B_D, finite.

    Returns:
        B in examples.
    """
    return math.floor(1 + bound)
