"""When a diversity-inducing mechanism pays: time to an accuracy with and without it, each at its own best batch.

With a tuned step size the updates to an accuracy are proportional to f(B), the second moment of the mean gradient of a
batch over ‖∇F‖². A mechanism of relative variance t (t = p/(1−p) for DropConnect) has

    one draw per example: f(B) = ((1+t)B_D + B − 1)/B
    one draw per worker:  f(B) = (1+t)(B_D + B/P − 1)/B + (P−1)/P

and plain gradients have t = 0. An update takes α + κ + c′B seconds, κ the communication. f grows with t at every B, so
that only a smaller κ can pay for it: what is dropped by one mask per worker need not be sent, κ = κ₀/(1+t) for
DropConnect; masks per example leave a dense sum, and κ as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from scipy.optimize import brentq

from variegrad.theory.arguments import at_least_one, non_negative, positive

Granularity = Literal["example", "worker"]


def updates_factor(
    *,
    bound: float,
    batch_size: float,
    relative_variance: float = 0.0,
    granularity: Granularity = "example",
    workers: int = 1,
) -> float:
    """f(B): updates to an accuracy at a tuned step size, in units of those of exact gradients.

    Args:
        bound: B_D of the plain gradients, in examples.
        batch_size: B, in examples over all workers.
        relative_variance: t = Σtr Var m(g_i)/Σ‖g_i‖² of the unbiased mechanism; 0 for plain gradients.
        granularity: "example" or "worker": what one draw is for.
        workers: P, for one draw per worker.

    Returns:
        A number ≥ 1, up to rounding. The tuned learning rate of the mean gradient is proportional to 1/f.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> updates_factor(bound=60, batch_size=61)
        1.9672131147540983

    Source: Lemma 1 with a mechanism in it; Theorem 7 for the mechanism's bound.
    """
    at_least_one(batch_size=batch_size)
    falling, constant = _parts(bound, relative_variance, granularity, workers)
    if granularity == "worker" and batch_size < workers:
        raise ValueError(f"batch_size must be at least the number of workers, {workers}; got {batch_size}.")
    return falling / batch_size + constant


def _parts(bound: float, t: float, granularity: Granularity, workers: int) -> tuple[float, float]:
    """A and b of f(B) = a/B + b."""
    at_least_one(bound=bound, workers=workers)
    non_negative(relative_variance=t, bound=bound)
    if granularity not in ("example", "worker"):
        raise ValueError(f"granularity must be 'example' or 'worker'; got {granularity!r}.")
    if granularity == "example":
        return (1 + t) * bound - 1, 1.0
    return (1 + t) * (bound - 1), 1 + t / workers


@dataclass(frozen=True, kw_only=True)
class MechanismTime:
    """Time to an accuracy with DropConnect against plain gradients, each at its own best batch.

    Attributes:
        drop: p.
        granularity: "example" or "worker".
        batch_size: the best B with the mechanism, in examples.
        plain_batch_size: the best B without it.
        gain: seconds of plain gradients over seconds with the mechanism; above 1 the mechanism is faster.
    """

    drop: float
    granularity: Granularity
    batch_size: int
    plain_batch_size: int
    gain: float

    @property
    def pays(self) -> bool:
        """Whether the mechanism is faster."""
        return self.gain > 1

    def __str__(self) -> str:
        faster = f"{100 * (1 - 1 / self.gain):.3g} % less" if self.pays else f"{100 * (1 / self.gain - 1):,.0f} % more"
        return (
            f"DropConnect {self.drop:g} per {self.granularity}: {faster} time to an accuracy, each at its "
            f"fastest batch: {self.batch_size:,} against {self.plain_batch_size:,} with plain gradients"
        )


def mechanism_time(
    *,
    bound: float,
    seconds_per_step: float,
    seconds_per_example: float,
    communication: float,
    drop: float,
    granularity: Granularity = "worker",
    workers: int = 2,
    extra_seconds_per_step: float = 0.0,
    extra_seconds_per_example: float = 0.0,
    largest: int | None = None,
) -> MechanismTime:
    """Compare DropConnect with plain gradients by the model (α + κ + c′B)·f(B).

    Args:
        bound: B_D of the plain gradients, in examples.
        seconds_per_step: α, what an update costs whatever its batch, without communication.
        seconds_per_example: c′, of one further example of the whole batch (c/P on P workers).
        communication: κ₀, seconds per update to add up dense gradients.
        drop: p; 0 ≤ p < 1.
        granularity: "worker": one mask per worker, of which κ₀(1−p) is sent; "example": κ₀ is sent.
        workers: P.
        extra_seconds_per_step: what masks add to α: packing, for instance.
        extra_seconds_per_example: what masks add to c′.
        largest: a cap on B, such as memory.

    Returns:
        The comparison.

    Raises:
        ValueError: if a number is out of range.

    Source: Section 4.4; f(B) of `updates_factor`.
    """
    non_negative(seconds_per_step=seconds_per_step, communication=communication,
                 extra_seconds_per_step=extra_seconds_per_step,
                 extra_seconds_per_example=extra_seconds_per_example)  # fmt: skip
    positive(seconds_per_example=seconds_per_example)
    if not 0 <= drop < 1:
        raise ValueError(f"drop must be at least 0 and below 1; got {drop}.")
    if largest is not None and largest < workers:
        raise ValueError(f"largest must be at least the number of workers, {workers}; got {largest}.")
    masked_parts = _parts(bound, drop / (1 - drop), granularity, workers)
    plain = _best(
        seconds_per_step + communication, seconds_per_example, _parts(bound, 0.0, "example", workers), workers, largest
    )
    sent = communication * (1 - drop if granularity == "worker" else 1)
    masked = _best(
        seconds_per_step + extra_seconds_per_step + sent, seconds_per_example + extra_seconds_per_example,
        masked_parts, workers, largest,
    )  # fmt: skip
    return MechanismTime(
        drop=drop, granularity=granularity, batch_size=masked[1], plain_batch_size=plain[1], gain=plain[0] / masked[0]
    )


def communication_that_pays(
    *,
    bound: float,
    seconds_per_step: float,
    seconds_per_example: float,
    drop: float,
    workers: int = 2,
    extra_seconds_per_step: float = 0.0,
    extra_seconds_per_example: float = 0.0,
) -> float:
    """The κ₀ beyond which one DropConnect mask per worker is faster than plain gradients, each at its best batch.

    Masks per example never are, by this model: they leave a dense sum to be sent.

    Args:
        bound: B_D of the plain gradients, in examples.
        seconds_per_step: α, without communication.
        seconds_per_example: c′.
        drop: p; 0 < p < 1.
        workers: P.
        extra_seconds_per_step: what masks add to α.
        extra_seconds_per_example: what masks add to c′.

    Returns:
        Seconds per update to add up dense gradients; inf if no link is slow enough.

    Raises:
        ValueError: if a number is out of range.

    Source: Section 4.4; the κ₀ at which `mechanism_time` finds a gain of 1.
    """
    if not 0 < drop < 1:
        raise ValueError(f"drop must be above 0 and below 1; got {drop}.")
    positive(seconds_per_example=seconds_per_example)
    non_negative(seconds_per_step=seconds_per_step, extra_seconds_per_step=extra_seconds_per_step,
                 extra_seconds_per_example=extra_seconds_per_example)  # fmt: skip
    plain, masked = _parts(bound, 0.0, "example", workers), _parts(bound, drop / (1 - drop), "worker", workers)

    def excess(log_communication: float) -> float:
        """Log of the time with masks over that without, each at its best batch: continuous, as a least of lines."""
        communication = math.exp(log_communication)
        fixed = seconds_per_step + extra_seconds_per_step + communication * (1 - drop)
        with_masks = _best(fixed, seconds_per_example + extra_seconds_per_example, masked, workers, None)
        without = _best(seconds_per_step + communication, seconds_per_example, plain, workers, None)
        return math.log(with_masks[0] / without[0])

    low, high = (math.log(seconds_per_example * (bound + workers)) + shift for shift in (-40.0, 40.0))
    if excess(high) >= 0:  # the updates that masks add outweigh all that they do not send
        return math.inf
    return 0.0 if excess(low) <= 0 else math.exp(brentq(excess, low, high, xtol=1e-12))


def _best(
    fixed: float, per_example: float, parts: tuple[float, float], smallest: int, largest: int | None
) -> tuple[float, int]:
    """The least (fixed + c′B)(a/B + b) and its whole B: the time is convex in log B."""
    falling, constant = parts
    best = max(float(smallest), math.sqrt(fixed * falling / (per_example * constant)))
    candidates = {min(size, largest or size) for size in (math.floor(best), math.ceil(best))}
    return min(((fixed + per_example * size) * (falling / size + constant), size) for size in candidates)
