"""Reading examples by their indices; what a data set draws at random is a function of (seed, position in the run)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, default_collate

from variegrad.batches import Batch
from variegrad.keys import generator, torch_draws

Read = Callable[[Int[Tensor, " b"], int], Batch]


def reader(dataset: Dataset[Any], seed: int) -> Read:
    """How to read a batch: by slicing where the data set is tensors, else example by example.

    A data set that augments its examples by torch's default generator draws the same for the same sample of the run,
    however many workers share the batch. Draws from other generators (random, numpy) are not controlled.

    Args:
        dataset: any map-style data set.
        seed: of the random draws of the data set itself.

    Returns:
        (indices, position of the first of them in the run) → batch.
    """
    if type(dataset) is TensorDataset:  # not its subclasses, which may transform what they return
        columns = dataset.tensors
        return lambda indices, _position: tuple(column[indices] for column in columns)
    several = getattr(dataset, "__getitems__", None)
    if several is not None:
        draws = False  # whether the data set was seen to draw

        def read_together(indices: Int[Tensor, " b"], position: int) -> Batch:
            nonlocal draws
            if not draws:
                with torch_draws(seed, "examples", position):
                    before = torch.get_rng_state()
                    found = several(indices.tolist())
                    draws = not torch.equal(torch.get_rng_state(), before)
                if not draws:
                    return default_collate(found)
            # One stream for all would depend on how a batch is shared: each sample has its own.
            return default_collate(_drawn(lambda index: several([index])[0], indices.tolist(), seed, position))

        return read_together

    def read(indices: Int[Tensor, " b"], position: int) -> Batch:
        return default_collate(_drawn(dataset.__getitem__, indices.tolist(), seed, position))

    return read


def _drawn(one: Callable[[int], Any], indices: Sequence[int], seed: int, position: int) -> list[Any]:
    read = []
    with torch_draws(seed, "examples", position):
        for sample, index in enumerate(indices, position):
            torch.default_generator.manual_seed(int(generator(seed, "example", sample).integers(2**63)))
            read.append(one(index))
    return read
