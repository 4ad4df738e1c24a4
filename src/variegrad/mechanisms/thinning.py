"""Independent Bernoulli(q_l) draws of which few succeed, without looking at every coordinate: exact, by thinning.

Points of a Poisson process with intensity K·q_l at coordinate l, K = 2·ln 2, each kept with probability
−ln(1−q_l)/(K·q_l), are a Poisson process with intensity −ln(1−q_l): a coordinate has none with probability 1 − q_l,
independently of the others. That ratio is at most 1 for q_l ≤ ½. Larger ones are decided singly: Σ q_l² ≤ 1, so an
example has three at most.
The process runs along the rows: exponential gaps of rate 1 up to K·Σq_l, and a point lies in the row where the running
sum of K·q_l passes it. Its column is drawn by a number of its own: one number for both would turn an error in the last
place of the sums into another column. If |g| = |r|⊗|c|, the running sums of r and c say where a point lies and g is
never formed; the same numbers give the same points either way, up to rounding.

Source: Lewis and Shedler 1979 (thinning).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from variegrad.mechanisms.masks import BITS, Array, Words, hashes, settled

HALF = 0.5
K = 2 * math.log(2)  # −ln(1−q) ≤ K·q for q ≤ ½


def of_rows(
    sizes: Array, sums: Array, columns: int, norms: Array, key: int, samples: Sequence[int]
) -> tuple[Array, Array]:
    """Successes with probabilities |g_l|/‖g‖.

    Args:
        sizes: |g|, (t, coordinates).
        sums: their running sums in float64, (t, coordinates).
        columns: coordinates of a row.
        norms: ‖g‖ over all parameters, (t,).
        key: 128 bits.
        samples: the numbers of the t samples.

    Returns:
        Example and coordinate of each success, once each.
    """
    if not sizes.size:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    example, place, across, u = _points(sums[:, -1], norms, key, samples)
    at, last, parts = np.empty(len(place), np.int64), sizes.shape[1] - 1, _each(example)
    ends = np.ascontiguousarray(sums[:, columns - 1 :: columns])
    for i, here in parts:
        at[here] = np.searchsorted(ends[i], place[here], "right")
    row = np.minimum(at, ends.shape[1] - 1)
    before = np.where(row > 0, ends[example, row - 1], 0.0)
    inside = before + across * (ends[example, row] - before)
    for i, here in parts:
        at[here] = np.searchsorted(sums[i], inside[here], "right")
    at = np.clip(at, row * columns, (row + 1) * columns - 1)
    hit = _thinned(sizes[example, at] / norms[example], u)
    found = [example[hit] * (last + 1) + at[hit]]
    keys = hashes(key, samples)
    for i in np.flatnonzero(sizes.max(1) > 0.99 * HALF * norms).tolist():
        large = np.flatnonzero(sizes[i] > 0.99 * HALF * norms[i])
        found.append(i * (last + 1) + _single(large, sizes[i, large] / norms[i], keys[i]))
    successes = _once(found)
    return successes // (last + 1), successes % (last + 1)


def of_products(
    left: Array, right: Array, norms: Array, key: int, samples: Sequence[int]
) -> tuple[Array, Array, Array]:
    """Successes with probabilities |r_a|·|c_b|/‖g‖.

    Args:
        left: |r|, (b, rows).
        right: |c|, (b, columns).
        norms: ‖g‖ over all parameters, (b,).
        key: 128 bits.
        samples: the numbers of the b samples.

    Returns:
        Example, row and column of each success, once each.
    """
    if not (left.size and right.size):
        return (np.zeros(0, np.int64),) * 3
    left, right = left.astype(np.float64), right.astype(np.float64)
    rows, columns = np.cumsum(left, 1), np.cumsum(right, 1)
    height, width = left.shape[1], right.shape[1]
    example, place, across, u = _points(rows[:, -1] * columns[:, -1], norms, key, samples)
    row, column = np.empty((2, len(place)), np.int64)
    along, across = place / columns[example, -1], across * columns[example, -1]
    for i, here in _each(example):
        row[here] = np.searchsorted(rows[i], along[here], "right")
        column[here] = np.searchsorted(columns[i], across[here], "right")
    np.minimum(row, height - 1, out=row)
    np.minimum(column, width - 1, out=column)
    hit = _thinned(left[example, row] * right[example, column] / norms[example], u)
    found = [(example[hit] * height + row[hit]) * width + column[hit]]
    keys, largest = hashes(key, samples), right.max(1)
    for i, a in np.argwhere(left * largest[:, None] > 0.99 * HALF * norms[:, None]):
        large = np.flatnonzero(left[i, a] * right[i] > 0.99 * HALF * norms[i])
        chosen = _single(a * width + large, left[i, a] * right[i, large] / norms[i], keys[i])
        found.append(i * height * width + chosen)
    successes = _once(found)
    return successes // (height * width), successes // width % height, successes % width


def _points(sums: Array, norms: Array, key: int, samples: Sequence[int]) -> tuple[Array, Array, Array, Array]:
    """Points of each sample's process, ascending: whose, where along its running sum, and two uniform numbers."""
    live = sums > 0
    rates = np.divide(K * sums, norms, out=np.zeros_like(sums), where=live)
    most = float(rates.max(initial=0))
    count = 4 * math.ceil(most / 4 + 2 * math.sqrt(most) + 4)  # nearly always enough; three words each, in whole calls
    words, numbers = Words(key), [int(sample) for sample in samples]
    while True:
        raw = np.zeros((len(numbers), 3 * count), "<u8")
        for i in np.flatnonzero(live):
            raw[i] = words.at(numbers[i], 0, 24 * count).view("<u8")
        uniform = (raw >> np.uint64(11)) * 2.0**-BITS
        place = np.cumsum(-np.log1p(-uniform[:, ::3]), 1)
        if (place[live, -1] >= rates[live]).all():
            break
        count *= 2
    inside = place < rates[:, None]
    example = np.nonzero(inside)[0]
    return example, place[inside] * (norms / K)[example], uniform[:, 1::3][inside], uniform[:, 2::3][inside]


def _each(example: Array) -> list[tuple[int, slice]]:
    """The examples that have points, and where these are."""
    starts = np.flatnonzero(np.diff(example, prepend=-1))
    return [(int(example[a]), slice(a, b)) for a, b in pairwise([*starts.tolist(), len(example)])]


def _thinned(q: Array, u: Array) -> Array:
    small: Array = (q <= HALF) & (u * K * q < -np.log1p(-np.minimum(q, HALF)))
    return small


def _single(coordinates: Array, q: Array, key: np.uint64) -> Array:
    """Which of the coordinates above one half succeed."""
    u = settled(key, coordinates.astype(np.uint64)) * 2.0**-BITS
    chosen: Array = coordinates[(q > HALF) & (u < q)]
    return chosen


def _once(found: list[Array]) -> Array:
    """Several points of one coordinate are one success."""
    successes = np.sort(np.concatenate(found))
    once: Array = successes[np.diff(successes, prepend=-1) != 0]
    return once
