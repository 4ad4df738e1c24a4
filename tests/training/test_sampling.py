"""Sample number ℓ is a function of (seed, ℓ): of neither the batch size nor what was drawn before."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from variegrad.training import Epochs, WithReplacement


def read(sampling, batch_size, until, count=23, seed=5, start=0):
    position, found = start, []
    while position < until:
        drawn = sampling.batch(seed, position, batch_size, count)
        found += drawn.tolist()
        position += len(drawn)
    return found[: until - start]


@pytest.mark.parametrize("sampling", [WithReplacement(), Epochs()], ids=str)
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2500))
def test_the_order_does_not_depend_on_the_batch_size_nor_on_where_one_begins(sampling, one, other, start):
    whole = read(sampling, one, 3000)
    assert read(sampling, other, 3000) == whole
    assert read(sampling, other, 3000, start=start) == whole[start:]


@pytest.mark.parametrize("sampling", [WithReplacement(), Epochs()], ids=str)
@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 30))
def test_updates_count_the_batches_before_a_position(sampling, batch_size, count, made):
    position = 0
    for updates in range(made):
        assert sampling.updates(position, batch_size, count) == updates
        position += len(sampling.batch(1, position, batch_size, count))
    assert sampling.updates(position, batch_size, count) == made


def test_an_epoch_holds_each_example_once_and_epochs_differ():
    order = read(Epochs(), 4, 46)
    assert sorted(order[:23]) == sorted(order[23:]) == list(range(23))
    assert order[:23] != order[23:]


def test_draws_with_replacement_are_uniform_and_independent():
    drawn = torch.tensor(read(WithReplacement(), 1000, 100_000, count=10))
    # 10⁵ draws: each count has standard deviation 95, each pair's 31; five of them.
    assert (torch.bincount(drawn, minlength=10) - 10_000).abs().max() < 475
    pairs = torch.bincount(drawn[:-1] * 10 + drawn[1:], minlength=100)
    assert (pairs - 1000).abs().max() < 160
    assert read(WithReplacement(), 9, 99, seed=1) != read(WithReplacement(), 9, 99, seed=2)
