"""Step sizes tuned alike everywhere: octaves, extended until the best is interior, then refined to quarter octaves.

A step size is written as k quarter octaves: the learning rate of the mean gradient is η = 2^(k/4), and γ = η/B. Its
score is the mean over the tuning seeds plus one standard error, so that a step size that fails with some seed loses.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from variegrad.experiments.records import Cell, Record
from variegrad.experiments.verdict import Check

OCTAVE = 4  # quarters
EXTENSIONS = 8  # octaves that a grid may grow by on either side


@dataclass(frozen=True, kw_only=True)
class Search:
    """How far the search for one configuration's step size has come.

    Attributes:
        cells: every tuning cell that is needed as far as is known, finished or not.
        best: quarter octaves of the tuned step size; None while cells are missing.
        interior: whether neighbours on both sides were tried, as near as asked for, and found no better.
        tried: scores by quarter octaves, the smaller the better; +inf if a run diverged.
    """

    cells: list[Cell]
    best: int | None
    interior: bool
    tried: Mapping[int, float]


def step_size(quarter_octaves: int, batch_size: int) -> float:
    """γ = 2^(k/4)/B of the summed gradient.

    Args:
        quarter_octaves: k.
        batch_size: B.

    Returns:
        γ.
    """
    return float(2.0 ** (quarter_octaves / OCTAVE) / batch_size)


def interior(searches: Sequence[Search]) -> Check:
    """Whether every configuration's best step size has no better neighbour on either side.

    Args:
        searches: of all configurations, finished.

    Returns:
        The check.
    """
    inside, tried = sum(found.interior for found in searches), [len(found.tried) for found in searches]
    return Check(
        claim="every configuration's tuned step size is interior to its grid", met=inside == len(searches),
        found=f"{inside} of {len(searches)} configurations, {min(tried)} to {max(tried)} step sizes each",
    )  # fmt: skip


def search(
    cell_at: Callable[[int, int], Cell],
    score: Callable[[Record], float],
    records: Mapping[str, Record],
    *,
    grid: Sequence[int],
    seeds: Sequence[int],
    finest: int = 1,
) -> Search:
    """The tuning cells of one configuration: its grid, its extensions and its refinement.

    Args:
        cell_at: (quarter octaves, seed) → the cell.
        score: of a finished record, smaller is better; not finite if the run diverged.
        records: what is finished.
        grid: quarter octaves to begin with.
        seeds: of the tuning runs.
        finest: how near the neighbours of the best must be, in quarter octaves.

    Returns:
        The state of the search.

    Raises:
        ValueError: if no step size gives a finite score.
    """
    scores: dict[int, float] = {}
    asked = sorted(grid)
    while True:
        cells = [cell_at(k, seed) for k in asked for seed in seeds]
        if any(cell.key not in records for cell in cells):
            return Search(cells=cells, best=None, interior=False, tried=scores)
        for k in asked:
            scores[k] = pessimistic([score(records[cell_at(k, seed).key]) for seed in seeds])
        best = min(scores, key=lambda k: (scores[k], k))
        if not math.isfinite(scores[best]):
            raise ValueError(
                f"every step size from 2^{min(scores) / OCTAVE:g} to 2^{max(scores) / OCTAVE:g} diverged ({cells[0]}). "
                "Begin the grid at smaller step sizes."
            )
        more = _next(best, sorted(scores), grid, finest)
        if not more:
            return Search(cells=cells, best=best, interior=min(scores) < best < max(scores), tried=scores)
        asked = sorted({*asked, *more})


def pessimistic(values: Sequence[float]) -> float:
    """The mean plus one standard error.

    Args:
        values: a score per tuning seed.

    Returns:
        The sum; +inf if one of them is not finite.
    """
    if not all(map(math.isfinite, values)):
        return math.inf
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return statistics.fmean(values) + error


def _next(best: int, tried: Sequence[int], grid: Sequence[int], finest: int) -> list[int]:
    """A step of the grid (an octave at most) beyond the border, or the middles between the best and its neighbours."""
    step = min([OCTAVE, *(b - a for a, b in pairwise(sorted(grid)))])
    low = max((k for k in tried if k < best), default=None)
    high = min((k for k in tried if k > best), default=None)
    if low is None:
        return [best - step] if best > min(grid) - EXTENSIONS * OCTAVE else []
    if high is None:
        return [best + step] if best < max(grid) + EXTENSIONS * OCTAVE else []
    return [(k + best) // 2 for k in (low, high) if abs(k - best) > finest]
