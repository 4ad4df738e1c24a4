"""Trajectory certificates: Theorems 2-5 with the δ_k and M_k² that a run actually met, in place of their worst values.

Every step obeys the inequality behind its theorem with its own noise (1+δ_k)·B·γ²·M_k², δ_k = (B−1)/B_D(w_k). Far from
an optimum δ is large and M² matters little; near it B_D grows without bound, so the worst case over a run says far too
much. The inequalities hold in expectation: feed in averages over repeated runs, or read the result as describing one
run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from variegrad.shapes import Float64
from variegrad.theory.arguments import at_least_one, non_negative, positive


def distance_along(
    *,
    sq_distance: float,
    strong_convexity: float,
    step_size: float,
    batch_size: int,
    bounds: Sequence[float],
    second_moments: Sequence[float],
) -> Float64[np.ndarray, " k1"]:
    """Theorem 5 by steps: e_{k+1} ≤ (1 − 2λγB)e_k + (1+δ_k)Bγ²M_k², with equality where F has curvature λ.

    Args:
        sq_distance: e_0 = ‖w_0 − w*‖².
        strong_convexity: λ.
        step_size: γ, sum-normalised.
        batch_size: B ≤ 1/(2λγ).
        bounds: B_D(w_k) of each step (inf is allowed).
        second_moments: M_k² = (1/n)Σ‖∇f_i(w_k)‖² of each step.

    Returns:
        e_0, e_1, …: bounds on E‖w_k − w*‖², one more than steps.

    Raises:
        ValueError: if a number is out of range, the lengths differ, or B exceeds 1/(2λγ).

    Source: Theorem 5 with measured δ_k, M_k².
    """
    non_negative(sq_distance=sq_distance)
    positive(strong_convexity=strong_convexity)
    noise = _noise(step_size, batch_size, bounds, second_moments)
    _check_cap(strong_convexity=strong_convexity, rate=step_size * batch_size)
    return _contract(sq_distance, 1 - 2 * strong_convexity * step_size * batch_size, noise)


def gap_along(
    *,
    initial_gap: float,
    pl_constant: float,
    smoothness: float,
    step_size: float,
    batch_size: int,
    bounds: Sequence[float],
    second_moments: Sequence[float],
) -> Float64[np.ndarray, " k1"]:
    """Theorem 3 step by step: h_{k+1} ≤ (1 − 2μγB)h_k + (β/2)(1+δ_k)Bγ²M_k² for h = E F − F*.

    Args:
        initial_gap: h_0 = F(w_0) − F*.
        pl_constant: μ.
        smoothness: β.
        step_size: γ, sum-normalised.
        batch_size: B ≤ 1/(2μγ).
        bounds: B_D(w_k) of each step.
        second_moments: M_k² of each step.

    Returns:
        h_0, h_1, …: bounds on E F(w_k) − F*.

    Raises:
        ValueError: if a number is out of range, the lengths differ, or B exceeds 1/(2μγ).

    Source: Theorem 3 with measured δ_k, M_k².
    """
    non_negative(initial_gap=initial_gap)
    positive(pl_constant=pl_constant, smoothness=smoothness)
    noise = smoothness / 2 * _noise(step_size, batch_size, bounds, second_moments)
    _check_cap(pl_constant=pl_constant, rate=step_size * batch_size)
    return _contract(initial_gap, 1 - 2 * pl_constant * step_size * batch_size, noise)


def gradient_along(
    *,
    initial_gap: float,
    smoothness: float,
    step_size: float,
    batch_size: int,
    bounds: Sequence[float],
    second_moments: Sequence[float],
) -> float:
    """Theorem 2 along a run of K steps: mean_k E‖∇F(w_k)‖² ≤ (F₀−F*)/(γBK) + (βγ/2)·mean_k (1+δ_k)M_k².

    Args:
        initial_gap: F(w_0) − F*.
        smoothness: β.
        step_size: γ, sum-normalised.
        batch_size: B.
        bounds: B_D(w_k) of each step.
        second_moments: M_k² of each step.

    Returns:
        The bound on the mean over k, hence on the minimum.

    Raises:
        ValueError: if a number is out of range, or the lengths differ.

    Source: Theorem 2 with measured δ_k, M_k².
    """
    non_negative(initial_gap=initial_gap)
    positive(smoothness=smoothness)
    noise = _noise(step_size, batch_size, bounds, second_moments)
    rate = step_size * batch_size
    return initial_gap / (rate * len(noise)) + smoothness / 2 * float(noise.mean()) / rate


def average_gap_along(
    *,
    sq_distance: float,
    step_size: float,
    batch_size: int,
    bounds: Sequence[float],
    second_moments: Sequence[float],
) -> float:
    """Theorem 4 along a run of K steps: E F(mean iterate) − F* ≤ D₀/(2γBK) + (γ/2)·mean_k (1+δ_k)M_k².

    Args:
        sq_distance: D₀ = ‖w_0 − w*‖².
        step_size: γ, sum-normalised.
        batch_size: B.
        bounds: B_D(w_k) of each step.
        second_moments: M_k² of each step.

    Returns:
        The bound for the average of the iterates.

    Raises:
        ValueError: if a number is out of range, or the lengths differ.

    Source: Theorem 4 with measured δ_k, M_k².
    """
    non_negative(sq_distance=sq_distance)
    noise = _noise(step_size, batch_size, bounds, second_moments)
    rate = step_size * batch_size
    return sq_distance / (2 * rate * len(noise)) + float(noise.mean()) / (2 * rate)


def _noise(
    step_size: float, batch_size: int, bounds: Sequence[float], second_moments: Sequence[float]
) -> Float64[np.ndarray, " k"]:
    """(1+δ_k)·B·γ²·M_k² of every step."""
    positive(step_size=step_size)
    at_least_one(batch_size=batch_size)
    if len(bounds) != len(second_moments) or len(bounds) == 0:
        raise ValueError(
            "bounds and second_moments must hold one number for each step, at least one; "
            f"got {len(bounds)} and {len(second_moments)}."
        )
    for bound, moment in zip(bounds, second_moments, strict=True):
        at_least_one(bounds=bound)
        non_negative(second_moments=moment)
    delta = (batch_size - 1) / np.asarray(bounds, dtype=np.float64)
    return (1 + delta) * (batch_size * step_size**2) * np.asarray(second_moments, dtype=np.float64)


def _check_cap(*, rate: float, **constant: float) -> None:
    ((name, value),) = constant.items()
    if 2 * value * rate > 1 + 1e-12:
        raise ValueError(
            f"step_size·batch_size must be at most 1/(2·{name}) = {1 / (2 * value):.6g}; got {rate:.6g}: "
            "beyond it a bound on one step is not a bound on the next."
        )


def _contract(start: float, factor: float, noise: Float64[np.ndarray, " k"]) -> Float64[np.ndarray, " k1"]:
    bounds = np.empty(len(noise) + 1)
    bounds[0] = start
    for k, added in enumerate(noise):
        bounds[k + 1] = max(factor, 0.0) * bounds[k] + added
    return bounds
