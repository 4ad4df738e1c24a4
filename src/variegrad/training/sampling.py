"""Which examples an update uses: a pure function of (seed, position), the position counted in samples seen.

Sample number ℓ of a run, s_ℓ of equation (2), does not depend on the batch size, on the number of workers, or on what
was drawn before it: a run can be continued anywhere, also with batches of another size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from variegrad.keys import epoch_order, generator

BLOCK = 1024  # samples that share a key; a batch reads the blocks it touches


@runtime_checkable
class Sampling(Protocol):
    """How examples are drawn."""

    def batch(self, seed: int, position: int, batch_size: int, count: int) -> Int[Tensor, " b"]:
        """The examples of the update that begins at this position.

        Args:
            seed: the run's seed.
            position: samples seen before it.
            batch_size: B.
            count: n.

        Returns:
            At most B indices in 0 … n−1, at least one.
        """

    def updates(self, position: int, batch_size: int, count: int) -> int:
        """How many updates lead from the start of a run to this position.

        Args:
            position: samples seen.
            batch_size: B.
            count: n.

        Returns:
            The number of updates, the last one begun counted as made.
        """


@dataclass(frozen=True)
class WithReplacement(Sampling):
    """Each sample is uniform over the n examples, independent of the others (Section 3): B may exceed n."""

    def __str__(self) -> str:
        return "with replacement"

    def batch(self, seed: int, position: int, batch_size: int, count: int) -> Int[Tensor, " b"]:
        first, last = position // BLOCK, (position + batch_size - 1) // BLOCK
        blocks = [generator(seed, "draw", block).integers(0, count, size=BLOCK) for block in range(first, last + 1)]
        drawn = torch.cat([torch.from_numpy(block) for block in blocks])
        return drawn[position - first * BLOCK :][:batch_size]

    def updates(self, position: int, batch_size: int, count: int) -> int:  # noqa: ARG002 - a protocol's argument
        return -(-position // batch_size)


@dataclass(frozen=True)
class Epochs(Sampling):
    """Each pass visits every example once, in an order of its own; the last batch of a pass may be short."""

    def __str__(self) -> str:
        return "without replacement"

    def batch(self, seed: int, position: int, batch_size: int, count: int) -> Int[Tensor, " b"]:
        epoch, place = divmod(position, count)
        return _order(seed, epoch, count)[place : place + batch_size]

    def updates(self, position: int, batch_size: int, count: int) -> int:
        epoch, place = divmod(position, count)
        return epoch * -(-count // batch_size) + -(-place // batch_size)


@lru_cache(maxsize=2)  # every update of a pass reads the same order
def _order(seed: int, epoch: int, count: int) -> Int[Tensor, " n"]:
    return epoch_order(seed, epoch, count)
