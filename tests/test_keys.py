"""Draws are functions of their key: the same on every machine, different for every purpose."""

import numpy as np
import pytest
import torch

from variegrad.keys import generator, hashed, torch_draws


@pytest.fixture(autouse=True)
def _global_state_is_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - to see that it is not touched
    yield
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_a_stream_is_pinned_for_ever():
    # Were this to change, every recorded run would.
    assert generator(0, "epoch", 0).integers(0, 1000, 5).tolist() == [877, 554, 378, 36, 853]


def test_equal_keys_give_equal_draws_and_different_keys_different_ones():
    keys = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "a", "1"), (0, "a0")]
    draws = [generator(*key).random(4).tolist() for key in keys]
    assert draws == [generator(*key).random(4).tolist() for key in keys]
    assert len({tuple(d) for d in draws}) == len(keys)


def test_torch_draws_inside_the_block_are_a_function_of_the_key():
    def drawn(*key):
        with torch_draws(*key):
            return torch.rand(3)

    assert torch.equal(drawn(0, "update", 1), drawn(0, "update", 1))
    assert not torch.equal(drawn(0, "update", 1), drawn(0, "update", 2))


def test_the_state_is_given_back_after_an_error_too():
    with pytest.raises(RuntimeError, match="inside"), torch_draws(0, "x"):
        raise RuntimeError("inside")


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, torch.tensor, np.array], ids=lambda kind: kind.__name__)
def test_a_whole_number_of_any_type_is_the_same_key(kind):
    assert hashed(kind(3), "a", kind(5)) == hashed(3, "a", 5)


@pytest.mark.parametrize("part", [1.5, 3.0, None, b"a"])
def test_what_is_neither_text_nor_whole_number_is_no_key(part):
    with pytest.raises(TypeError):
        hashed(0, part)
