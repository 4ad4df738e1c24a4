"""Which examples a run uses: sample number ℓ, s_ℓ of equation (2), is a function of (seed, ℓ) and of nothing else.

Neither the batch size nor the number of workers nor what was drawn before enters it: a run can be continued anywhere,
also with batches of another size, and a worker computes its own samples only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from variegrad.keys import key_of
from variegrad.permutation import permuted
from variegrad.philox import HALF, LOW, philox
from variegrad.shapes import Int

BLOCK = 4096  # samples computed at once and kept: one costs as much as a few hundred


@runtime_checkable
class Sampling(Protocol):
    """How examples are drawn."""

    def length(self, position: int, batch_size: int, count: int) -> int:
        """How many samples the update that begins at a position takes.

        Args:
            position: samples seen before it.
            batch_size: B.
            count: n.

        Returns:
            At most B, at least one.
        """

    def samples(self, seed: int, positions: range, count: int) -> Int[Tensor, " b"]:
        """The examples at some positions of the run.

        Args:
            seed: the run's seed.
            positions: numbers of samples, counted from 0; a range with step one.
            count: n.

        Returns:
            Their indices in 0 … n−1, one for each position.
        """

    def batch(self, seed: int, position: int, batch_size: int, count: int) -> Int[Tensor, " b"]:
        """The examples of the whole update that begins at a position.

        Args:
            seed: the run's seed.
            position: samples seen before it.
            batch_size: B.
            count: n.

        Returns:
            Their indices.
        """
        return self.samples(seed, range(position, position + self.length(position, batch_size, count)), count)


@dataclass(frozen=True)
class WithReplacement(Sampling):
    """Each sample is uniform over the n examples, independent of the others (Section 3): B may exceed n."""

    def length(self, position: int, batch_size: int, count: int) -> int:  # noqa: ARG002 - a protocol's arguments
        return batch_size

    def samples(self, seed: int, positions: range, count: int) -> Int[Tensor, " b"]:
        return _of_blocks(partial(_uniform, seed, count), positions.start, positions.stop)

    def __str__(self) -> str:
        return "with replacement"


@dataclass(frozen=True)
class Epochs(Sampling):
    """Each pass visits every example once, in an order of its own; the last batch of a pass may be short."""

    def length(self, position: int, batch_size: int, count: int) -> int:
        return min(batch_size, count - position % count)

    def samples(self, seed: int, positions: range, count: int) -> Int[Tensor, " b"]:
        parts: list[Tensor] = []
        position = positions.start
        while position < positions.stop or not parts:
            epoch, place = divmod(position, count)
            stop = min(count, place + positions.stop - position)
            parts.append(_of_blocks(partial(_shuffled, seed, count, epoch), place, stop))
            position += stop - place
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __str__(self) -> str:
        return "without replacement"


@dataclass(frozen=True)
class Stream(Sampling):
    """Data without end: sample number ℓ of the run is `dataset[ℓ]`, fresh and independent of the others (n = ∞).

    The data set needs no length: its `__getitem__` makes or fetches the sample of a number. A run resumes by its
    position like any other.

    Attributes:
        per_pass: how many samples count as a pass, for `passes` and cadences; None if there are none.

    Raises:
        ValueError: if `per_pass` is below one.
    """

    per_pass: int | None = None

    def __post_init__(self) -> None:
        if self.per_pass is not None and self.per_pass < 1:
            raise ValueError(f"Stream: per_pass must be at least 1 sample; got {self.per_pass}.")

    def length(self, position: int, batch_size: int, count: int) -> int:  # noqa: ARG002 - a protocol's arguments
        return batch_size

    def samples(self, seed: int, positions: range, count: int) -> Int[Tensor, " b"]:  # noqa: ARG002 - as above
        return torch.arange(positions.start, positions.stop)

    def __str__(self) -> str:
        return "from a stream"


def _of_blocks(make: Callable[[int], Tensor], start: int, stop: int) -> Int[Tensor, " b"]:
    """Numbers start … stop − 1 of a sequence that is computed in blocks."""
    first, last = start // BLOCK, max(start, stop - 1) // BLOCK
    blocks = [make(block) for block in range(first, last + 1)]
    drawn = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
    return drawn[start - first * BLOCK :][: stop - start]


@lru_cache(maxsize=4)  # the updates of a block's samples read the same block
def _uniform(seed: int, count: int, block: int) -> Int[Tensor, " samples"]:
    positions = np.arange(block * BLOCK, (block + 1) * BLOCK, dtype=np.uint64)
    low, high, *_ = philox((positions & LOW, positions >> HALF, 0, 0), key_of(seed, "draw"))
    # Uniform to within n/2⁶⁴, less than any number of draws can show.
    return torch.from_numpy((((high << HALF) | low) % np.uint64(count)).astype(np.int64))


@lru_cache(maxsize=4)
def _shuffled(seed: int, count: int, epoch: int, block: int) -> Int[Tensor, " samples"]:
    places = np.arange(block * BLOCK, min((block + 1) * BLOCK, count), dtype=np.uint64)
    return torch.from_numpy(permuted(places, count, seed, "epoch", epoch).astype(np.int64))
