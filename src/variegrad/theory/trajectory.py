"""Trajectory certificates: Theorems 2-5 with the δ_k and M_k² that a run actually met, in place of their worst values.

Every step obeys the inequality behind its theorem with its own noise (1+δ_k)·B·γ²·M_k², δ_k = (B−1)/B_D(w_k). Far from
an optimum δ is large and M² matters little; near it B_D grows without bound, so the worst case over a run says far too
much. The inequalities hold in expectation: feed in averages over repeated runs, or read the result as describing one
run. Step sizes γ_k and batch sizes B_k may change along the run: give one number, or one for each step.
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
    step_size: float | Sequence[float],
    batch_size: int | Sequence[int],
    bounds: Sequence[float],
    second_moments: Sequence[float],
) -> Float64[np.ndarray, " k1"]:
    """Theorem 5 by steps: e_{k+1} ≤ (1 − 2λγ_kB_k)e_k + (1+δ_k)B_kγ_k²M_k², with equality if F has curvature λ.

    Args:
        sq_distance: e_0 = ‖w_0 − w*‖².
        strong_convexity: λ.
        step_size: γ, sum-normalised; or γ_k of each step.
        batch_size: B ≤ 1/(2λγ); or B_k of each step.
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
    rate, noise = _rate_and_noise(step_size, batch_size, bounds, second_moments)
    _check_cap(strong_convexity=strong_convexity, rate=rate)
    return _contract(sq_distance, 1 - 2 * strong_convexity * rate, noise)


def gap_along(
    *,
    initial_gap: float,
    pl_constant: float,
    smoothness: float,
    step_size: float | Sequence[float],
    batch_size: int | Sequence[int],
    bounds: Sequence[float],
    second_moments: Sequence[float],
) -> Float64[np.ndarray, " k1"]:
    """Theorem 3 step by step: h_{k+1} ≤ (1 − 2μγ_kB_k)h_k + (β/2)(1+δ_k)B_kγ_k²M_k², h = E F − F*.

    Args:
        initial_gap: h_0 = F(w_0) − F*.
        pl_constant: μ.
        smoothness: β.
        step_size: γ, sum-normalised; or γ_k of each step.
        batch_size: B ≤ 1/(2μγ); or B_k of each step.
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
    rate, noise = _rate_and_noise(step_size, batch_size, bounds, second_moments)
    _check_cap(pl_constant=pl_constant, rate=rate)
    return _contract(initial_gap, 1 - 2 * pl_constant * rate, smoothness / 2 * noise)


def gradient_along(
    *,
    initial_gap: float,
    smoothness: float,
    step_size: float | Sequence[float],
    batch_size: int | Sequence[int],
    bounds: Sequence[float],
    second_moments: Sequence[float],
) -> float:
    """Theorem 2 along a run of K steps: mean_k E‖∇F(w_k)‖² ≤ (F₀−F*)/(γBK) + (βγ/2)·mean_k (1+δ_k)M_k².

    If γ_k or B_k varies, the mean has weights γ_kB_k: at most (F₀−F* + (β/2)·Σ(1+δ_k)B_kγ_k²M_k²)/Σγ_kB_k.

    Args:
        initial_gap: F(w_0) − F*.
        smoothness: β.
        step_size: γ, sum-normalised; or γ_k of each step.
        batch_size: B; or B_k of each step.
        bounds: B_D(w_k) of each step.
        second_moments: M_k² of each step.

    Returns:
        The bound on the (weighted) mean over k, hence on the minimum.

    Raises:
        ValueError: if a number is out of range, or the lengths differ.

    Source: Theorem 2 with measured δ_k, M_k².
    """
    non_negative(initial_gap=initial_gap)
    positive(smoothness=smoothness)
    rate, noise = _rate_and_noise(step_size, batch_size, bounds, second_moments)
    return (initial_gap + smoothness / 2 * float(noise.sum())) / float(rate.sum())


def average_gap_along(
    *,
    sq_distance: float,
    step_size: float | Sequence[float],
    batch_size: int | Sequence[int],
    bounds: Sequence[float],
    second_moments: Sequence[float],
) -> float:
    """Theorem 4 along a run of K steps: E F(mean iterate) − F* ≤ D₀/(2γBK) + (γ/2)·mean_k (1+δ_k)M_k².

    If γ_k or B_k varies, iterates have weights γ_kB_k, and the gap is at most (D₀ + Σ(1+δ_k)B_kγ_k²M_k²)/(2Σγ_kB_k).

    Args:
        sq_distance: D₀ = ‖w_0 − w*‖².
        step_size: γ, sum-normalised; or γ_k of each step.
        batch_size: B; or B_k of each step.
        bounds: B_D(w_k) of each step.
        second_moments: M_k² of each step.

    Returns:
        The bound for the (weighted) average of the iterates.

    Raises:
        ValueError: if a number is out of range, or the lengths differ.

    Source: Theorem 4 with measured δ_k, M_k².
    """
    non_negative(sq_distance=sq_distance)
    rate, noise = _rate_and_noise(step_size, batch_size, bounds, second_moments)
    return (sq_distance + float(noise.sum())) / (2 * float(rate.sum()))


def _rate_and_noise(
    step_size: float | Sequence[float],
    batch_size: int | Sequence[int],
    bounds: Sequence[float],
    second_moments: Sequence[float],
) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, " k"]]:
    """γ_k·B_k and (1+δ_k)·B_k·γ_k²·M_k² of every step."""
    if len(bounds) != len(second_moments) or len(bounds) == 0:
        raise ValueError(
            "bounds and second_moments must hold one number for each step, at least one; "
            f"got {len(bounds)} and {len(second_moments)}."
        )
    steps = _each(len(bounds), step_size=step_size)
    sizes = _each(len(bounds), batch_size=batch_size)
    for step, size, bound, moment in zip(steps, sizes, bounds, second_moments, strict=True):
        positive(step_size=step)
        at_least_one(batch_size=size, bounds=bound)
        non_negative(second_moments=moment)
    delta = (sizes - 1) / np.asarray(bounds, dtype=np.float64)
    return steps * sizes, (1 + delta) * sizes * steps**2 * np.asarray(second_moments, dtype=np.float64)


def _each(count: int, **numbers: float | Sequence[float]) -> Float64[np.ndarray, " k"]:
    """One number for each step."""
    ((name, given),) = numbers.items()
    found = np.asarray(given, dtype=np.float64)
    if found.shape not in ((), (count,)):
        raise ValueError(f"{name} must be one number, or one for each of {count} steps; got the shape {found.shape}.")
    return np.array(np.broadcast_to(found, (count,)))


def _check_cap(*, rate: Float64[np.ndarray, " k"], **constant: float) -> None:
    ((name, value),) = constant.items()
    largest = float(rate.max())
    if 2 * value * largest > 1 + 1e-12:
        raise ValueError(
            f"step_size·batch_size must be at most 1/(2·{name}) = {1 / (2 * value):.6g}; got {largest:.6g}: "
            "beyond it a bound on one step is not a bound on the next."
        )


def _contract(
    start: float, factors: Float64[np.ndarray, " k"], noise: Float64[np.ndarray, " k"]
) -> Float64[np.ndarray, " k1"]:
    bounds = np.empty(len(noise) + 1)
    bounds[0] = start
    for k, (factor, added) in enumerate(zip(factors, noise, strict=True)):
        bounds[k + 1] = max(factor, 0.0) * bounds[k] + added
    return bounds
