"""Step sizes tuned for every arm alike: a grid of octaves, extended until the best is interior, then refined by √2.

A step size is written as k half octaves: the learning rate of the mean gradient is η = 2^(k/2), and γ = η/B.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from variegrad.experiments.records import Cell, Record
from variegrad.experiments.verdict import Check

EXTENSIONS = 8  # octaves that a grid may grow by on either side


@dataclass(frozen=True, kw_only=True)
class Search:
    """How far the search for one arm's step size has come.

    Attributes:
        cells: every cell that the arm needs as far as is known, finished or not.
        best: half octaves of the tuned step size; None while cells are missing.
        interior: whether worse step sizes were tried on both sides of it.
        tried: mean score over the tuning repeats by half octaves.
    """

    cells: list[Cell]
    best: int | None
    interior: bool
    tried: Mapping[int, float]


def step_size(half_octaves: int, batch_size: int) -> float:
    """γ = 2^(k/2)/B of the summed gradient.

    Args:
        half_octaves: k.
        batch_size: B.

    Returns:
        γ.
    """
    return float(2.0 ** (half_octaves / 2) / batch_size)


def interior(searches: Sequence[Search]) -> Check:
    """Whether every arm's best step size has worse ones on both sides.

    Args:
        searches: of all arms, finished.

    Returns:
        The check.
    """
    inside, tried = sum(found.interior for found in searches), [len(found.tried) for found in searches]
    return Check(
        claim="every arm's tuned step size is interior to its grid", met=inside == len(searches),
        found=f"{inside} of {len(searches)} arms, {min(tried)} to {max(tried)} step sizes each",
    )  # fmt: skip


def search(
    cell_at: Callable[[int, int], Cell],
    score: Callable[[Record], float],
    records: Mapping[str, Record],
    *,
    grid: Sequence[int],
    seeds: Sequence[int],
    tuning_seeds: Sequence[int] | None = None,
) -> Search:
    """The cells of one arm: its grid, its extensions, its refinement, and all repeats at the best.

    The best step size has the least mean score over the tuning repeats; a run that diverged scores +inf.

    Args:
        cell_at: (half octaves, seed) → the arm's cell.
        score: of a finished record, smaller is better.
        records: what is finished.
        grid: even numbers of half octaves, two apart: whole octaves.
        seeds: of all repeats.
        tuning_seeds: of the repeats that the choice rests on; all of them by default.

    Returns:
        The state of the search.

    Raises:
        ValueError: if no step size gives a finite score.
    """
    tuning = seeds if tuning_seeds is None else tuning_seeds
    scores: dict[int, float] = {}
    asked = sorted(grid)
    while True:
        cells = [cell_at(k, seed) for k in asked for seed in tuning]
        if any(cell.key not in records for cell in cells):
            return Search(cells=cells, best=None, interior=False, tried=scores)
        for k in asked:
            found = [score(records[cell_at(k, seed).key]) for seed in tuning]
            mean = sum(found) / len(found)
            scores[k] = math.inf if math.isnan(mean) else mean
        best = min(scores, key=lambda k: (scores[k], k))
        if not math.isfinite(scores[best]):
            raise ValueError(
                f"every step size from 2^{min(scores) / 2:g} to 2^{max(scores) / 2:g} diverged ({cells[0]}). "
                "Begin the grid at smaller step sizes."
            )
        more = [k for k in _next(best, scores, grid) if k not in scores]
        if not more:
            every = cells + [cell_at(best, seed) for seed in seeds if seed not in tuning]
            return Search(cells=every, best=best, interior=min(scores) < best < max(scores), tried=scores)
        asked = sorted({*asked, *more})


def _next(best: int, scores: Mapping[int, float], grid: Sequence[int]) -> list[int]:
    low, high = min(scores), max(scores)
    if best == low and low > min(grid) - 2 * EXTENSIONS:
        return [low - 2]
    if best == high and high < max(grid) + 2 * EXTENSIONS:
        return [high + 2]
    return [best - 1, best + 1] if best % 2 == min(grid) % 2 else []  # one refinement: half octaves beside an octave
