"""B_D pooled over many steps: a ratio of sums, with a delete-block jackknife.

ρ̂ = ΣÛ_k/ΣM̂²_k over steps k; a mean of the steps' own ratios would be far off. Consecutive steps share a block, so that
their correlation stays inside; the blocks are at most `max_blocks`, and merge pairwise when full. Limits, also from
blocks of unequal length (the last is filling): `variegrad.estimators.ratio_of_sums`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from variegrad.estimators.batch_size_estimate import BatchSizeEstimate, estimate_from_coherence
from variegrad.estimators.coherence import least_coherence
from variegrad.estimators.ratio_of_sums import Block, ratio_limits, ratio_of_sums
from variegrad.estimators.step_moments import StepMoments


class PooledCoherence:
    """A running ratio of sums over steps, in bounded memory: three numbers for each of at most `max_blocks` blocks.

    A million steps take no more room than `max_blocks` of them. A pool estimates the mean over its steps: begin a new
    one where the answer has moved on.

    Args:
        max_blocks: even, at least 16; between half as many and all of them are in use once they were full.

    Raises:
        ValueError: if it is odd or smaller.
    """

    def __init__(self, max_blocks: int = 64) -> None:
        if max_blocks < 16 or max_blocks % 2:
            raise ValueError(
                f"max_blocks must be even and at least 16, for a variance to mean something; got {max_blocks}."
            )
        self.max_blocks = max_blocks
        self._capacity = 1
        self._blocks: list[Block] = []

    @property
    def steps(self) -> int:
        """Steps pooled so far."""
        return int(sum(steps for steps, _, _ in self._blocks))

    def add(self, moments: StepMoments) -> None:
        """Pools one more step.

        Args:
            moments: (Û, M̂²) of the step.

        Raises:
            ValueError: if either is not finite; nothing is pooled then.
        """
        if not all(map(math.isfinite, moments)):
            raise ValueError(f"moments must be finite; got {moments}. Leave a step with NaN or inf gradients out.")
        step = (1.0, float(moments.mean_product), float(moments.mean_sq_norm))
        if self._blocks and self._blocks[-1][0] < self._capacity:
            self._blocks[-1] = _sum(self._blocks[-1], step)
            return
        if len(self._blocks) == self.max_blocks:
            self._blocks = [_sum(a, b) for a, b in zip(self._blocks[::2], self._blocks[1::2], strict=True)]
            self._capacity *= 2
        self._blocks.append(step)

    def estimate(self, *, population: int | None = None, confidence: float = 0.95) -> BatchSizeEstimate:
        """B̂_D over all pooled steps, with `count` = steps.

        Args:
            population: n where each step's examples are distinct members of a data set of n; None for fresh data. Steps
                count as independent draws: there is no finite-population correction of the interval over steps.
            confidence: nominal level of the two-sided interval.

        Returns:
            The estimate; no interval ("cannot tell") below 8 steps.

        Raises:
            ValueError: if nothing was pooled.
        """
        if not self._blocks:
            raise ValueError("nothing was pooled yet: add(StepMoments(...)) at least one step before estimate().")
        found = pooled_estimate(self._blocks, population=population, confidence=confidence)
        return dataclasses.replace(found, count=self.steps)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers that survive a checkpoint, about 3·max_blocks of them.

        Returns:
            What `from_state_dict` takes.
        """
        return {"max_blocks": self.max_blocks, "capacity": self._capacity, "blocks": [list(b) for b in self._blocks]}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> PooledCoherence:
        """The pool that `state_dict` described.

        Args:
            state: of `state_dict`.

        Returns:
            A pool that continues from there.

        Raises:
            ValueError: if the state is not one of `state_dict`.
        """
        if state.keys() != {"max_blocks", "capacity", "blocks"}:
            raise ValueError(f"state must be what PooledCoherence.state_dict() returned; got the keys {sorted(state)}.")
        pool = cls(int(state["max_blocks"]))
        pool._capacity = int(state["capacity"])
        pool._blocks = [(float(steps), float(product), float(norm)) for steps, product, norm in state["blocks"]]
        return pool


def pooled_estimate(blocks: Sequence[Block], *, population: int | None, confidence: float) -> BatchSizeEstimate:
    """B̂_D from blocks of unequal size.

    Args:
        blocks: the size of each (steps, or another weight), and ΣÛ and ΣM̂² over it, weighted likewise.
        population: n, or None for fresh data.
        confidence: nominal level of the two-sided interval.

    Returns:
        The estimate, with `count` = blocks.
    """
    ratio = ratio_of_sums(blocks)
    return estimate_from_coherence(
        ratio.coherence,
        population=population,
        confidence=confidence,
        sampled_fraction=0.0,
        limits=ratio_limits(ratio, confidence=confidence, least=least_coherence(population)),
    )


def _sum(a: Block, b: Block) -> Block:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]
