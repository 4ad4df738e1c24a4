"""Theorem 6: beyond the bound a batch really costs accuracy, on a problem written out, with an exact recurrence.

f_i(w) = (β/2)‖w − x_i‖² with the 2d points x_i = ±a·e_j: mean 0 = w*, variance V = a², gradients β(w − x_i). With
u = γβB the expected squared distance e obeys e⁺ = (1−u)²e + γ²β²BV, exactly, and tends to e∞ = γβV/(2−u);
B_D(w) = 1 + V/‖w‖² and M²(w) = β²(V + ‖w‖²). Each f_i has curvature β = κλ, so F is λ-strongly convex.

The stationary error is e∞ = (1+δ)γM²/(2β) at δ = (B−1)/(1 + V/e∞): the penalty (1+δ) of the theorem, with its constant
λ/(2β) = 1/(2κ). The theorem's cap B ≤ 1/(2λγ) means u ≤ κ/2, so δ < κ/(4−κ): with κ = 1 no δ above 1/3 is reached; κ =
4 reaches every δ. The penalty belongs to a fixed γ: with γ/(1+δ) the error is back, at (1+δ) times the gradients.

Batches may vary, B_k, as in the paper: the recurrence holds step by step, and e ↦ (1−u)²e + γ²β²BV keeps e above the
least of the limits e∞(B_k) once it is there. The theorem then holds with the least of the δ_k.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from variegrad.shapes import Float64
from variegrad.theory.arguments import non_negative, positive, whole_number


@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """One run of Theorem 6's construction, in expectation and exactly.

    Attributes:
        delta: δ = (B−1)/(1 + V/e∞), the batch in units of the ratio M²/‖∇F‖² of expectations at stationarity.
        batch_size: B; the least of them if they vary, of which `delta` and `stationary_error` then are.
        batch_sizes: B_k of each iteration.
        step_size: γ, sum-normalised.
        smoothness: β.
        strong_convexity: λ = β/κ.
        variance: V = a².
        radius: R of the ball W; R² = 4e∞, which the iterates practically never reach for d ≥ 5.
        dimension: d; there are n = 2d points.
        errors: E‖w_k − w*‖² for k = 0, 1, …
        stationary_error: e∞.
        second_moment: M² = β²(V + R²), the supremum over W.
        penalty: e_T/((1+δ)γM²/λ), the theorem's constant c′ as it is realised.
        within_cap: whether B ≤ 1/(2λγ).
        stable: whether γB < 2/β; otherwise the errors grow until the projection.
    """

    delta: float
    batch_size: int
    batch_sizes: tuple[int, ...]
    step_size: float
    smoothness: float
    strong_convexity: float
    variance: float
    radius: float
    dimension: int
    errors: Float64[np.ndarray, " k"]
    stationary_error: float
    second_moment: float
    penalty: float
    within_cap: bool
    stable: bool

    @property
    def points(self) -> Float64[np.ndarray, "n d"]:
        """The 2d data points ±a·e_j, one per row."""
        eye = math.sqrt(self.variance) * np.eye(self.dimension)
        return np.concatenate([eye, -eye])

    def __str__(self) -> str:
        return (
            f"Theorem 6: B {'=' if len({*self.batch_sizes}) == 1 else '≥'} {self.batch_size:,} (δ = {self.delta:.4g}), "
            f"γ = {self.step_size:.3g}: after {len(self.errors) - 1:,} iterations E‖w − w*‖² = {self.errors[-1]:.6g}, "
            f"limit {self.stationary_error:.6g}, = {self.penalty:.4g}·(1+δ)γM²/λ; cap B ≤ 1/(2λγ) "
            f"{'holds' if self.within_cap else 'is violated'}"
        )


def largest_delta(curvature_ratio: float) -> float:
    """The δ that the construction stays below under B ≤ 1/(2λγ), for small γ: κ/(4−κ), infinite from κ = 4 on.

    Args:
        curvature_ratio: κ = β/λ ≥ 1.

    Returns:
        The supremum of δ.

    Raises:
        ValueError: if κ is below 1.

    Source: Theorem 6, its hypotheses worked out.
    """
    if not curvature_ratio >= 1:
        raise ValueError(f"curvature_ratio must be at least 1, as β ≥ λ; got {curvature_ratio}.")
    return curvature_ratio / (4 - curvature_ratio) if curvature_ratio < 4 else math.inf


def worst_case(
    *,
    step_size: float,
    delta: float | None = None,
    batch_size: int | Sequence[int] | None = None,
    strong_convexity: float = 1.0,
    curvature_ratio: float = 4.0,
    variance: float = 1.0,
    dimension: int = 64,
    iterations: int | None = None,
    initial_error: float | None = None,
) -> WorstCase:
    """Theorem 6's problem, run for its expected error: E‖w_T − w*‖² ≥ c′(1+δ)γM²/λ.

    For a given δ the batch is B = 1 + 2δ/(γβ(1+δ)), the solution of B = 1 + δ(1 + V/e∞), rounded.

    Args:
        step_size: γ, sum-normalised.
        delta: δ, how far beyond the bound; or
        batch_size: B itself, or B_k of each iteration.
        strong_convexity: λ.
        curvature_ratio: κ = β/λ.
        variance: V = a² of the data.
        dimension: d.
        iterations: how many steps; by default 1/(λγB) of them and at least 50, or as many as batch sizes.
        initial_error: ‖w_0‖²; by default e∞, from where the error never falls below e∞.

    Returns:
        The exact run.

    Raises:
        TypeError: if a batch size is no whole number.
        ValueError: if a number is out of range, not exactly one of δ and B is given, there are not as many batch sizes
            as iterations, or γB ≥ 2/β, for which there is no stationary error.

    Example:
        >>> case = worst_case(step_size=5e-4, delta=8.5)
        >>> case.penalty > 0.1 and case.within_cap
        True

    Source: Theorem 6, by the construction above.
    """
    largest_delta(curvature_ratio)
    positive(step_size=step_size, strong_convexity=strong_convexity, variance=variance, dimension=dimension)
    beta = curvature_ratio * strong_convexity
    rate = step_size * beta
    if (delta is None) == (batch_size is None):
        raise ValueError(f"give exactly one of delta and batch_size; got delta={delta}, batch_size={batch_size}.")
    if delta is not None:
        non_negative(delta=delta)
        batch_size = max(1, round(1 + 2 * delta / (rate * (1 + delta))))
    sizes = _sizes(batch_size, iterations, strong_convexity * step_size)
    least, most = min(sizes), max(sizes)
    if rate * most >= 2:
        raise ValueError(
            f"γB = {step_size * most:.4g} reaches 2/β = {2 / beta:.4g}: the errors grow without bound. "
            "Use a smaller step size, or a smaller batch."
        )
    limit = rate * variance / (2 - rate * least)
    start = limit if initial_error is None else initial_error
    non_negative(initial_error=start)
    if least == most:  # the solution of the recurrence, which does not add up rounding
        errors = limit + (1 - rate * least) ** (2 * np.arange(len(sizes) + 1)) * (start - limit)
    else:
        errors = np.array([start, *_recurrence(start, rate * np.array(sizes), rate * variance)])
    reached = (least - 1) / (1 + variance / limit)
    sq_radius = 4 * float(errors.max(initial=limit))
    second_moment = beta**2 * (variance + sq_radius)
    return WorstCase(
        delta=reached,
        batch_size=least,
        batch_sizes=sizes,
        step_size=step_size,
        smoothness=beta,
        strong_convexity=strong_convexity,
        variance=variance,
        radius=math.sqrt(sq_radius),
        dimension=dimension,
        errors=errors,
        stationary_error=limit,
        second_moment=second_moment,
        penalty=float(errors[-1]) / ((1 + reached) * step_size * second_moment / strong_convexity),
        within_cap=most <= (1 + 1e-12) / (2 * strong_convexity * step_size),
        stable=True,
    )


def _sizes(batch_size: int | Sequence[int] | None, iterations: int | None, rate: float) -> tuple[int, ...]:
    """B_k of each iteration; λγ decides how many there are, if nothing else does."""
    if isinstance(batch_size, Sequence):
        if iterations not in (None, len(batch_size)) or not len(batch_size):
            raise ValueError(
                "batch_size must hold one number for each iteration, at least one; got "
                f"{len(batch_size)} for {iterations} iterations."
            )
        sizes = tuple(batch_size)
    else:
        assert batch_size is not None
        whole_number(batch_size=batch_size)
        sizes = (batch_size,) * (max(50, math.ceil(1 / (rate * batch_size))) if iterations is None else iterations)
    if not sizes:
        raise ValueError(f"iterations must be at least 1; got {iterations}.")
    for size in sizes:
        whole_number(batch_size=size)
    return sizes


def _recurrence(error: float, steps: Float64[np.ndarray, " k"], noise: float) -> Iterator[float]:
    """e⁺ = (1−u)²e + u·γβV, u = γβB of each step."""
    for u in steps.tolist():
        error = (1 - u) ** 2 * error + u * noise
        yield error


def simulate(case: WorstCase, *, runs: int, seed: int) -> tuple[Float64[np.ndarray, " runs"], int]:
    """Projected mini-batch SGD on the construction, from a start of the case's initial error.

    The sum of B draws of ±a·e_j needs only how often each point was drawn, so B costs nothing.

    Args:
        case: from `worst_case`.
        runs: independent repetitions.
        seed: of all draws.

    Returns:
        ‖w_T − w*‖² of every run, and how many steps left the ball and were projected.

    Source: equation (2) with projection, Theorem 6.
    """
    generator = np.random.default_rng(seed)
    d, gamma, beta = case.dimension, case.step_size, case.smoothness
    direction = generator.standard_normal((runs, d))
    weights = direction / np.linalg.norm(direction, axis=1, keepdims=True) * math.sqrt(float(case.errors[0]))
    projected = 0
    for batch_size in case.batch_sizes:
        counts = generator.multinomial(batch_size, np.full(2 * d, 1 / (2 * d)), size=runs)
        drawn = math.sqrt(case.variance) * (counts[:, :d] - counts[:, d:])
        weights = weights - gamma * beta * (batch_size * weights - drawn)
        norms = np.linalg.norm(weights, axis=1, keepdims=True)
        projected += int((norms > case.radius).sum())
        weights = weights * np.minimum(1.0, case.radius / np.maximum(norms, 1e-300))
    return np.square(weights).sum(axis=1), projected
