"""Reading examples by their indices, here or in reader processes; what a data set draws is a function of its sample.

A data set that augments its examples draws the same for the same sample of the run, no matter which reader loads it:
torch's default generator, `random` and `numpy.random` are seeded by (seed, number of the sample) and given back. Only a
data set that draws pays for it.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, get_worker_info

from variegrad.batches import Batch, collated
from variegrad.keys import hashed
from variegrad.shapes import Int

Read = Callable[[Int[Tensor, " b"], int], Batch]
Collate = Callable[[list[Any]], Batch]
Part = tuple[Int[Tensor, " b"], int]  # indices, and the number in the run of the first of them
AHEAD = 4  # batches that each reader process prepares
GRACE_SECONDS = 30  # that readers continue after a request to end, so that the update under way has its examples


def reader(dataset: Dataset[Any], seed: int, collate_fn: Collate | None = None) -> Read:
    """How to read a batch: by slicing if the data set is tensors, else example by example.

    Args:
        dataset: any map-style data set.
        seed: of the random draws of the data set itself.
        collate_fn: makes a batch of a list of examples; torch's `default_collate` by default.

    Returns:
        (indices, number in the run of the first of them) → batch.
    """
    return _Keyed(dataset, seed, collate_fn).read


@contextmanager
def readers(
    dataset: Dataset[Any],
    seed: int,
    parts: Iterator[Part],
    count: int,
    collate_fn: Collate | None = None,
    *,
    pin_memory: bool = False,
) -> Iterator[Read]:
    """Reader processes that prepare the parts of a run in its order, some batches ahead.

    Args:
        dataset: any map-style data set.
        seed: of the random draws of the data set itself.
        parts: what will be asked for, in that order.
        count: how many processes; 0 to read here, when asked.
        collate_fn: as for `reader`.
        pin_memory: whether batches are put where an accelerator fetches them from faster.

    Yields:
        (indices, number in the run of the first of them) → batch.
    """
    keyed = _Keyed(dataset, seed, collate_fn)
    if count == 0:
        yield keyed.read
        return
    loader = DataLoader(
        keyed, batch_size=None, sampler=parts, num_workers=count, prefetch_factor=AHEAD, pin_memory=pin_memory,
        worker_init_fn=outlive_requests_to_end, generator=torch.Generator(),  # the global one is left alone
    )  # fmt: skip
    batches = iter(loader)

    def read(indices: Int[Tensor, " b"], position: int) -> Batch:
        first, count, batch = next(batches)
        assert (first, count) == (position, len(indices))  # the run reads what it said that it would
        return batch

    try:
        yield read
    finally:
        del batches  # which ends the processes


class _Keyed(Dataset[Any]):
    """A data set whose items are batches: `self[indices, position]`."""

    def __init__(self, dataset: Dataset[Any], seed: int, collate_fn: Collate | None) -> None:
        self.dataset, self.seed = dataset, seed
        self.collate_fn = collate_fn
        # Not subclasses, which may transform what they return.
        self.columns = dataset.tensors if type(dataset) is TensorDataset and collate_fn is None else None
        self.several = getattr(dataset, "__getitems__", None)
        self.draws = False  # whether the data set was seen to draw
        self._left: tuple[Any, ...] | None = None

    def __getitem__(self, part: Part) -> tuple[int, int, Batch]:
        indices, position = part
        return position, len(indices), self.read(indices, position)

    def read(self, indices: Int[Tensor, " b"], position: int) -> Batch:
        """The batch of some examples.

        Args:
            indices: which.
            position: the number in the run of the first of them.

        Returns:
            The batch.
        """
        if self.columns is not None:
            return tuple(column.index_select(0, indices) for column in self.columns)
        wanted = indices.tolist()
        # In a reader nothing else draws: the state that it leaves is the state that it finds.
        before = _state() if self._left is None else self._left
        if not self.draws:
            items = self.several(wanted) if self.several else [self.dataset[index] for index in wanted]
            after = _state()
            self._left = after if get_worker_info() else None
            if after == before:
                return self._collated(items, position)
            self.draws = True
        try:
            # One stream for all would depend on how a batch is shared: each sample has its own.
            items = [self._drawn(index, number) for number, index in enumerate(wanted, position)]
        finally:
            if get_worker_info() is None:
                _set_state(before)
        return self._collated(items, position)

    def _collated(self, items: list[Any], position: int) -> Batch:
        """One batch of the examples; what a user's function draws for it is keyed by its first sample."""
        if self.collate_fn is None:
            return collated(items)
        before, self._left = None if get_worker_info() else _state(), None
        _seed(self.seed, "batch", position)
        try:
            return self.collate_fn(items)
        finally:
            if before is not None:
                _set_state(before)

    def _drawn(self, index: int, number: int) -> Any:
        _seed(self.seed, "example", number)
        return self.several([index])[0] if self.several else self.dataset[index]


def _seed(seed: int, purpose: str, number: int) -> None:
    key = int.from_bytes(hashed(seed, purpose, number), "little")
    torch.default_generator.manual_seed(key % 2**63)
    random.seed(key)
    np.random.seed(key % 2**32)  # noqa: NPY002 - it is the data set that uses it


def _state() -> tuple[bytes, Any, bytes, Any]:
    # All of numpy's: half of its normal numbers are left over from the one before, and move no word.
    _, words, *rest = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), np.asarray(words).tobytes(), rest


def _set_state(state: tuple[bytes, Any, bytes, Any]) -> None:
    torch.set_rng_state(torch.frombuffer(bytearray(state[0]), dtype=torch.uint8))
    random.setstate(state[1])
    np.random.set_state(("MT19937", np.frombuffer(state[2], np.uint32), *state[3]))  # noqa: NPY002


def outlive_requests_to_end(_number: int) -> None:
    """For a reader process: Ctrl-C and SIGTERM reach all of a job, and the run needs examples to stop well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS) and None)
