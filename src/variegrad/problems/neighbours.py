"""Neighbouring data sets: S and S′ of equal size that differ in exactly one example (Section 5 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, TensorDataset

from variegrad.problems.subset import size, take


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbours:
    """Two data sets that differ in exactly one example.

    Attributes:
        first: S, the data set as it was given.
        second: S′, equal to S except at `position`.
        position: where they differ.
        replacement: the index in the held-out set (or in S, without one) of the example that replaces it in S′.
    """

    first: Dataset[Any]
    second: Dataset[Any]
    position: int
    replacement: int


def neighbours(dataset: Dataset[Any], held_out: Dataset[Any] | None = None, *, seed: int) -> Neighbours:
    """A data set and its neighbour: one example, chosen at random, is replaced by a different one.

    The replacement is drawn from `held_out`, as uniform stability asks for, or else from the data set itself. Examples
    equal to the one they would replace are skipped, so that the two sets do differ.

    Args:
        dataset: S, n examples.
        held_out: fresh examples of the same kind, a test set for instance.
        seed: of the position and of the replacement.

    Returns:
        Both data sets, and where they differ.

    Raises:
        ValueError: if no example differs from the one to be replaced, or the data set is empty.
        TypeError: if a data set has no length.
    """
    count = size(dataset)
    if count == 0:
        raise ValueError("neighbours: the data set is empty, so that no example can be replaced.")
    generator = torch.Generator().manual_seed(seed)
    position = int(torch.randint(count, (), generator=generator))
    source = dataset if held_out is None else held_out
    for candidate in torch.randperm(size(source), generator=generator).tolist():
        if not _equal(dataset[position], source[candidate]):
            break
    else:
        raise ValueError(
            f"neighbours: no example of the {'data set' if held_out is None else 'held-out data'} differs from "
            f"example {position}, which was to be replaced. Pass held-out data with different examples."
        )
    return Neighbours(
        first=dataset,
        second=_replaced(dataset, position, source, candidate),
        position=position,
        replacement=candidate,
    )


def _replaced(dataset: Dataset[Any], position: int, source: Dataset[Any], candidate: int) -> Dataset[Any]:
    if type(dataset) is TensorDataset and type(source) is TensorDataset:
        columns = [column.clone() for column in dataset.tensors]
        for column, replacement in zip(columns, source.tensors, strict=True):
            column[position] = replacement[candidate]
        return TensorDataset(*columns)
    count = size(dataset)
    positions = torch.arange(count)
    positions[position] = candidate if source is dataset else count + candidate
    return take(dataset if source is dataset else ConcatDataset([dataset, source]), positions)


def _equal(one: Any, other: Any) -> bool:
    """Whether two examples, nested alike, hold the same numbers."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, Sequence) and isinstance(other, Sequence) and not isinstance(one, str):
        return len(one) == len(other) and all(_equal(*pair) for pair in zip(one, other, strict=True))
    return bool(one == other)
