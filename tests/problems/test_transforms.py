"""Subsets, r-replication and neighbouring data sets, on every kind of data set they may be given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from variegrad.problems import neighbours, replicate
from variegrad.problems.sparse_rows import SparseRows
from variegrad.problems.subset import permutation, size, some


class Plain(Dataset[dict[str, Tensor]]):
    """A user's own data set: nested examples, no indexing by tensors."""

    def __init__(self, count: int, first: int = 0) -> None:
        self.count, self.first = count, first

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": torch.tensor([self.first + index, 1]), "y": torch.tensor(self.first + index)}


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        yield torch.zeros(1)


def dense(count: int, first: int = 0) -> TensorDataset:
    numbers = torch.arange(first, first + count)
    return TensorDataset(torch.stack([numbers.float() + 1, torch.ones(count)], 1), numbers)


def sparse(count: int, first: int = 0) -> SparseRows:
    features, labels = dense(count, first).tensors
    return SparseRows(csr_matrix(features.numpy()), labels)


KINDS = [dense, sparse, Plain]
Make = Callable[..., Dataset[Any]]


def keys(dataset: Dataset[Any]) -> list[int]:
    """Examples by their label, which is unique in the data sets above; features are checked to belong to it."""
    found = []
    for index in range(size(dataset)):
        example = dataset[index]
        features, label = (example["x"], example["y"]) if isinstance(example, dict) else example
        assert int(features[0]) == int(label) + (not isinstance(example, dict))
        found.append(int(label))
    return found


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize(("count", "times"), [(12, 1), (12, 3), (12, 12), (10, 3), (10, 4), (7, 5), (1, 1)])
def test_replication_keeps_n_and_repeats_a_fraction_r_times(make: Make, count: int, times: int) -> None:
    data = replicate(make(count), times, seed=3)
    copies = sorted(Counter(keys(data)).values(), reverse=True)
    whole, rest = divmod(count, times)
    assert copies == [times] * whole + [rest] * (rest > 0)
    assert size(data) == count


@pytest.mark.parametrize("make", KINDS)
def test_replication_is_a_function_of_its_seed(make: Make) -> None:
    once, again, other = (keys(replicate(make(40), 4, seed=seed)) for seed in (1, 1, 2))
    assert once == again != other
    assert set(once) != set(other)


def test_replication_leaves_the_original_and_the_global_generator_alone() -> None:
    data, before = dense(9), torch.get_rng_state()
    replicate(data, 3, seed=0)
    neighbours(data, seed=0)
    assert keys(data) == list(range(9))
    assert torch.equal(torch.get_rng_state(), before)


def test_copies_do_not_stand_together() -> None:
    labels = keys(replicate(dense(400), 4, seed=0))
    # 400 shuffled places: about three neighbouring pairs are copies by chance, three hundred would be unshuffled.
    assert sum(one == other for one, other in pairwise(labels)) < 20


@pytest.mark.parametrize("times", [0, -1, 11])
def test_impossible_replication_is_refused(times: int) -> None:
    with pytest.raises(ValueError, match=f"times must lie between 1 and the 10 examples of the data set; got {times}"):
        replicate(dense(10), times, seed=0)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("fresh", [True, False])
def test_neighbours_differ_in_exactly_one_example(make: Make, fresh: bool) -> None:
    held_out = make(5, first=100) if fresh else None
    twins = neighbours(make(8), held_out, seed=4)
    one, other = keys(twins.first), keys(twins.second)
    assert one == list(range(8))
    assert [index for index in range(8) if one[index] != other[index]] == [twins.position]
    assert other[twins.position] == twins.replacement + 100 * fresh


@pytest.mark.parametrize("make", KINDS)
def test_neighbours_are_a_function_of_the_seed(make: Make) -> None:
    found = {
        (twins.position, twins.replacement)
        for seed in [0, 0, *range(20)]
        for twins in [neighbours(make(50), seed=seed)]
    }
    assert len(found) >= 15


@pytest.mark.parametrize("seed", range(10))
def test_an_equal_example_is_passed_over(seed: int) -> None:
    data = TensorDataset(torch.tensor([[1.0], [1.0], [1.0], [2.0]]), torch.zeros(4).long())
    twins = neighbours(data, seed=seed)
    assert int((data.tensors[0] != twins.second[torch.arange(4)][0]).sum()) == 1


def test_neighbours_that_cannot_differ_are_refused() -> None:
    alike = TensorDataset(torch.ones(3, 2))
    with pytest.raises(ValueError, match="no example of the data set differs from example"):
        neighbours(alike, seed=0)
    with pytest.raises(ValueError, match="no example of the held-out data differs"):
        neighbours(alike, alike, seed=0)
    with pytest.raises(ValueError, match="the data set is empty"):
        neighbours(TensorDataset(torch.ones(0, 2)), alike, seed=0)


@pytest.mark.parametrize("make", KINDS)
def test_a_smaller_subset_is_contained_in_a_larger_one(make: Make) -> None:
    small, large = keys(some(make(30), 5, seed=2)), keys(some(make(30), 12, seed=2))
    assert large[:5] == small
    assert len(set(large)) == 12
    assert keys(some(make(30), 5, seed=3)) != small


def test_a_subset_that_is_everything_is_the_data_set_itself() -> None:
    data = dense(4)
    assert some(data, 4, seed=0) is data


def test_permutation_is_of_all_positions() -> None:
    assert sorted(permutation(11, seed=0).tolist()) == list(range(11))


def test_a_subclass_of_tensor_dataset_keeps_its_own_way_of_reading() -> None:
    class Doubled(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            return tuple(2 * column for column in super().__getitem__(index))

    data = Doubled(torch.arange(6))
    assert sorted(int(example) for (example,) in (some(data, 5, seed=0)[i] for i in range(5)))[-1] >= 8


def test_a_data_set_without_length_is_refused() -> None:
    with pytest.raises(TypeError, match=r"the data set must have a length, len\(dataset\); Endless has none"):
        replicate(Endless(), 2, seed=0)
