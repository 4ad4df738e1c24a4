"""Batches: any nesting of tensors whose first dimension is the example, and the passes over them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from variegrad.rows import Rows

Batch = Any


def map_tensors(function: Callable[[Tensor], Tensor], batch: Batch) -> Batch:  # noqa: PLR0911 - a kind of nesting each
    """The same nesting with `function` applied to every tensor; everything else is passed on as it is.

    Args:
        function: what to do with a tensor.
        batch: a tensor, or any nesting of mappings, sequences, named tuples and dataclasses that holds tensors.

    Returns:
        The nesting, rebuilt; mappings of a type of their own (such as a tokenizer's output) become plain dicts
        where their type cannot be rebuilt from a dict.
    """
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        items = {key: map_tensors(function, value) for key, value in batch.items()}
        try:
            return type(batch)(items)  # type: ignore[call-arg]
        except TypeError:
            return items
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(function, value) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)([map_tensors(function, value) for value in batch])
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = {f.name: map_tensors(function, getattr(batch, f.name)) for f in dataclasses.fields(batch) if f.init}
        return dataclasses.replace(batch, **fields)
    return batch


def tensors(batch: Batch) -> list[Tensor]:
    """Every tensor of the nesting, in order.

    Args:
        batch: any nesting.

    Returns:
        Its tensors.
    """
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(note, batch)
    return found


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`; tensors that are there already are not copied.

    Args:
        batch: any nesting of tensors.
        device: where to.

    Returns:
        The batch there.
    """
    return map_tensors(lambda t: t.to(device, non_blocking=True), batch)


def shared_length(batch: Batch) -> int | None:
    """The common first dimension b of all tensors of the batch; None if they have none, or one cannot be cut (sparse).

    Args:
        batch: any nesting of tensors.

    Returns:
        b, or None.
    """
    lengths = {len(t) if t.dim() and t.layout == torch.strided else None for t in tensors(batch)}
    count = lengths.pop() if len(lengths) == 1 else None
    return None if any(_is_column(leaf, count) for leaf in _other_leaves(batch)) else count


def _is_column(leaf: Any, count: int | None) -> bool:
    # A list or an array with one entry for each example would be passed on whole when the tensors are cut.
    return isinstance(leaf, Sized) and not isinstance(leaf, str | bytes) and len(leaf) == count


def _other_leaves(batch: Batch) -> Iterator[Any]:
    if isinstance(batch, Tensor):
        return
    if isinstance(batch, Mapping):
        for value in batch.values():
            yield from _other_leaves(value)
    elif isinstance(batch, list | tuple):
        if batch and not any(tensors(value) for value in batch):
            yield batch
        for value in batch:
            yield from _other_leaves(value)
    elif not dataclasses.is_dataclass(batch):
        yield batch


def split(batch: Batch, size: int | None) -> Iterator[Batch]:
    """The batch in consecutive parts of at most `size` examples.

    Args:
        batch: any nesting of tensors.
        size: examples per part; None for the whole.

    Yields:
        The parts.

    Raises:
        ValueError: if the tensors have no common first dimension to cut.
    """
    if size is None:
        yield batch
        return
    count = shared_length(batch)
    if count is None:
        lengths = [tuple(t.shape) for t in tensors(batch)]
        raise ValueError(
            f"chunk_size needs tensors that share their first dimension; got shapes {lengths}. A list or array with "
            "one entry per example cannot be split either: convert it to a tensor."
        )
    for start in range(0, count, size):
        yield map_tensors(lambda t, s=start: t[s : s + size], batch)  # type: ignore[misc]


def collated(examples: list[Any]) -> Batch:
    """`default_collate`, except that the rows of one batch are that batch, not copied.

    Args:
        examples: of one batch.

    Returns:
        The batch.
    """
    return examples.batch if isinstance(examples, Rows) else default_collate(examples)


def passes_over(data: Any, batch_size: int) -> Iterable[Batch]:
    """One pass over the data in its own order, as batches.

    Args:
        data: a `DataLoader` or any other iterable of batches (used as it is), or a data set of examples.
        batch_size: examples per batch if `data` is a data set, ≥ 1.

    Returns:
        An iterable of batches; sized if the data is.

    Raises:
        TypeError: if the data cannot be iterated, or is a single batch.
        ValueError: if `batch_size` is below one.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 example; got {batch_size}.")
    if type(data) is TensorDataset:  # not its subclasses, which may transform what they return
        return _Slices(data.tensors, batch_size)
    if isinstance(data, Dataset):
        if not isinstance(data, IterableDataset) and len(data) == 0:  # type: ignore[arg-type]
            return []
        return DataLoader(data, batch_size=batch_size, collate_fn=collated)
    # Iterating over these would take a tensor's rows, a dict's keys or a pair's halves for batches.
    if isinstance(data, Tensor | Mapping) or (isinstance(data, tuple) and any(isinstance(t, Tensor) for t in data)):
        raise TypeError(
            f"data must be batches or a data set; got one {type(data).__name__}. For a single batch, pass [batch]; "
            "for the tensors of a whole data set, pass torch.utils.data.TensorDataset(x, y)."
        )
    if type(data).__module__ == "numpy":
        raise TypeError(
            "data must be batches or a data set of tensors; got a NumPy array. Pass "
            "TensorDataset(torch.from_numpy(x), torch.from_numpy(y)) of torch.utils.data."
        )
    if isinstance(data, list) and data and not _is_batch(data[0]):
        raise TypeError(
            f"data must be batches, whose first dimension is the example; the first entry of the list is one example "
            f"({_shapes(data[0])}). Wrap a list of examples: torch.utils.data.DataLoader(data, batch_size=64)."
        )
    if not isinstance(data, Iterable):
        raise TypeError(f"data must be a DataLoader, a Dataset or an iterable of batches; got {type(data).__name__}.")
    return data


def _is_batch(entry: Any) -> bool:
    # Of an example such as (x, y), the label has no dimension; of a batch, every tensor has the example's.
    found = tensors(entry)
    return not (len(found) > 1 and any(t.dim() == 0 for t in found) and isinstance(entry, tuple | Mapping))


def _shapes(entry: Any) -> str:
    return "shapes " + ", ".join(str(tuple(t.shape)) for t in tensors(entry))


class _Slices:
    """Contiguous slices of a TensorDataset: the same batches as a DataLoader's, without touching single examples."""

    def __init__(self, columns: tuple[Tensor, ...], batch_size: int) -> None:
        self.columns, self.batch_size = columns, batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.columns[0]) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for start in range(0, len(self.columns[0]), self.batch_size):
            yield tuple(column[start : start + self.batch_size] for column in self.columns)
