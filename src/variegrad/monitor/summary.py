"""What a run's readings come to: one sentence at its end, a table of it, and what gave no reading."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from variegrad.monitor.history import History
from variegrad.monitor.reading import Reading


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The readings of a run that could tell, together.

    Attributes:
        readings: how many there were, also those that are no longer in memory.
        told: how many of those in memory could tell.
        first_step: the first step that a reading pools; 0 without readings.
        last_step: the last.
        usual_batch_size: the median batch, in units.
        unit: what is counted.
        least: the smallest lower confidence bound; NaN if none could tell.
        typical: the harmonic mean of the estimates, by which efficiencies average; NaN if none could tell.
        latest: the latest lower confidence bound; NaN if the last reading cannot tell.
        efficiency: mean of 1/(1 + (B−1)/B_D) at the lower confidence bounds; NaN if none could tell.
        share_below: share of the readings whose lower confidence bound is below the usual batch.
        average: the reading of `Monitor.average` in words; empty without one.
        reasons: what gave no reading → how often.
    """

    readings: int
    told: int
    first_step: int
    last_step: int
    usual_batch_size: int
    unit: str
    least: float
    typical: float
    latest: float
    efficiency: float
    share_below: float
    average: str
    reasons: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain JSON: a number that is not known is null.

        Returns:
            One entry for each attribute.
        """
        known = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}
        return {k: "inf" if v == math.inf else v for k, v in known.items()}

    def __str__(self) -> str:
        reasons = "".join(f"\n  no reading {times:,} times: {reason}" for reason, times in self.reasons.items())
        if not self.readings:
            return f"no readings{reasons}"
        steps = f"{self.readings:,} readings over steps {self.first_step:,}–{self.last_step:,}"
        if not self.told:
            return f"{steps}: not enough for an estimate of B_D{reasons}"
        return (
            f"{steps}: B_D about {_two(self.typical)} {self.unit} (harmonic mean), "
            f"at least {_two(self.least, down=True)} at every reading and {_two(self.latest, down=True)} at the last. "
            f"By these lower bounds the batch of {self.usual_batch_size:,} was {self.efficiency:.0%} efficient on "
            f"average, and above the bound in {self.share_below:.0%} of the readings"
            f"{self.average and f'. On average over {self.average}'}{reasons}"
        )


def summarize(history: History, average: Reading | None = None) -> Summary:
    """The summary of a history.

    Args:
        history: of a monitor.
        average: `Monitor.average`, if there is one.

    Returns:
        What its readings come to.
    """
    kept = list(history)
    told = [one for one in kept if not one.cannot_tell and not one.undefined]
    batches = [one.usual_batch_size or one.batch_size for one in kept]
    usual = round(statistics.median(batches)) if batches else 0
    bounds = [one.lower_confidence_bound for one in told]
    nan = math.nan
    return Summary(
        readings=history.appended,
        told=len(told),
        first_step=min((one.first_step or one.step for one in kept), default=0),
        last_step=max((one.step for one in kept), default=0),
        usual_batch_size=usual,
        unit=kept[-1].unit if kept else "examples",
        least=min(bounds, default=nan),
        # An infinite bound adds nothing to the mean of inverses.
        typical=_harmonic([one.batch_size_bound for one in told]),
        latest=nan if not kept or kept[-1].cannot_tell or kept[-1].undefined else kept[-1].lower_confidence_bound,
        efficiency=statistics.fmean(1 / (1 + (usual - 1) / bound) for bound in bounds) if bounds else nan,
        share_below=statistics.fmean(bound < usual for bound in bounds) if bounds else nan,
        average="" if average is None or average.cannot_tell else f"{average.steps()}: {average.in_words()}",
        reasons={why.text: why.steps for why in history.reasons.values()},
    )


def _harmonic(values: list[float]) -> float:
    if not values:
        return math.nan
    inverse = math.fsum(1 / value for value in values) / len(values)
    return 1 / inverse if inverse else math.inf


def _two(value: float, *, down: bool = False) -> str:
    if not math.isfinite(value):
        return "?" if math.isnan(value) else "∞"
    place = 10 ** (math.floor(math.log10(value)) - 1)
    shown = (math.floor if down else round)(value / place) * place
    return f"{shown:,.1f}" if value < 9.95 else f"{shown:,.0f}"
