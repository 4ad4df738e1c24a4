"""What a batch is worth: speed-up B/(1+δ), efficiency 1/(1+δ), δ = (B−1)/B_D, and the batch that costs the least time.

At equal accuracy (the step retuned to γ/(1+δ)) B examples in one step do the work of B/(1+δ) ≤ B_D serial steps. A step
that takes α + c′B seconds then costs (α + c′B)(B_D + B − 1)/B, least at B* = √(α(B_D−1)/c′).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from variegrad.theory.arguments import at_least_one, non_negative, positive, whole_number


def speed_up(*, batch_size: float, bound: float) -> float:
    """Serial steps that one step of B examples is worth, at the same accuracy: B/(1 + (B−1)/B_D) ≤ B_D.

    Args:
        batch_size: B, in examples.
        bound: B_D, in examples.

    Returns:
        The speed-up over B = 1, communication apart.

    Raises:
        ValueError: if either is below 1.

    Example:
        >>> speed_up(batch_size=65, bound=64)
        32.5

    Source: Theorems 2-5, retuned.
    """
    return batch_size * efficiency(batch_size=batch_size, bound=bound)


def efficiency(*, batch_size: float, bound: float) -> float:
    """The share of a batch's examples that is not wasted: 1/(1 + (B−1)/B_D).

    Args:
        batch_size: B, in examples.
        bound: B_D, in examples.

    Returns:
        A number in (0, 1].

    Raises:
        ValueError: if either is below 1.

    Source: Theorems 2-5, retuned.
    """
    at_least_one(batch_size=batch_size, bound=bound)
    return 1 / (1 + (batch_size - 1) / bound)


@dataclass(frozen=True, kw_only=True)
class BatchChoice:
    """The batch size that reaches a given accuracy in the least time.

    Attributes:
        batch_size: the best whole number, in examples.
        continuous: B* = √(α(B_D−1)/c′), before rounding.
        seconds_per_serial_step: (α + c′B)/speed-up: the time for the progress of one serial step.
        efficiency: 1/(1 + (B−1)/B_D) at that batch.
        speed_up: B/(1 + (B−1)/B_D) at that batch.
        gain: how many times faster than one example a step.
    """

    batch_size: int
    continuous: float
    seconds_per_serial_step: float
    efficiency: float
    speed_up: float
    gain: float


def best_batch_size(
    *, bound: float, seconds_per_step: float, seconds_per_example: float, largest: int | None = None
) -> BatchChoice:
    """B* = √(α(B_D−1)/c′) for a step that takes α + c′B seconds; the least time is (√α + √(c′(B_D−1)))².

    Args:
        bound: B_D, in examples; inf if a larger batch is equally efficient.
        seconds_per_step: α, what a step costs whatever its batch (communication, launch).
        seconds_per_example: c′, the time of one further example (c/P on P workers).
        largest: a cap on B, such as memory; None for none.

    Returns:
        The choice.

    Raises:
        TypeError: if `largest` is no whole number.
        ValueError: if a number is out of range, or nothing limits the batch.

    Example:
        >>> best_batch_size(bound=250_001, seconds_per_step=1e-3, seconds_per_example=1e-3).batch_size
        500

    Source: Theorems 2-5, retuned.
    """
    at_least_one(bound=bound)
    if largest is not None:
        whole_number(largest=largest)
    non_negative(seconds_per_step=seconds_per_step)
    positive(seconds_per_example=seconds_per_example)

    def seconds(batch_size: float) -> float:
        step = seconds_per_step + seconds_per_example * batch_size
        return step / speed_up(batch_size=batch_size, bound=bound)

    best = max(1.0, math.sqrt(seconds_per_step * (bound - 1) / seconds_per_example)) if seconds_per_step else 1.0
    if largest is None and not math.isfinite(best):
        raise ValueError("bound is infinite, so that every larger batch is better: give largest, as memory allows.")
    # The time is convex in 1/B and in B, so the best whole number is next to the best real one.
    limited = best if largest is None else min(best, largest)
    chosen = min((math.floor(limited), math.ceil(limited)), key=seconds)
    return BatchChoice(
        batch_size=chosen,
        continuous=best,
        seconds_per_serial_step=seconds(chosen),
        efficiency=efficiency(batch_size=chosen, bound=bound),
        speed_up=speed_up(batch_size=chosen, bound=bound),
        gain=seconds(1) / seconds(chosen),
    )


@dataclass(frozen=True, kw_only=True)
class LocalStep:
    """The best step of B examples where the loss is locally a quadratic of curvature β.

    Attributes:
        step_size: γ* = 1/(β(B_D + B − 1)), sum-normalised.
        learning_rate: γ*B, for gradients averaged over the batch.
        decrease: the expected decrease B‖∇F‖²/(2β(B_D + B − 1)) of the loss.
    """

    step_size: float
    learning_rate: float
    decrease: float


def local_step(*, smoothness: float, bound: float, batch_size: float, sq_norm_of_gradient: float) -> LocalStep:
    """The step that decreases a quadratic of curvature βI the most, in expectation.

    Args:
        smoothness: β.
        bound: B_D(w).
        batch_size: B.
        sq_norm_of_gradient: ‖∇F(w)‖².

    Returns:
        Step size and decrease.

    Raises:
        ValueError: if a number is out of range.

    Source: Lemma 1 applied to the descent inequality; McCandlish et al. 2018 with B_noise = B_D − 1.
    """
    positive(smoothness=smoothness)
    non_negative(sq_norm_of_gradient=sq_norm_of_gradient)
    at_least_one(bound=bound, batch_size=batch_size)
    step = 1 / (smoothness * (bound + batch_size - 1))
    return LocalStep(
        step_size=step, learning_rate=step * batch_size, decrease=step * batch_size * sq_norm_of_gradient / 2
    )
