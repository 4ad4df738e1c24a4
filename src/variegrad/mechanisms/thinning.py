"""Independent Bernoulli(q_l) draws of which few succeed, without looking at every coordinate: exact, by thinning.

Points of a Poisson process with intensity K·q_l at coordinate l, K = 2·ln 2, each kept with probability
−ln(1−q_l)/(K·q_l), are a Poisson process with intensity −ln(1−q_l): a coordinate has none with probability 1 − q_l,
independently of the others. That ratio is at most 1 for q_l ≤ ½. Larger ones are decided singly: Σ q_l² ≤ 1, so an
example has three at most.
A point's row is drawn first, then its column: if |g| = |r|⊗|c| the two do not depend on each other and g is never
formed; the same uniform numbers give the same points either way, up to rounding.

Source: Lewis and Shedler 1979 (thinning).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from variegrad.mechanisms.masks import Array

HALF = 0.5
K = 2 * math.log(2)  # −ln(1−q) ≤ K·q for q ≤ ½


def of_rows(sizes: Array, norms: Array, streams: Iterator[np.random.Generator]) -> tuple[Array, Array]:
    """Successes with probabilities |g_l|/‖g‖.

    Args:
        sizes: |g|, (t, rows, columns).
        norms: ‖g‖ over all parameters, (t,).
        streams: of each example.

    Returns:
        Example and coordinate of each success, once each.
    """
    columns = sizes.shape[2]
    flat = sizes.reshape(len(sizes), -1)
    sums = np.cumsum(flat, 1, dtype=np.float64)
    found = []
    for i, generator in enumerate(streams):
        if not flat.shape[1] or not sums[i, -1] > 0:
            continue
        u = generator.random((3, generator.poisson(K * sums[i, -1] / norms[i])))
        ends = sums[i, columns - 1 :: columns]
        row = _chosen(ends, u[0])
        begin = np.where(row > 0, ends[row - 1], 0.0)
        at = np.searchsorted(sums[i], begin + u[1] * (ends[row] - begin), "right")
        at = np.clip(at, row * columns, (row + 1) * columns - 1)
        q = flat[i] / norms[i : i + 1]  # float64
        hit, large = _thinned(q[at], u[2]), np.flatnonzero(q > HALF)
        single = large[generator.random(len(large)) < q[large]]
        at = np.unique(np.concatenate((at[hit], single)))  # several points of one coordinate are one success
        found.append((np.full(len(at), i), at))
    example, at = _joined(found, 2)
    return example, at


def of_products(
    left: Array, right: Array, norms: Array, streams: Iterator[np.random.Generator]
) -> tuple[Array, Array, Array]:
    """Successes with probabilities |r_a|·|c_b|/‖g‖.

    Args:
        left: |r|, (b, rows).
        right: |c|, (b, columns).
        norms: ‖g‖ over all parameters, (b,).
        streams: of each example.

    Returns:
        Example, row and column of each success, once each.
    """
    rows, columns = (np.cumsum(each, 1, dtype=np.float64) for each in (left, right))
    largest = right.max(1, initial=0).astype(np.float64)
    width = right.shape[1]
    found = []
    for i, generator in enumerate(streams):
        if not (left.shape[1] and width and rows[i, -1] > 0 and columns[i, -1] > 0):
            continue
        r, c = left[i].astype(np.float64), right[i].astype(np.float64)
        u = generator.random((3, generator.poisson(K * rows[i, -1] * columns[i, -1] / norms[i])))
        a, b = _chosen(rows[i], u[0]), _chosen(columns[i], u[1])
        hit = _thinned(r[a] * c[b] / norms[i], u[2])
        at = a[hit] * width + b[hit]
        for row in np.flatnonzero(r * largest[i] / norms[i] > 0.99 * HALF):
            large = np.flatnonzero(r[row] * c / norms[i] > HALF)
            at = np.append(at, row * width + large[generator.random(len(large)) < r[row] * c[large] / norms[i]])
        at = np.unique(at)
        found.append((np.full(len(at), i), at // width, at % width))
    example, a, b = _joined(found, 3)
    return example, a, b


def _chosen(sums: Array, u: Array) -> Array:
    """Coordinates in proportion to what their running sums grow by."""
    chosen: Array = np.minimum(np.searchsorted(sums, u * sums[-1], "right"), len(sums) - 1)
    return chosen


def _thinned(q: Array, u: Array) -> Array:
    small: Array = (q <= HALF) & (u * K * q < -np.log1p(-np.minimum(q, HALF)))
    return small


def _joined(found: Sequence[tuple[Array, ...]], parts: int) -> tuple[Array, ...]:
    if not found:
        return (np.zeros(0, np.int64),) * parts
    return tuple(np.concatenate(each) for each in zip(*found, strict=True))
