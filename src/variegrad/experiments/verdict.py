"""Claims and the four words that records allow: holds, reversed, no effect above a margin, undecided.

A claim is an ordering. It has one primary contrast: the log ratio of what it compares, paired by seed, positive if the
claim is right. Its margin, the smallest effect of interest, is declared in the experiment's file. The 95 % interval of
the mean decides. Further contrasts are secondary: they are counted after Holm's adjustment and change no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from statistics import median
from typing import Any

import numpy as np
from scipy.stats import chi2, norm
from scipy.stats import t as student

from variegrad.experiments.intervals import LEVEL, Interval
from variegrad.experiments.records import Record

Numbers = Mapping[str, Interval | str]
POWER = 0.9  # of a run with the number of seeds that an undecided claim names
MOST_SEEDS = 10_000
LEARNED = 0.9  # a network has learned if its training loss ends below this share of that at its start
NOT_TESTED = "not tested at this size"


class AtLeast(float):
    """A value that was cut off: the true one is at least this, as the passes of a run that never reached its target."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """The mean over seeds of a log ratio, with its 95 % interval.

    Attributes:
        name: what is compared, as "B = 16 to 256".
        mean: of the log ratio, positive if the claim is right.
        low: lower end of the interval; −inf if nothing bounds it.
        high: upper end; +inf if nothing bounds it, as for censored values.
        count: how many seeds.
        deviation: standard deviation of one seed's log ratio; NaN if it is unknown or some values are censored.
        margin: smallest log ratio of interest.
        probability: two-sided p-value of "no effect".
    """

    name: str
    mean: float
    low: float
    high: float
    count: int
    deviation: float
    margin: float
    probability: float

    @property
    def word(self) -> str:
        """What interval and margin alone allow: "holds", "reversed", "no effect" or "undecided"."""
        if self.low > 0:
            return "holds"
        if self.high < 0:
            return "reversed"
        return "no effect" if self.within_margin else "undecided"

    @property
    def within_margin(self) -> bool:
        """Whether the interval holds no effect as large as the margin."""
        return -self.margin < self.low and self.high < self.margin

    @property
    def agrees(self) -> bool | None:
        """Whether both sides are equal within the margin; None if the interval reaches both in and out of it."""
        if self.within_margin:
            return True
        return False if self.low > self.margin or self.high < -self.margin else None

    @cached_property
    def seeds_needed(self) -> int | None:
        """Seeds that decide with 90 % probability if mean and deviation are as observed; None if that is unknown."""
        return seeds_that_decide(self.mean, self.deviation, self.margin)

    @property
    def verdict(self) -> str:
        """The word, with the margin of "no effect" and with the seeds that "undecided" needs."""
        if self.word == "no effect":
            return f"no effect above {percent(self.margin)}"
        if self.word != "undecided":
            return self.word
        if not math.isfinite(self.deviation):
            return "undecided (some values are censored or missing)" if self.count > 1 else "undecided (one seed)"
        needed = self.seeds_needed
        return f"undecided ({needed} seeds would decide)" if needed else f"undecided (more than {MOST_SEEDS} seeds)"

    def __str__(self) -> str:
        mean, low, high = (math.exp(min(end, 700.0)) if end < math.inf else end for end in
                           (self.mean, self.low, self.high))  # fmt: skip
        return f"{self.name}: ×{mean:.4g} [{low:.4g}, {high:.4g}]"


def paired(name: str, one: Sequence[float], other: Sequence[float], *, margin: float) -> Contrast:
    """log(other/one), seed by seed.

    `AtLeast` values count as censored: the interval then reaches as far as they may, so that a claim can hold or be
    reversed, if even the least possible values show it, and never reads "no effect".

    Args:
        name: what is compared.
        one: a positive number per seed: what the claim says is smaller.
        other: for the same seeds, what it says is larger.
        margin: smallest log ratio of interest.

    Returns:
        The contrast; unbounded if there is one seed, or a value that is not positive and finite.

    Raises:
        ValueError: if there are no seeds, or not as many on both sides.
    """
    pairs = list(zip(one, other, strict=True))
    if not pairs:
        raise ValueError("paired: there are no seeds to compare.")
    least = [-math.inf if isinstance(a, AtLeast) else _log_ratio(a, b, -math.inf) for a, b in pairs]
    most = [math.inf if isinstance(b, AtLeast) else _log_ratio(a, b, math.inf) for a, b in pairs]
    shown = [_log_ratio(a, b, math.nan) for a, b in pairs]
    (low, above), (high, below) = _ends(least, -1), _ends(most, 1)
    whole = least == most and len(pairs) > 1
    return Contrast(
        name=name, mean=float(np.mean(shown)), low=low, high=high, count=len(pairs), margin=margin,
        deviation=float(np.std(shown, ddof=1)) if whole else math.nan, probability=min(1.0, 2 * min(above, below)),
    )  # fmt: skip


def deviations(name: str, one: Sequence[float], other: Sequence[float], *, margin: float) -> Contrast:
    """Log of sd(other)/sd(one) for values paired by seed, with the interval of Pitman and Morgan (normal values).

    The interval of the squared ratio is F·(K ± √(K²−1)), where F is the observed one, K = 1 + 2(1−r²)t²/(k−2), and r
    the correlation over k seeds.

    Args:
        name: what is compared.
        one: a number per seed.
        other: for the same seeds.
        margin: smallest log ratio of interest.

    Returns:
        The contrast; unbounded below three seeds, or if one side does not vary.
    """
    count = len(one)
    spread = [float(np.std(side, ddof=1)) if count > 1 else 0.0 for side in (one, other)]
    if count < 3 or min(spread) == 0 or not all(map(math.isfinite, spread)):
        return Contrast(name=name, mean=math.nan, low=-math.inf, high=math.inf, count=count, deviation=math.nan,
                        margin=margin, probability=1.0)  # fmt: skip
    mean = math.log(spread[1] / spread[0])
    free = 1 - float(np.corrcoef(one, other)[0, 1]) ** 2

    def half(quantile: float) -> float:
        return math.acosh(1 + 2 * free * quantile**2 / (count - 2)) / 2

    statistic = math.sqrt((math.cosh(2 * mean) - 1) * (count - 2) / (2 * free)) if free else math.inf
    width = half(_quantile(count - 2))
    return Contrast(
        name=name, mean=mean, low=mean - width, high=mean + width, count=count, deviation=math.sqrt(free),
        margin=margin, probability=2 * float(student.sf(statistic, count - 2)),
    )  # fmt: skip


def clear_after_holm(contrasts: Sequence[Contrast]) -> tuple[int, int]:
    """How many secondary contrasts are clear after Holm's adjustment, for and against the claim.

    Args:
        contrasts: all secondary ones of a claim.

    Returns:
        Their numbers.
    """
    ordered = sorted(contrasts, key=lambda one: one.probability)
    clear = []
    for place, contrast in enumerate(ordered):
        if contrast.probability * (len(ordered) - place) >= 1 - LEVEL:
            break
        clear.append(contrast)
    right = sum(contrast.low > 0 for contrast in clear)
    return right, len(clear) - right


def seeds_that_decide(mean: float, deviation: float, margin: float) -> int | None:
    """The least number of seeds whose interval decides with 90 % probability.

    To decide is to exclude zero or to lie within the margin.

    Args:
        mean: the true mean of a seed's log ratio.
        deviation: its true standard deviation.
        margin: smallest log ratio of interest.

    Returns:
        A number of seeds, at least two; None if more than 10,000 are needed or mean or deviation is unknown.
    """
    if not (math.isfinite(mean) and math.isfinite(deviation)):
        return None
    few, many = 1, 2  # few do not decide
    while _decides(mean, deviation, margin, many) < POWER:
        few, many = many, 2 * many
        if few > MOST_SEEDS:
            return None
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if _decides(mean, deviation, margin, middle) >= POWER else (middle, many)
    return many


def percent(margin: float) -> str:
    """A log ratio as a percentage.

    Args:
        margin: log of a ratio.

    Returns:
        The text, as "5 %".
    """
    return f"{100 * math.expm1(margin):.3g} %"


def learned(records: Sequence[Record]) -> bool:
    """Whether every run has learned: its training loss ended below nine tenths of that at its start.

    The median over the last third of its points, not the last one alone: a tuned step size is close to the largest
    stable one, where the loss of a network that learns can jump for a few updates. A run that diverges has not learned.

    Args:
        records: of training runs, with `losses` at points along the run, the start first.

    Returns:
        Whether all have.
    """
    return all(_end(record["losses"][1:]) < LEARNED * record["losses"][0] for record in records)


def _end(losses: Sequence[float]) -> float:
    """The median of the last third; +inf for a run that diverged, or was measured at its start alone."""
    if not losses or not math.isfinite(losses[-1]):
        return math.inf
    return median(losses[-math.ceil(len(losses) / 3) :])


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One claim, its contrasts and the numbers of each configuration.

    Attributes:
        claim: what the paper says, or what theory predicts.
        numbers: of each configuration by its name, an interval or a few words; or one text.
        primary: the contrast that decides.
        secondary: further ones.
        learned: whether every network has learned; if not, the claim is not tested.
    """

    claim: str
    numbers: Numbers | str
    primary: Contrast
    secondary: Sequence[Contrast] = ()
    learned: bool = True

    @property
    def verdict(self) -> str:
        """One of the four words, or "not tested at this size"."""
        return self.primary.verdict if self.learned else NOT_TESTED

    @property
    def outcome(self) -> str:
        """The primary contrast, and how many secondary ones are clear."""
        parts = [str(self.primary)]
        if self.primary.word in ("holds", "reversed") and self.primary.within_margin:
            parts.append(f"clear, but below the margin of {percent(self.primary.margin)}")
        if self.secondary:
            right, wrong = clear_after_holm(self.secondary)
            against = f", {wrong} clear against" if wrong else ""
            parts.append(f"{right} of {len(self.secondary)} secondary contrasts clear{against}")
        return "; ".join(parts)

    @property
    def found(self) -> str:
        """The outcome and the numbers."""
        numbers = self.numbers
        listed = [numbers] if isinstance(numbers, str) else [f"{name}: {value}" for name, value in numbers.items()]
        return "; ".join([self.outcome, *listed])

    def plain(self) -> dict[str, Any]:
        """The finding as JSON: its texts and its primary contrast on the log scale, None for an open end."""
        one = self.primary
        ends = {name: getattr(one, name) for name in ("mean", "low", "high", "margin")}
        contrast = {"name": one.name, "count": one.count,
                    **{name: value if math.isfinite(value) else None for name, value in ends.items()}}  # fmt: skip
        return {"claim": self.claim, "found": self.found, "verdict": self.verdict, "log_ratio": contrast}


