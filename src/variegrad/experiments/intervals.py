"""The mean over independent repeats with its 95 % interval (Student t), and the verdict that intervals allow."""

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


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One claim and what was found.

    Attributes:
        claim: what the paper says, or what theory predicts.
        found: our numbers, with their intervals.
        verdict: "holds", "holds partly" or "does not hold here".
    """

    claim: str
    found: str
    verdict: str


def verdict(differences: Sequence[Interval]) -> str:
    """Whether a claim "this is larger than that" holds, from the intervals of the differences that it is about.

    Args:
        differences: one for each comparison the claim makes, positive where it is right.

    Returns:
        "holds" where every interval lies above zero, "does not hold here" where none does, else "holds partly".
    """
    right = [difference.low > 0 for difference in differences]
    return "holds" if right and all(right) else "holds partly" if any(right) else "does not hold here"
