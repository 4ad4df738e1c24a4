"""The law of the masks: two coordinates share a byte and are independent all the same."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from variegrad.mechanisms import masks

PROBABILITIES = [0.6, 0.5, 0.3, 1 / 3, 0.9, 0.999, 1 - 1e-9, 1e-9, 0.01, 127 / 256, 0.0, 1.0, 1 / 16, 2.0**-20]


@pytest.mark.parametrize("q", PROBABILITIES)
def test_a_byte_and_a_tie_decide_two_coordinates_with_the_stated_probabilities(q):
    # Exactly, by enumeration of all bytes: both, one and none to 2⁻⁵⁰.
    law = masks.pair(q)
    units, whole = [0, *law.cuts, 2**masks.BITS], Fraction(1, 256)
    found = {(a, b): Fraction(0) for a in (False, True) for b in (False, True)}
    for byte in range(256):
        if byte < 256 - law.ties:
            found[byte < law.first, (byte - law.shift) % 256 < law.second] += whole
            continue
        for low, high in pairwise(units):
            said = low < law.cuts[1], law.cuts[0] <= low < law.cuts[2]
            found[said] += whole * Fraction(high - low, 2**masks.BITS)
    assert law.ties <= 3
    for (a, b), share in found.items():
        wanted = (Fraction(q) if a else 1 - Fraction(q)) * (Fraction(q) if b else 1 - Fraction(q))
        assert abs(share - wanted) <= Fraction(1, 2**50)


@pytest.mark.parametrize("q", [0.6, 0.31, 0.997, 0.004])
@pytest.mark.parametrize("columns", [40, 64, 130])
def test_neighbours_and_the_two_of_a_byte_are_independent(q, columns):
    # z-values of pair products over 20,000 samples; 5 standard errors for some hundred pairs.
    n = 20_000
    found = masks.kept((2, columns), 99, range(n), q)
    half, flat = masks.bytes_of(columns), found.reshape(n, -1) - q
    spread = q * (1 - q)
    assert abs(found.mean() - q) < 4 * (spread / found.size) ** 0.5
    assert (np.abs(flat.mean(0)) < 5 * (spread / n) ** 0.5).all()
    rows = flat.reshape(n, 2, columns)
    pairs = [
        rows[:, :, : columns - half] * rows[:, :, half:],
        rows[:, :, 1:] * rows[:, :, :-1],
        rows[:, 0] * rows[:, 1],
    ]
    pairs.append(rows[1:] * rows[:-1])  # samples that follow each other
    for product in pairs:
        assert (np.abs(product.mean(0)) < 5 * spread / n**0.5 + 3 / n).all()


@pytest.mark.parametrize("q", PROBABILITIES)
@pytest.mark.parametrize("columns", [1, 31, 32, 33, 63, 64, 65, 100, 197])
def test_compiled_code_keeps_the_same_coordinates(q, columns):
    compiled = masks._compiled()
    if compiled is None:
        pytest.skip("numba is not installed")
    samples, key = [3, 0, 2**40, 2**63 - 1], (5 << 64) | 9
    wanted = masks.kept((7, columns), key, samples, q)
    given = np.ones((4, 7, columns))
    law = masks._Law(key, samples, q)
    compiled.keep(given, *law.plain, 0, 4)
    assert np.array_equal(given != 0, wanted)
    for kind in (np.float32, np.float64):
        total = np.zeros((7, columns), kind)
        compiled.add_kept_rows(total, np.ones((4, 7, columns), kind), *law.plain, 0, 7)
        assert np.array_equal(total, wanted.sum(0))
        compiled.add_kept(total, -np.ones((4, 7), kind), np.ones((4, columns), kind), *law.plain, 0, 7)
        assert not total.any()


def test_a_mask_does_not_depend_on_which_samples_are_drawn_beside_it():
    whole = masks.kept((5, 70), 1, range(20, 30), 0.4)
    assert np.array_equal(whole[[7, 2]], masks.kept((5, 70), 1, [27, 22], 0.4))


def test_which_implementation_adds_up_does_not_depend_on_what_was_done_before():
    # A run that is resumed in another process must come to the same bits.
    if masks._compiled() is None:
        pytest.skip("numba is not installed")
    work = masks.WORTH_COMPILING
    assert masks._implementation(work - 1) is None
    assert masks._implementation(work) is masks._compiled()