@dataclass(frozen=True, kw_only=True)
class Check:
    """What should be so and is counted or compared, but is no ordering: controls, preconditions, shares of cells.

    Attributes:
        claim: what should be.
        found: what is.
        met: whether they agree; None if the records do not tell.
        numbers: behind it, by their names.
    """

    claim: str
    found: str
    met: bool | None
    numbers: Mapping[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """One of three words: "holds", "not met" or "undecided"."""
        return "undecided" if self.met is None else "holds" if self.met else "not met"

    def plain(self) -> dict[str, Any]:
        """The check as JSON."""
        plain = {"claim": self.claim, "found": self.found, "verdict": self.verdict, "log_ratio": None}
        return plain | ({"numbers": dict(self.numbers)} if self.numbers else {})


@cache
def _quantile(freedom: int) -> float:
    return float(student.ppf((1 + LEVEL) / 2, freedom))


def counted(findings: Sequence[Mapping[str, Any]]) -> str:
    """How many claims have each verdict; checks are not claims.

    Args:
        findings: as in experiment.json.

    Returns:
        The text, as "2 hold; 1 undecided".
    """
    verdicts = [found["verdict"] for found in findings if found["log_ratio"] is not None]
    said = {"holds": "hold", "reversed": "reversed", "no effect": "no effect", "undecided": "undecided",
            NOT_TESTED: NOT_TESTED}  # fmt: skip
    counts = {word: sum(verdict.startswith(start) for verdict in verdicts) for start, word in said.items()}
    return "; ".join(f"{count} {'holds' if word == 'hold' and count == 1 else word}"
                     for word, count in counts.items() if count)  # fmt: skip


def _log_ratio(one: float, other: float, otherwise: float) -> float:
    if not (0 < one < math.inf and 0 < other < math.inf):
        return otherwise
    return math.log(other / one)


def _ends(values: Sequence[float], side: int) -> tuple[float, float]:
    """An end of the 95 % interval of the mean, and the one-sided p-value that it lies beyond zero on the other side.

    `side` is −1 for the lower end and +1 for the upper one.
    """
    count, mean = len(values), float(np.mean(values))
    if count == 1 or not all(map(math.isfinite, values)):
        return side * math.inf, 1.0
    error = float(np.std(values, ddof=1)) / math.sqrt(count)
    end = mean + side * _quantile(count - 1) * error
    if error == 0:
        return end, 0.0 if side * mean < 0 else 1.0
    return end, float(student.sf(-side * mean / error, count - 1))


def _decides(mean: float, deviation: float, margin: float, count: int) -> float:
    """The probability that the interval over `count` seeds excludes zero or lies within the margin."""
    if deviation == 0:
        return float(mean != 0 or margin > 0)
    error = deviation / math.sqrt(count)
    shares = (np.arange(400) + 0.5) / 400  # of the distribution of the observed deviation
    observed = error * np.sqrt(chi2.ppf(shares, count - 1) / (count - 1))
    half = observed * _quantile(count - 1)

    def within(bound: Any) -> Any:
        return norm.cdf((bound - mean) / error) - norm.cdf((-bound - mean) / error)

    inside = np.clip(margin - half, 0, half)  # means as near zero as this show that there is no effect
    return float(np.mean(1 - within(half) + within(inside)))
