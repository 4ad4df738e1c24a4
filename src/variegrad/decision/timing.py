"""What a training step costs: α + c′B seconds, from interleaved timings of sizes that differ by a factor of sixteen.

Sizes take turns, so that a slow spell of the machine meets all of them. The estimate uses each size's fastest round,
which other work on the machine cannot lower; the intervals are those of the medians over rounds (order statistics).
c′ is *resolved* if its interval does not reach zero: a step time that does not depend on B cannot recommend a B.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch.utils.data import Subset

from variegrad.batches import passes_over
from variegrad.decision.limits import Estimate
from variegrad.mechanisms import Mechanism, backward
from variegrad.per_example.state import aside, left_as_found
from variegrad.problems import Problem
from variegrad.problems.subset import size
from variegrad.theory.arguments import non_negative, positive
from variegrad.theory.mechanism_speed import Granularity

ROUNDS, REACHED = 15, 3  # the 4th smallest and 4th largest of 15 enclose the median with 96.5 %
SMALLEST, RATIO = 16, 16


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """The time of one gradient step as a function of the batch.

    Attributes:
        seconds_per_step: α, independent of the batch.
        seconds_per_example: c′, with a 96 % interval.
        sizes: batch sizes that were timed; beyond the largest, times are extrapolated.
        seconds_per_step_range: a 96 % interval of α; None if α is exact.
    """

    seconds_per_step: float
    seconds_per_example: Estimate
    sizes: tuple[int, ...]
    seconds_per_step_range: tuple[float, float] | None = None

    @property
    def resolved(self) -> bool:
        """Whether the time is seen to depend on the batch."""
        return self.seconds_per_example.low > 0

    def __str__(self) -> str:
        c = self.seconds_per_example
        timed = f"timed at B = {', '.join(map(str, self.sizes))}" if self.sizes else "as given"
        return f"{1e3 * self.seconds_per_step:.2g} ms + B × {c.scaled(1e6)} µs ({timed})"


def step_time(
    problem: Problem, *, mechanism: Mechanism | None = None, granularity: Granularity = "example"
) -> StepTime:
    """Time a gradient of the mean loss at several batch sizes.

    Args:
        problem: whose losses are differentiated; its model stays as it is.
        mechanism: applied to the gradients, with its draws.
        granularity: "example" or "worker": what one draw is for.

    Returns:
        α and c′.
    """
    n = size(problem.train)
    largest = min(n, SMALLEST * RATIO)
    sizes = sorted({max(1, largest // RATIO), max(1, largest // 4), largest})
    model = problem.model
    weights = [p for p in model.parameters() if p.requires_grad]
    batches = [next(iter(passes_over(Subset(problem.train, range(b)), b))) for b in sizes]
    rounds: list[list[float]] = []
    with left_as_found(model), aside(weights):
        for _ in range(ROUNDS + 1):  # the first is warm-up
            times = []
            for batch in batches:
                start = time.perf_counter()
                if mechanism is None:
                    torch.autograd.grad(problem.losses(model, batch).mean(), weights, allow_unused=True)
                else:
                    backward(model, problem.losses, batch, mechanism=mechanism, granularity=granularity)
                times.append(time.perf_counter() - start)
            rounds.append(times)
    return fitted(sizes, rounds[1:])


def stated_step_time(seconds_per_step: float, seconds_per_example: float) -> StepTime:
    """A step time that is known.

    Args:
        seconds_per_step: α ≥ 0.
        seconds_per_example: c′ > 0.

    Returns:
        It, taken as exact.

    Raises:
        ValueError: if a number is out of range.
    """
    non_negative(seconds_per_step=seconds_per_step)
    positive(seconds_per_example=seconds_per_example)
    c = seconds_per_example
    return StepTime(seconds_per_step=seconds_per_step, seconds_per_example=Estimate(value=c, low=c, high=c), sizes=())


def fitted(sizes: list[int], rounds: list[list[float]]) -> StepTime:
    """α and c′ from times per round and size.

    Args:
        sizes: batch sizes, ascending.
        rounds: seconds of each size, per round.

    Returns:
        The fit; α is not below zero.
    """
    fastest = [min(column) for column in zip(*rounds, strict=True)]
    if len(sizes) == 1:
        value = fastest[0] / sizes[0]
        return StepTime(
            seconds_per_step=0.0, seconds_per_example=Estimate(value=value, low=0.0, high=value), sizes=(sizes[0],)
        )
    span = sizes[-1] - sizes[0]
    slopes = [(times[-1] - times[0]) / span for times in rounds]
    value = max(0.0, (fastest[-1] - fastest[0]) / span)
    alpha = max(0.0, fastest[0] - value * sizes[0])
    low, high = _range(slopes, value)
    fixed = _range([times[0] - slope * sizes[0] for times, slope in zip(rounds, slopes, strict=True)], alpha)
    return StepTime(
        seconds_per_step=alpha,
        seconds_per_example=Estimate(value=value, low=low, high=high),
        sizes=tuple(sizes),
        seconds_per_step_range=(max(0.0, fixed[0]), fixed[1]),
    )


def _range(rounds: list[float], value: float) -> tuple[float, float]:
    """The order statistics that enclose the median, and the estimate."""
    ordered = sorted(rounds)
    return min(ordered[REACHED], value), max(ordered[-1 - REACHED], value)
