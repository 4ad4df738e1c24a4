"""Theorems 2-5 as calculators: step size, updates, iterations, largest batch and error, by two laws.

Sum-normalised steps w − γ·Σ∇f_i over a batch of B ≤ 1 + δ·inf B_D. Two laws, both proved by the same inequality:

- the paper's: γ as for serial SGD, T updates, error (1 + δ/2)ε;
- retuned (sharper, the one to use): γ/(1+δ), (1+δ)·T updates, error exactly ε, which makes the price of a batch
visible:
  efficiency 1/(1+δ), speed-up B/(1+δ).

T counts gradient computations; an iteration makes B of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from variegrad.theory.arguments import at_least_one, non_negative, positive


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A constant step size and batch, and what they guarantee.

    Attributes:
        step_size: γ, sum-normalised; γB is the learning rate for averaged gradients.
        updates: T, the gradients to compute (a real number: the bound itself).
        batch_size: B = ⌊min(1 + δ·inf B_D, the theorem's cap at this γ)⌋, the largest allowed, in examples.
        iterations: ⌈T/B⌉.
        error: the guaranteed accuracy, in the units of the theorem's criterion.
        warning: in words, or nothing.
    """

    step_size: float
    updates: float
    batch_size: int
    iterations: int
    error: float
    warning: str = ""

    def __str__(self) -> str:
        line = (
            f"γ = {self.step_size:.4g} (γB = {self.step_size * self.batch_size:.4g}), B = {self.batch_size:,}, "
            f"T = {self.updates:,.6g} updates = {self.iterations:,} iterations, "
            f"error ≤ {self.error:.4g}"
        )
        return f"{line}\n    warning: {self.warning}" if self.warning else line


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What one of Theorems 2-5 promises, by both laws.

    Attributes:
        theorem: which.
        criterion: what the error measures.
        delta: δ, the batch in units of the bound, as it was asked for.
        retuned: γ/(1+δ), (1+δ)T, error ε: the law to use.
        paper: γ, T, error (1+δ/2)ε, as printed.
        speed_up: B/(1+δ) serial steps for one step of B, at equal accuracy (retuned).
        efficiency: 1/(1+δ), the share of gradients that is not wasted.
    """

    theorem: str
    criterion: str
    delta: float
    retuned: Schedule
    paper: Schedule
    speed_up: float
    efficiency: float

    def __str__(self) -> str:
        return (
            f"{self.theorem}: {self.criterion}, δ = {self.delta:.4g}, speed-up {self.speed_up:.4g}, "
            f"efficiency {self.efficiency:.3g}\n  retuned: {self.retuned}\n  paper:   {self.paper}"
        )


def rates_smooth(
    *,
    error: float,
    smoothness: float,
    second_moment: float,
    initial_gap: float,
    bound: float,
    delta: float | None = None,
    batch_size: int | None = None,
) -> Rates:
    """Theorem 2, F β-smooth: γ = ε/(βM²), T = 2M²β(F₀−F*)/ε²; min_k E‖∇F(w_k)‖² ≤ (1+δ/2)ε.

    The minimum over k is not observable; an iterate drawn at random has it in expectation.

    Args:
        error: ε, for ‖∇F‖².
        smoothness: β.
        second_moment: M² ≥ (1/n)Σ‖∇f_i(w)‖² along the run.
        initial_gap: F(w₀) − F*.
        bound: inf B_D(w) along the run, in examples.
        delta: δ ≥ 0, how far to go; the batch is then the largest allowed. Default 1.
        batch_size: B instead of δ, which is then (B−1)/inf B_D.

    Returns:
        Both laws.

    Raises:
        ValueError: if a number is out of range, or both delta and batch_size are given.

    Example:
        >>> rates_smooth(error=0.1, smoothness=2, second_moment=5, initial_gap=1, bound=64).paper.step_size
        0.01

    Source: Theorem 2; `retuned` is Theorem 2 with γ/(1+δ).
    """
    positive(error=error, smoothness=smoothness, second_moment=second_moment)
    non_negative(initial_gap=initial_gap)
    return _rates(
        theorem="Theorem 2 (smooth)",
        criterion="min_k E‖∇F(w_k)‖²",
        error=error,
        step_size=error / (smoothness * second_moment),
        updates=2 * second_moment * smoothness * initial_gap / error**2,
        bound=bound,
        delta=delta,
        batch_size=batch_size,
        smoothness=smoothness,
    )


def rates_polyak_lojasiewicz(
    *,
    error: float,
    smoothness: float,
    pl_constant: float,
    second_moment: float,
    initial_gap: float,
    bound: float,
    delta: float | None = None,
    batch_size: int | None = None,
) -> Rates:
    """Theorem 3, F β-smooth, μ-PL: γ = 2εμ/(M²β), T = M²β/(4μ²ε)·ln(2(F₀−F*)/ε); E F(w_T)−F* ≤ (1+δ/2)ε.

    It requires B ≤ 1/(2γμ).

    Args:
        error: ε, for F − F*.
        smoothness: β.
        pl_constant: μ with ½‖∇F‖² ≥ μ(F − F*).
        second_moment: M² ≥ (1/n)Σ‖∇f_i(w)‖² along the run.
        initial_gap: F(w₀) − F*.
        bound: inf B_D(w) along the run, in examples.
        delta: δ ≥ 0, how far to go; the batch is then the largest allowed. Default 1.
        batch_size: B instead of δ.

    Returns:
        Both laws; if F₀ − F* ≤ ε/2, no update is needed.

    Raises:
        ValueError: if a number is out of range, or the batch exceeds the theorem's cap.

    Source: Theorem 3; `retuned` is Theorem 3 with γ/(1+δ).
    """
    positive(error=error, smoothness=smoothness, pl_constant=pl_constant, second_moment=second_moment)
    non_negative(initial_gap=initial_gap)
    return _rates(
        theorem="Theorem 3 (Polyak-Łojasiewicz)",
        criterion="E F(w_T) − F*",
        error=error,
        step_size=2 * error * pl_constant / (second_moment * smoothness),
        updates=second_moment * smoothness / (4 * pl_constant**2 * error) * _log(2 * initial_gap / error),
        bound=bound,
        delta=delta,
        batch_size=batch_size,
        smoothness=smoothness,
        contraction=pl_constant,
    )


def rates_convex(
    *,
    error: float,
    second_moment: float,
    sq_distance: float,
    bound: float,
    delta: float | None = None,
    batch_size: int | None = None,
    smoothness: float | None = None,
) -> Rates:
    """Theorem 4, F convex: γ = ε/M², T = M²D₀/ε²; the averaged iterate has E F − F* ≤ (1+δ/2)ε.

    Args:
        error: ε, for F − F*.
        second_moment: M² ≥ (1/n)Σ‖∇f_i(w)‖² along the run.
        sq_distance: D₀ = ‖w₀ − w*‖².
        bound: inf B_D(w) along the run, in examples.
        delta: δ ≥ 0, how far to go; the batch is then the largest allowed. Default 1.
        batch_size: B instead of δ.
        smoothness: β, only to warn if γB ≥ 2/β.

    Returns:
        Both laws.

    Raises:
        ValueError: if a number is out of range.

    Source: Theorem 4; `retuned` is Theorem 4 with γ/(1+δ).
    """
    positive(error=error, second_moment=second_moment)
    non_negative(sq_distance=sq_distance)
    return _rates(
        theorem="Theorem 4 (convex)",
        criterion="E F(averaged iterate) − F*",
        error=error,
        step_size=error / second_moment,
        updates=second_moment * sq_distance / error**2,
        bound=bound,
        delta=delta,
        batch_size=batch_size,
        smoothness=smoothness,
    )


def rates_strongly_convex(
    *,
    error: float,
    strong_convexity: float,
    second_moment: float,
    sq_distance: float,
    bound: float,
    delta: float | None = None,
    batch_size: int | None = None,
    smoothness: float | None = None,
) -> Rates:
    """Theorem 5, F λ-strongly convex: γ = ελ/M², T = M²/(2λ²ε)·ln(2D₀/ε), B ≤ 1/(2λγ); E‖w_T−w*‖² ≤ (1+δ/2)ε.

    Args:
        error: ε, for ‖w − w*‖².
        strong_convexity: λ.
        second_moment: M² ≥ (1/n)Σ‖∇f_i(w)‖² along the run.
        sq_distance: D₀ = ‖w₀ − w*‖².
        bound: inf B_D(w) along the run, in examples.
        delta: δ ≥ 0, how far to go; the batch is then the largest allowed. Default 1.
        batch_size: B instead of δ.
        smoothness: β, only to warn if γB ≥ 2/β: the theorem's cap does not exclude that.

    Returns:
        Both laws; if D₀ ≤ ε/2, no update is needed.

    Raises:
        ValueError: if a number is out of range, or the batch exceeds the theorem's cap.

    Source: Theorem 5; `retuned` is Theorem 5 with γ/(1+δ).
    """
    positive(error=error, strong_convexity=strong_convexity, second_moment=second_moment)
    non_negative(sq_distance=sq_distance)
    return _rates(
        theorem="Theorem 5 (strongly convex)",
        criterion="E‖w_T − w*‖²",
        error=error,
        step_size=error * strong_convexity / second_moment,
        updates=second_moment / (2 * strong_convexity**2 * error) * _log(2 * sq_distance / error),
        bound=bound,
        delta=delta,
        batch_size=batch_size,
        smoothness=smoothness,
        contraction=strong_convexity,
    )


def _log(ratio: float) -> float:
    return math.log(ratio) if ratio > 1 else 0.0


def _stability_warning(learning_rate: float, smoothness: float | None) -> str:
    if smoothness is None or learning_rate < 2 / smoothness:
        return ""
    return (
        f"γB = {learning_rate:.4g} reaches 2/β = {2 / smoothness:.4g}: the mean dynamics diverge on a quadratic "
        "unless the weights are kept bounded"
    )


def _rates(
    *,
    theorem: str,
    criterion: str,
    error: float,
    step_size: float,
    updates: float,
    bound: float,
    delta: float | None,
    batch_size: int | None,
    smoothness: float | None,
    contraction: float | None = None,
) -> Rates:
    at_least_one(bound=bound)
    if smoothness is not None:
        positive(smoothness=smoothness)
    if delta is not None and batch_size is not None:
        raise ValueError(f"give delta or batch_size, not both; got delta={delta}, batch_size={batch_size}.")
    if batch_size is not None:
        at_least_one(batch_size=batch_size)
        delta = (batch_size - 1) / bound
    delta = 1.0 if delta is None else delta
    non_negative(delta=delta)

    allowed = batch_size if batch_size is not None else 1 + delta * bound if delta > 0 else 1

    def schedule(gamma: float, total: float, reached: float) -> Schedule:
        cap = 1 / (2 * gamma * contraction) if contraction is not None else math.inf
        limit = min(allowed, cap)
        # A whole number that rounding put a hair below itself is still that number; without any limit T examples do.
        largest = math.floor(limit * (1 + 1e-12)) if math.isfinite(limit) else max(1, math.ceil(total))
        if largest < 1:
            raise ValueError(
                f"{theorem} requires a batch of at most 1/(2γ·{contraction:g}) = {cap:.6g} examples at γ = "
                f"{gamma:.6g}, less than one; ask for a smaller error."
            )
        return Schedule(
            step_size=gamma,
            updates=total,
            batch_size=largest,
            iterations=math.ceil(total / largest * (1 - 1e-12)),
            error=reached,
            warning=_stability_warning(gamma * largest, smoothness),
        )

    retuned = schedule(step_size / (1 + delta), (1 + delta) * updates, error)
    # At the paper's larger step its cap is tighter: its schedule may hold fewer examples than the retuned one.
    paper = schedule(step_size, updates, (1 + delta / 2) * error)
    if batch_size is not None and retuned.batch_size < batch_size:
        raise ValueError(
            f"{theorem} allows a batch of at most {retuned.batch_size} examples here (its cap at γ = "
            f"{retuned.step_size:.6g}); got batch_size={batch_size}. A smaller error gives a smaller step and a larger "
            "cap."
        )
    used = (retuned.batch_size - 1) / bound
    return Rates(
        theorem=theorem,
        criterion=criterion,
        delta=delta,
        retuned=retuned,
        paper=paper,
        speed_up=retuned.batch_size / (1 + used),
        efficiency=1 / (1 + used),
    )
