"""`SparseRows` is a `TensorDataset` to whoever reads it."""

from __future__ import annotations

import pytest
import torch
from scipy.sparse import csr_matrix, random
from torch.utils.data import DataLoader, TensorDataset

from variegrad.batches import passes_over
from variegrad.problems.sparse_rows import SparseRows

MATRIX = csr_matrix(random(20, 7, density=0.3, random_state=0))
LABELS = torch.arange(20)
ROWS = SparseRows(MATRIX, LABELS)
DENSE = TensorDataset(torch.from_numpy(MATRIX.toarray()).float(), LABELS)


@pytest.mark.parametrize("index", [3, -1, torch.tensor(4), torch.tensor([5, 2, 2]), [1, 0], slice(2, 9), slice(0, 0)])
def test_every_index_gives_what_dense_rows_give(index: object) -> None:
    for found, expected in zip(ROWS[index], DENSE[index], strict=True):  # type: ignore[index]
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


@pytest.mark.parametrize("batch_size", [1, 6, None])
def test_a_loader_gives_the_same_batches(batch_size: int | None) -> None:
    for found, expected in zip(DataLoader(ROWS, batch_size), DataLoader(DENSE, batch_size), strict=True):
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_a_pass_takes_the_dense_batch_as_it_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = list(DataLoader(DENSE, 6))
    monkeypatch.setattr(torch, "stack", None)  # what copies each row once more
    for found, expected in zip(passes_over(ROWS, 6), dense, strict=True):
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


class Named(list[tuple[torch.Tensor, torch.Tensor]]):
    """A list of a user that happens to have an attribute `batch`, such as the graph of each node."""

    batch = torch.zeros(3)


class Theirs(TensorDataset):
    def __getitems__(self, indices: list[int]) -> Named:
        return Named(self[index] for index in indices)


def test_a_list_of_a_user_is_collated_as_torch_does() -> None:
    for found, expected in zip(passes_over(Theirs(*DENSE.tensors), 6), DataLoader(DENSE, 6), strict=True):
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_one_label_for_each_row() -> None:
    with pytest.raises(ValueError, match="got 20 rows, 3 labels"):
        SparseRows(MATRIX, LABELS[:3])
