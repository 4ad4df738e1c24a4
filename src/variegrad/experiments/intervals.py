"""The mean over independent repeats with its 95 % interval (Student t)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over repeats.

    Attributes:
        mean: over the repeats.
        low: lower end of the 95 % interval; −inf for a single repeat.
        high: upper end.
        count: how many repeats.
    """

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


def interval(values: Sequence[float]) -> Interval:
    """The mean of independent repeats and its 95 % interval, mean ± t·s/√k.

    Args:
        values: one number a repeat.

    Returns:
        The interval; unbounded where there is one repeat, NaN where a repeat is not finite.

    Raises:
        ValueError: if there are no repeats.
    """
    if not len(values):
        raise ValueError("interval: there are no repeats to take a mean of.")
    count = len(values)
    mean = float(np.mean(values))
    if not all(map(math.isfinite, values)):
        return Interval(mean=mean, low=math.nan, high=math.nan, count=count)
    half = math.inf
    if count > 1:
        half = float(student.ppf((1 + LEVEL) / 2, count - 1) * np.std(values, ddof=1) / math.sqrt(count))
    return Interval(mean=mean, low=mean - half, high=mean + half, count=count)


def geometric(values: Sequence[float]) -> Interval:
    """The geometric mean of positive repeats and its 95 % interval, for what varies by factors.

    Args:
        values: one positive number a repeat.

    Returns:
        The interval, its ends the exponentials of those of the logarithms.

    Raises:
        ValueError: if there are no repeats.
    """
    logs = interval([math.log(value) if value > 0 else -math.inf for value in values])
    mean, low, high = (math.exp(end) if end < 700 else math.inf for end in (logs.mean, logs.low, logs.high))
    return Interval(mean=mean, low=math.nan if math.isnan(logs.low) else low,
                    high=math.nan if math.isnan(logs.high) else high, count=logs.count)  # fmt: skip
