"""Some examples of a data set, by their positions: the one operation behind subsets, replication and twin sets."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from variegrad.problems.sparse_rows import SparseRows
from variegrad.shapes import Int


def take(dataset: Dataset[Any], positions: Int[Tensor, " m"]) -> Dataset[Any]:
    """The examples at these positions, in this order, repeats included.

    Args:
        dataset: where they stand.
        positions: of each example wanted.

    Returns:
        A `TensorDataset` or `SparseRows` from one of its kind (a copy), otherwise a `Subset` (a view).
    """
    if type(dataset) is TensorDataset:  # not its subclasses, which may transform what they return
        return TensorDataset(*(column[positions] for column in dataset.tensors))
    if isinstance(dataset, SparseRows):
        return dataset.take(positions)
    return Subset(dataset, positions.tolist())


def some(dataset: Dataset[Any], max_examples: int, *, seed: int) -> Dataset[Any]:
    """At most `max_examples`: the first ones of a seeded permutation, so that a larger subset contains a smaller one.

    Args:
        dataset: what to draw from, without replacement.
        max_examples: how many to keep; a data set that is no larger is returned as it is.
        seed: of the permutation.

    Returns:
        The subset.

    Raises:
        ValueError: if `max_examples` is below one.
        TypeError: if the data set has no length.
    """
    if max_examples < 1:
        raise ValueError(f"max_examples must be at least 1; got {max_examples}.")
    count = size(dataset)
    return dataset if count <= max_examples else take(dataset, permutation(count, seed=seed)[:max_examples])


def size(dataset: Dataset[Any]) -> int:
    """n, the number of examples.

    Args:
        dataset: a map-style data set.

    Returns:
        Its length.

    Raises:
        TypeError: if it has none.
    """
    if not hasattr(dataset, "__len__"):
        raise TypeError(
            f"the data set must have a length, len(dataset); {type(dataset).__name__} has none. "
            "An iterable data set cannot be indexed: collect it into a TensorDataset first."
        )
    return len(cast("Sized", dataset))


def permutation(count: int, *, seed: int) -> Int[Tensor, " n"]:
    """A random order of 0 … n−1 that is a function of the seed.

    Args:
        count: n.
        seed: of the order.

    Returns:
        The order.
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def counted(train: Dataset[Any], test: Dataset[Any] | None) -> str:
    """How many examples there are, in words."""
    return f"{size(train):,} examples" if test is None else f"{size(train):,} training and {size(test):,} test examples"
