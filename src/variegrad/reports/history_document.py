"""The document of `variegrad monitor` as typed points: what the picture and the page of a history are drawn from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from variegrad.reports.document import number

SCHEMA = "variegrad.history/1"

# More places than this are narrower than a pixel of the picture.
DRAWN = 400


@dataclass(frozen=True, kw_only=True)
class HistoryPoint:
    """One reading as it is drawn; +inf and NaN as floats again.

    Attributes:
        step: the last optimizer step that it pools.
        first_step: the first one.
        batch_size: B of that step, in units.
        usual_batch_size: the median of B over its steps.
        bound: B̂_D; NaN if undefined.
        low: lower end of its interval.
        high: upper end; +inf if nothing bounds it from above.
        lower_confidence_bound: 1 if there are too few readings.
        cannot_tell: whether there are too few readings.
        source: where the gradients came from.
        pooled_steps: steps that it pools.
        skipped: steps left out so far.
        unit: what is counted: "examples", "sequences", "groups".
        geometry: the norm of gradients: "euclidean" for SGD.
    """

    step: int
    first_step: int
    batch_size: int
    usual_batch_size: int
    bound: float
    low: float
    high: float
    lower_confidence_bound: float
    cannot_tell: bool
    source: str
    pooled_steps: int
    skipped: int
    unit: str
    geometry: str

    @property
    def steps(self) -> str:
        """The steps that it pools, as "steps 568–689"."""
        if not 0 < self.first_step < self.step:
            return f"step {self.step:,}"
        return f"steps {self.first_step:,}–{self.step:,}"

    @property
    def efficiency(self) -> tuple[float, float, float]:
        """1/(1 + (B−1)/B_D) of the usual batch at the cautious end of the interval, at B̂_D, and at the other end."""
        at = (min(self.low, self.lower_confidence_bound), self.bound, self.high)
        low, middle, high = (
            1.0 if math.isnan(bound) else 1 / (1 + (self.usual_batch_size - 1) / bound) for bound in at
        )
        return low, middle, high


def history_points(document: Mapping[str, Any]) -> list[HistoryPoint]:
    """The readings of a document.

    Args:
        document: the document of `variegrad monitor`.

    Returns:
        One point for each reading, in its order.

    Raises:
        ValueError: if the document is of another schema or a number is malformed.
    """
    if document.get("schema") != SCHEMA:
        raise ValueError(
            f"document: its schema must be {SCHEMA!r}; got {document.get('schema')!r}. "
            "Pass what `variegrad monitor --json` prints, from this version of variegrad."
        )
    return [
        HistoryPoint(
            step=int(raw["step"]),
            first_step=int(raw.get("first_step", 0)),
            batch_size=int(raw["batch_size"]),
            usual_batch_size=int(raw.get("usual_batch_size") or raw["batch_size"]),
            bound=number(raw["batch_size_bound"]),
            low=number(raw["low"]),
            high=number(raw["high"]),
            lower_confidence_bound=number(raw["lower_confidence_bound"]),
            cannot_tell=bool(raw["cannot_tell"]),
            source=str(raw["source"]),
            pooled_steps=int(raw["pooled_steps"]),
            skipped=int(raw["skipped"]),
            unit=str(raw.get("unit", "examples")),
            geometry=str(raw.get("geometry", "euclidean")),
        )
        for raw in document["readings"]
    ]


def evenly(points: Sequence[HistoryPoint], most: int = DRAWN) -> list[HistoryPoint]:
    """At most this many points, spread evenly over the steps, with the first and the last.

    Args:
        points: in the order of their steps.
        most: at least 2.

    Returns:
        All of them if there are no more.
    """
    if len(points) <= most:
        return list(points)
    first, last = points[0].step, points[-1].step
    width = (last - first) / (most - 1) or 1.0
    # The last point of each interval of steps; the first interval is the first point alone.
    return list({math.ceil((point.step - first) / width): point for point in points}.values())
