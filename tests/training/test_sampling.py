"""Sample number ℓ is a function of (seed, ℓ): of neither the batch size nor what was drawn before."""

import itertools
import math
import resource
import time
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from variegrad.permutation import permuted
from variegrad.philox import philox
from variegrad.training import Epochs, WithReplacement
from variegrad.training.sampling import BLOCK

BOTH = pytest.mark.parametrize("sampling", [WithReplacement(), Epochs()], ids=str)


def read(sampling, batch_size, until, count=23, seed=5, start=0):
    position, found = start, []
    while position < until:
        drawn = sampling.batch(seed, position, batch_size, count)
        assert len(drawn) == sampling.length(position, batch_size, count)
        found += drawn.tolist()
        position += len(drawn)
    return found[: until - start]


@BOTH
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2500))
def test_the_order_does_not_depend_on_the_batch_size_nor_on_where_one_begins(sampling, one, other, start):
    whole = read(sampling, one, 3000)
    assert read(sampling, other, 3000) == whole
    assert read(sampling, other, 3000, start=start) == whole[start:]


@BOTH
@pytest.mark.parametrize("count", [1, 2, 23, BLOCK - 1, BLOCK, BLOCK + 1, 10_007, 10**9])
def test_any_part_of_the_order_can_be_had_alone(sampling, count):
    for start in (0, 1, BLOCK - 3, 2 * BLOCK, 3 * count - 2):
        whole = sampling.samples(3, range(start, start + 9), count)
        assert whole.dtype == torch.int64
        assert [int(sampling.samples(3, range(k, k + 1), count)) for k in range(start, start + 9)] == whole.tolist()
        assert len(sampling.samples(3, range(start, start), count)) == 0
        assert 0 <= int(whole.min()) <= int(whole.max()) < count


@pytest.mark.parametrize("count", [1, 2, 3, 23, 4095, 4096, 4097, 4160, 9_999, 65_536, 100_003])
def test_an_epoch_holds_each_example_once_and_epochs_differ(count):
    first, second = (Epochs().samples(1, range(k * count, (k + 1) * count), count) for k in (0, 1))
    assert torch.equal(first.sort().values, torch.arange(count))
    assert torch.equal(second.sort().values, torch.arange(count))
    assert count < 4 or not torch.equal(first, second)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_every_order_of_few_examples_is_equally_likely(count):
    # χ² with n! − 1 degrees of freedom over 6,000 epochs: four of its standard deviations above its mean.
    epochs, orders = 6000, math.factorial(count)
    found = Counter(
        tuple(permuted(np.arange(count, dtype=np.uint64), count, 0, "e", k).tolist()) for k in range(epochs)
    )
    each = epochs / orders
    square = sum((found[order] - each) ** 2 / each for order in itertools.permutations(range(count)))
    assert square < orders - 1 + 4 * math.sqrt(2 * (orders - 1))


def test_a_long_order_is_shuffled():
    # Correlations of 10⁵ places: standard error 1/√n, four of them, with neighbours, far ones and another epoch.
    n = 100_003
    order, other = (permuted(np.arange(n, dtype=np.uint64), n, 2, "epoch", k).astype(float) for k in (0, 1))
    for a, b in (
        (order, np.arange(n)), (order, other), (order[1:], order[:-1]), (order[:-317], order[317:]),
        (order[1:] % 2, order[:-1] % 2), (order % 318, np.arange(n) % 318), (order // 318, np.arange(n) // 318),
    ):  # fmt: skip
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(n)
    # Which numbers come in the first tenth: hypergeometric, close to Binomial(n/20, 0.1) in each twentieth.
    cells = np.histogram(order[: n // 10], bins=20, range=(0, n))[0]
    assert np.abs(cells - n / 200).max() < 4 * math.sqrt(n / 200 * 0.9)


def test_a_billion_examples_are_shuffled_in_no_time_and_no_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    drawn = torch.cat([Epochs().samples(4, range(k, k + 1000), 10**9) for k in range(0, 10**9, 50_000_000)])
    assert time.process_time() - started < 5  # a thousandth of what forming the order takes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
    assert len(set(drawn.tolist())) == len(drawn) == 20_000


def test_draws_with_replacement_are_uniform_and_independent():
    drawn = torch.tensor(read(WithReplacement(), 1000, 100_000, count=10))
    # 10⁵ draws: each count has standard deviation 95, each pair's 31; five of them.
    assert (torch.bincount(drawn, minlength=10) - 10_000).abs().max() < 475
    pairs = torch.bincount(drawn[:-1] * 10 + drawn[1:], minlength=100)
    assert (pairs - 1000).abs().max() < 160
    assert read(WithReplacement(), 9, 99, seed=1) != read(WithReplacement(), 9, 99, seed=2)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 0x299F31D0A4093822,
         (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)  # fmt: skip
def test_philox_gives_its_authors_words(counter, key, words):  # kat_vectors of Random123
    assert tuple(int(word) for word in philox(counter, key)) == words
