"""Draws are functions of their key: the same on every machine, different for every purpose."""

import numpy as np
import pytest
import torch

from variegrad.keys import draws_with_replacement, epoch_order, generator, torch_draws


@pytest.fixture(autouse=True)
def _global_state_is_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - to see that it is not touched
    yield
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_a_stream_is_pinned_for_ever():
    # Were this to change, every recorded run would.
    assert generator(0, "epoch", 0).integers(0, 1000, 5).tolist() == [877, 554, 378, 36, 853]
    assert epoch_order(0, 0, 8).tolist() == [1, 0, 7, 5, 6, 2, 4, 3]


def test_equal_keys_give_equal_draws_and_different_keys_different_ones():
    keys = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "a", "1"), (0, "a0")]
    draws = [generator(*key).random(4).tolist() for key in keys]
    assert draws == [generator(*key).random(4).tolist() for key in keys]
    assert len({tuple(d) for d in draws}) == len(keys)


def test_an_epoch_visits_each_example_once_in_an_order_of_its_own():
    first, second = epoch_order(3, 0, 50), epoch_order(3, 1, 50)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(50))
    assert not torch.equal(first, second)
    assert torch.equal(first, epoch_order(3, 0, 50))


def test_draws_with_replacement_are_uniform():
    drawn = torch.cat([draws_with_replacement(0, step, 100, 10) for step in range(100)])
    counts = torch.bincount(drawn, minlength=10).double()
    # 10,000 draws over 10 cells: χ² with 9 degrees of freedom exceeds 27.9 once in a thousand seeds.
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 27.9
    assert torch.equal(draws_with_replacement(0, 5, 7, 10), draws_with_replacement(0, 5, 7, 10))
    assert not torch.equal(draws_with_replacement(0, 5, 7, 10), draws_with_replacement(0, 6, 7, 10))


def test_torch_draws_inside_the_block_are_a_function_of_the_key():
    def drawn(*key):
        with torch_draws(*key):
            return torch.rand(3)

    assert torch.equal(drawn(0, "update", 1), drawn(0, "update", 1))
    assert not torch.equal(drawn(0, "update", 1), drawn(0, "update", 2))


def test_the_state_is_given_back_after_an_error_too():
    with pytest.raises(RuntimeError, match="inside"), torch_draws(0, "x"):
        raise RuntimeError("inside")
