"""Theorems 9 and 10: up to which batch mini-batch SGD generalises as serial SGD does, by algorithmic stability.

Threshold: τ(B) = (B−1)/(2/(γβ) − 1 − 1/(n−1)), 0 for B = 1; with β+λ in place of β if F is λ-strongly convex.
η is the probability, over data sets, that inf B_D(w, w′) < τ(B).

An honest note on 1/(n−1). Conditioned on not drawing the example in which two data sets differ, a batch is drawn from
the n−1 others, and the step that replaces their diversity by B_D(w, w′) and adds 1/(n−1) holds on average over the
changed example and for B ≤ n, but fails for single examples. A certificate that holds for the data without any one
example, B_D ≥ (n−1)/σ²_max (`GLMBound.leave_one_out`), needs no such term: τ₁(B) = (B−1)/(2/(γβ) − 1). That route is
`leave_one_out`.

And on η: a certificate for the given data makes η 0 or 1 *given these data*; R resampled data sets without a failure
only show η ≤ 1 − α^{1/R} (about 3/R at α = 0.05); for Gaussian features η has a formula
(`gaussian_failure_probability`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from variegrad.theory.arguments import at_least_one, non_negative, positive, whole_number


@dataclass(frozen=True, kw_only=True)
class Stability:
    """What Theorem 9 or 10 says about one batch size.

    Attributes:
        theorem: which.
        threshold: τ(B) as printed: inf B_D(w, w′) must reach it; inf if no diversity suffices.
        leave_one_out_threshold: τ₁(B), to be reached by a bound that holds without any one example.
        failure_probability: η that went into `error`; 0 or 1 given these data, or as it was passed.
        error: the bound on the expected generalisation error.
        serial_error: the same for serial SGD (B = 1).
        largest_batch_size: the largest B whose threshold the bound reaches; None if there is no bound to compare.
        largest_step_size: the largest γ at which the bound reaches the threshold of this B; None likewise.
        basis: what η is based on, in words.
        warnings: in words.
    """

    theorem: str
    threshold: float
    leave_one_out_threshold: float
    failure_probability: float
    error: float
    serial_error: float
    largest_batch_size: int | None
    largest_step_size: float | None
    basis: str
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{self.theorem}: inf B_D(w, w′) must reach {self.threshold:.6g} examples "
            f"({self.leave_one_out_threshold:.6g} without any one example)",
            f"  generalisation error ≤ {self.error:.6g} at η = {self.failure_probability:.3g} ({self.basis}); "
            f"serial SGD ≤ {self.serial_error:.6g}",
        ]
        if self.largest_batch_size is not None:
            lines.append(f"  largest stable batch at this γ: {self.largest_batch_size:,} examples")
        if self.largest_step_size is not None:
            lines.append(f"  largest stable γ at this batch: {self.largest_step_size:.6g}")
        return "\n".join(lines + [f"  warning: {warning}" for warning in self.warnings])


def threshold(*, batch_size: int, step_size: float, smoothness: float, examples: int) -> float:
    """τ(B) = (B−1)/(2/(γβ) − 1 − 1/(n−1)) for B > 1, and 0 for B = 1.

    At B = 1 and γ > 2/β it is inf: serial SGD's own guarantee does not hold there, although the formula gives 0.

    Args:
        batch_size: B.
        step_size: γ, sum-normalised.
        smoothness: β, or β+λ for Theorem 10.
        examples: n ≥ 2.

    Returns:
        What inf B_D(w, w′) must reach, in examples; inf if the denominator is not positive.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> round(threshold(batch_size=51, step_size=2 / 1.51, smoothness=1.0, examples=101), 6)
        100.0

    Source: Theorems 9 and 10, whose fraction is (B−1) over (2/(γβ) − 1 − 1_{B>1}/(n−1)).
    """
    positive(step_size=step_size, smoothness=smoothness)
    at_least_one(batch_size=batch_size)
    _check_examples(examples)
    return _threshold(batch_size, 2 / (step_size * smoothness) - 1, 1 / (examples - 1))


def largest_step_size(
    *,
    batch_size: int,
    smoothness: float,
    examples: int,
    bound: float | None = None,
    leave_one_out: float | None = None,
    strong_convexity: float = 0.0,
) -> float:
    """The largest γ at which a batch of B is as stable as serial SGD: 2/(β(1 + (B−1)/B̄ + 1/(n−1))), and 2/β for B = 1.

    With `strong_convexity` it is Theorem 10's: β+λ in place of β, and at most 1/(2λB).

    Args:
        batch_size: B.
        smoothness: β of every f_i.
        examples: n ≥ 2.
        bound: B̄, a bound on B_D(w, w′) over all pairs, for these data; or
        leave_one_out: one that holds without any one example: the term 1/(n−1) is then not needed.
        strong_convexity: λ of every f_i; 0 for Theorem 9.

    Returns:
        γ, sum-normalised; γB is the learning rate of the mean gradient.

    Raises:
        TypeError: if B is no whole number.
        ValueError: if a number is out of range, or not exactly one of the two bounds is given.

    Example:
        >>> round(largest_step_size(batch_size=51, bound=100, smoothness=1.0, examples=101), 6)
        1.324503

    Source: after Theorem 9, γ ≤ 2/(β(1+δ+1/(n−1))) at B = 1 + δB̄; Theorem 10.
    """
    whole_number(batch_size=batch_size)
    positive(smoothness=smoothness)
    non_negative(strong_convexity=strong_convexity)
    _check_examples(examples)
    floor = bound if leave_one_out is None else leave_one_out
    if floor is None or None not in (bound, leave_one_out):
        raise ValueError(f"give exactly one of bound and leave_one_out; got {bound} and {leave_one_out}.")
    at_least_one(**{"bound" if leave_one_out is None else "leave_one_out": floor})
    correction = 1 / (examples - 1) if leave_one_out is None else 0.0
    return _largest_step(batch_size, floor, correction, smoothness + strong_convexity, strong_convexity)


def _largest_step(batch_size: int, bound: float, correction: float, curvature: float, strong_convexity: float) -> float:
    needed = 1.0 if batch_size == 1 else 1 + (batch_size - 1) / bound + correction
    cap = 1 / (2 * strong_convexity * batch_size) if strong_convexity else math.inf
    return min(2 / (curvature * needed), cap)


def _check_examples(examples: int) -> None:
    if not examples >= 2:
        raise ValueError(f"examples must be at least 2, as two data sets differ in one of n; got {examples}.")


def _threshold(batch_size: int, slack: float, correction: float) -> float:
    if batch_size == 1:
        # One example per step needs no diversity, but co-coercivity still asks for γ ≤ 2/β.
        return 0.0 if slack >= 0 else math.inf
    room = slack - correction
    return (batch_size - 1) / room if room > 0 else math.inf


def stability_convex(
    *,
    batch_size: int,
    step_size: float,
    smoothness: float,
    lipschitz: float,
    updates: float,
    examples: int,
    bound: float | None = None,
    leave_one_out: float | None = None,
    failure_probability: float | None = None,
) -> Stability:
    """Theorem 9, f convex, L-Lipschitz, β-smooth: ε_gen ≤ 2γL²(T/n)(1−η) + 2γL²Tη.

    Args:
        batch_size: B.
        step_size: γ, sum-normalised.
        smoothness: β of every f_i.
        lipschitz: L of every f_i.
        updates: T, gradients computed.
        examples: n.
        bound: a bound on B_D(w, w′) over all pairs, for these data; or
        leave_one_out: one that holds without any one example (rigorous, preferred); or
        failure_probability: η itself. With none of the three η is 1.

    Returns:
        Threshold, η and the bound.

    Raises:
        ValueError: if a number is out of range, or more than one of the three is given.

    Source: Theorem 9.
    """
    positive(lipschitz=lipschitz)
    non_negative(updates=updates)
    return _stability(
        theorem="Theorem 9 (convex)",
        batch_size=batch_size,
        step_size=step_size,
        curvature=smoothness,
        curvature_name="β",
        examples=examples,
        serial=2 * step_size * lipschitz**2 * updates / examples,
        failed=2 * step_size * lipschitz**2 * updates,
        bound=bound,
        leave_one_out=leave_one_out,
        failure_probability=failure_probability,
        strong_convexity=0.0,
    )


def stability_strongly_convex(
    *,
    batch_size: int,
    step_size: float,
    smoothness: float,
    strong_convexity: float,
    lipschitz: float,
    updates: float,
    examples: int,
    bound: float | None = None,
    leave_one_out: float | None = None,
    failure_probability: float | None = None,
) -> Stability:
    """Theorem 10, f λ-strongly convex too, B ≤ 1/(2γλ): ε_gen ≤ (4L²/(λn))(1−η) + 2γL²Tη.

    Args:
        batch_size: B.
        step_size: γ, sum-normalised.
        smoothness: β of every f_i.
        strong_convexity: λ of every f_i.
        lipschitz: L of every f_i.
        updates: T, gradients computed.
        examples: n.
        bound: a bound on B_D(w, w′) over all pairs, for these data; or
        leave_one_out: one that holds without any one example (rigorous, preferred); or
        failure_probability: η itself. With none of the three η is 1.

    Returns:
        Threshold, η and the bound.

    Raises:
        ValueError: if a number is out of range, B exceeds 1/(2γλ), or more than one of the three is given.

    Source: Theorem 10.
    """
    positive(strong_convexity=strong_convexity, lipschitz=lipschitz, step_size=step_size)
    non_negative(updates=updates)
    cap = 1 / (2 * step_size * strong_convexity)
    if batch_size > cap * (1 + 1e-12):
        raise ValueError(f"Theorem 10 requires batch_size ≤ 1/(2γλ) = {cap:.6g}; got {batch_size}. Use a smaller step.")
    return _stability(
        theorem="Theorem 10 (strongly convex)",
        batch_size=batch_size,
        step_size=step_size,
        curvature=smoothness + strong_convexity,
        curvature_name="(β+λ)",
        examples=examples,
        serial=4 * lipschitz**2 / (strong_convexity * examples),
        failed=2 * step_size * lipschitz**2 * updates,
        bound=bound,
        leave_one_out=leave_one_out,
        failure_probability=failure_probability,
        strong_convexity=strong_convexity,
    )


def resampling_failure_probability(*, data_sets: int, confidence: float = 0.95) -> float:
    """What R independent data sets without a failure show about η: η ≤ 1 − (1−confidence)^{1/R}, about 3/R at 95 %.

    With it the term 2γL²Tη stays at about 6γL²T/R, however good every single data set looked.

    Args:
        data_sets: R, all of which met the threshold.
        confidence: 1 − α.

    Returns:
        The upper confidence limit of η.

    Raises:
        ValueError: if R is below 1, or the confidence is not within (0, 1).

    Source: the exact binomial limit at zero failures, for the η of Theorems 9 and 10.
    """
    at_least_one(data_sets=data_sets)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1; got {confidence}.")
    return -math.expm1(math.log1p(-confidence) / data_sets)


def _stability(
    *,
    theorem: str,
    batch_size: int,
    step_size: float,
    curvature: float,
    curvature_name: str,
    examples: int,
    serial: float,
    failed: float,
    bound: float | None,
    leave_one_out: float | None,
    failure_probability: float | None,
    strong_convexity: float,
) -> Stability:
    printed = threshold(batch_size=batch_size, step_size=step_size, smoothness=curvature, examples=examples)
    slack = 2 / (step_size * curvature) - 1
    cap = 1 / (2 * step_size * strong_convexity) if strong_convexity else math.inf
    sharp = _threshold(batch_size, slack, 0.0)
    given = {"bound": bound, "leave_one_out": leave_one_out, "failure_probability": failure_probability}
    if sum(value is not None for value in given.values()) > 1:
        raise ValueError(f"give at most one of bound, leave_one_out and failure_probability; got {given}.")
    warnings = []
    if slack < 0:
        warnings.append(f"γ exceeds 2/{curvature_name}: serial SGD's own guarantee (Hardt et al.) does not hold either")
    largest, step = None, None
    if failure_probability is not None:
        if not 0 <= failure_probability <= 1:
            raise ValueError(f"failure_probability must lie between 0 and 1; got {failure_probability}.")
        eta, basis = failure_probability, "given"
    elif bound is not None or leave_one_out is not None:
        floor, need = (bound, printed) if bound is not None else (leave_one_out, sharp)
        assert floor is not None
        eta = 0.0 if floor >= need else 1.0
        correction = 1 / (examples - 1) if bound is not None else 0.0
        largest = _largest(floor, slack, correction, cap)
        step = _largest_step(batch_size, floor, correction, curvature, strong_convexity)
        basis = (
            "given these data" if bound is not None else "given these data, a bound that holds without any one example"
        )
        if bound is not None and batch_size > examples:
            warnings.append("the 1/(n−1) term needs B ≤ n; use leave_one_out")
    else:
        eta, basis = 1.0 if batch_size > 1 or slack < 0 else 0.0, "no bound on B_D(w, w′) was given"
    return Stability(
        theorem=theorem,
        threshold=printed,
        leave_one_out_threshold=sharp,
        failure_probability=eta,
        error=serial * (1 - eta) + failed * eta,
        serial_error=serial,
        largest_batch_size=largest,
        largest_step_size=step,
        basis=basis,
        warnings=tuple(warnings),
    )


def _largest(bound: float, slack: float, correction: float, cap: float) -> int | None:
    """The largest B with τ(B) ≤ bound; None if even one example a step is not covered, or nothing limits B."""
    if slack < 0:
        return None
    room = 1 + bound * max(0.0, slack - correction) if slack > correction else 1.0
    limit = min(room, cap)
    return max(1, math.floor(limit * (1 + 1e-12))) if math.isfinite(limit) else None
