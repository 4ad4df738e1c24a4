"""Runs from the start with a tuned learning rate: which rate is best, and how many examples a target loss takes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from variegrad.experiments.records import Record


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """Runs from the start with the learning rate tuned for each batch size and target.

    Attributes:
        best: half octaves of the rate that takes B₀ to the last target first.
        targets: losses, one per checkpoint.
        examples: batch size → examples to each target at its best rate; +inf if none reached it.
        interior: whether `best` has worse rates on both sides.
    """

    best: int
    targets: Sequence[float]
    examples: Mapping[int, Sequence[float]]
    interior: bool

    @classmethod
    def of(cls, arms: Mapping[int, Record], grid: Sequence[int], length: int, starts: Sequence[int]) -> Tuned:
        """From the curves of every batch size; the smallest is B₀."""
        base = arms[min(arms)]
        targets = [min(_loss_at(base, j, length / s) for j in range(len(grid))) for s in starts]
        to_last = [_reached(base, j, targets[-1]) for j in range(len(grid))]
        best = min(range(len(grid)), key=to_last.__getitem__)
        examples = {
            size: [min(_reached(record, j, target) for j in range(len(grid))) for target in targets]
            for size, record in arms.items()
        }
        return cls(best=grid[best], targets=targets, examples=examples, interior=0 < best < len(grid) - 1)


def _points(record: Record, rate: int) -> list[tuple[float, float]]:
    return [(0.0, record["start_loss"]), *zip(record["examples"], record["losses"][rate], strict=True)]


def _loss_at(record: Record, rate: int, examples: float) -> float:
    """The loss of a curve, between its points linear in the logarithm of both."""
    points = _points(record, rate)[1:]
    for (n, loss), (m, after) in itertools.pairwise(points):
        if n <= examples <= m and math.isfinite(loss + after):
            share = math.log(examples / n) / math.log(m / n)
            return float(loss * (after / loss) ** share)
    return math.inf


def _reached(record: Record, rate: int, target: float) -> float:
    """Examples after which a curve first reaches the target."""
    points = _points(record, rate)
    for (n, loss), (m, after) in itertools.pairwise(points):
        if after <= target:
            if not math.isfinite(loss) or loss <= target:
                return float(m)
            share = math.log(loss / target) / math.log(loss / after)
            return float(n + share * (m - n))
    return math.inf
