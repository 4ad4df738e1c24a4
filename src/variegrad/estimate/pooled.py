"""B_D pooled over many steps: a ratio of sums, with a delete-block jackknife.

ρ̂ = ΣÛ_k/ΣM̂²_k over steps k; a mean of the steps' own ratios would be far off. Consecutive steps share a block, so that
their correlation stays inside; the blocks are at most `max_blocks`, and merge pairwise when full. Blocks of unequal
length (the last is filling) enter by the delete-m_j jackknife: with h_j = N/N_j and pseudo-values
τ_j = h_jρ̂ − (h_j−1)ρ̂₍₋ⱼ₎, V = (1/K)Σ(τ_j − τ̄)²/(h_j−1), which is the usual jackknife where the blocks are equal.

Source: Busing, Meijer and van der Leeden (1999) for unequal blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self

import torch

from variegrad.estimate.batch_size_estimate import BatchSizeEstimate, estimate_from_coherence
from variegrad.estimate.coherence import Coherence
from variegrad.estimate.step_moments import StepMoments


class PooledCoherence:
    """A running ratio of sums over steps, in bounded memory: three numbers for each of at most `max_blocks` blocks.

    A million steps take no more room than `max_blocks` of them. Weights should stay about the same while one pool
    fills: it estimates the mean over those steps.

    Attributes:
        max_blocks: even, at least 16.
    """

    def __init__(self, max_blocks: int = 64) -> None:
        if max_blocks < 16 or max_blocks % 2:
            raise ValueError(
                f"max_blocks must be even and at least 16, for a variance to mean something; got {max_blocks}."
            )
        self.max_blocks = max_blocks
        self._capacity = 1
        self._steps: list[int] = []
        self._products: list[float] = []
        self._norms: list[float] = []

    @property
    def steps(self) -> int:
        """Steps pooled so far."""
        return sum(self._steps)

    def add(self, moments: StepMoments) -> None:
        """Pools one more step.

        Args:
            moments: (Û, M̂²) of the step.

        Raises:
            ValueError: if either is not finite; nothing is pooled then.
        """
        if not (math.isfinite(moments.mean_product) and math.isfinite(moments.mean_sq_norm)):
            raise ValueError(f"moments must be finite; got {moments}. Leave a step with NaN or inf gradients out.")
        if self._steps and self._steps[-1] < self._capacity:
            self._steps[-1] += 1
            self._products[-1] += moments.mean_product
            self._norms[-1] += moments.mean_sq_norm
            return
        if len(self._steps) == self.max_blocks:
            self._merge()
        self._steps.append(1)
        self._products.append(moments.mean_product)
        self._norms.append(moments.mean_sq_norm)

    def estimate(self, *, population: int | None = None, confidence: float = 0.95) -> BatchSizeEstimate:
        """B̂_D over all pooled steps, with `count` = steps.

        Args:
            population: n where each step's examples are distinct members of a data set of n; None for fresh data. Steps
                are taken as independent draws: the interval narrows with them, without a finite-population correction.
            confidence: nominal level of the two-sided interval.

        Returns:
            The estimate; no interval ("cannot tell") below 8 steps.

        Raises:
            ValueError: if nothing was pooled.
        """
        if not self._steps:
            raise ValueError("nothing was pooled yet: add(StepMoments(...)) at least one step before estimate().")
        coherence = _block_jackknife(self._steps, self._products, self._norms)
        found = estimate_from_coherence(coherence, population=population, confidence=confidence, sampled_fraction=0.0)
        return dataclasses_replace(found, count=self.steps)

    def state_dict(self) -> dict[str, list[float]]:
        """Plain numbers that survive a checkpoint, about 3·max_blocks of them.

        Returns:
            What `from_state_dict` takes.
        """
        return {
            "layout": [float(self.max_blocks), float(self._capacity)],
            "steps": [float(s) for s in self._steps],
            "products": list(self._products),
            "sq_norms": list(self._norms),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, list[float]]) -> Self:
        """The pool that `state_dict` described.

        Args:
            state: of `state_dict`.

        Returns:
            A pool that goes on from there.

        Raises:
            ValueError: if the state is not one of `state_dict`.
        """
        if state.keys() != {"layout", "steps", "products", "sq_norms"}:
            raise ValueError(f"state must be what PooledCoherence.state_dict() returned; got the keys {sorted(state)}.")
        max_blocks, capacity = state["layout"]
        pool = cls(int(max_blocks))
        pool._capacity = int(capacity)
        pool._steps = [int(s) for s in state["steps"]]
        pool._products, pool._norms = list(state["products"]), list(state["sq_norms"])
        return pool

    def _merge(self) -> None:
        self._steps = _pairwise(self._steps)
        self._products, self._norms = _pairwise(self._products), _pairwise(self._norms)
        self._capacity *= 2


def _block_jackknife(steps: list[int], products: list[float], norms: list[float]) -> Coherence:
    size = torch.tensor(steps, dtype=torch.float64)
    product, norm = torch.tensor(products, dtype=torch.float64), torch.tensor(norms, dtype=torch.float64)
    value = product.sum() / norm.sum()
    zero = torch.zeros_like(value)
    if len(steps) < 2:
        return Coherence(value, torch.full_like(value, torch.inf), zero, zero, len(steps))
    share = size.sum() / size
    without = (product.sum() - product) / (norm.sum() - norm)
    pseudo = share * value - (share - 1) * without
    variance = ((pseudo - pseudo.mean()).square() / (share - 1)).mean()
    return Coherence(value, variance, zero, zero, len(steps))


def _pairwise[T: (int, float)](values: list[T]) -> list[T]:
    return [a + b for a, b in zip(values[::2], values[1::2], strict=True)]
