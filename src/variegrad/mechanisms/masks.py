"""Bernoulli masks by counter: whether coordinate (row, column) of a sample's gradient is kept is a function of a key.

A call of Philox4x64-10 (Salmon et al. 2011) with counter (call, 0, sample, 0) gives the bytes of 32 columns of a row; a
row has whole calls. A byte below ⌊256·q⌋ keeps its coordinate; one that equals it is settled by 53 bits of a keyed
hash, so that P(kept) = q to double precision. A row that is zero changes no other draw, and any implementation gives
the same masks: compiled if numba is installed (the extra `fast`), or here by numpy's own Philox, whose raw words do not
change from one version of numpy to another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, partial
from importlib import import_module
from typing import Any

import numpy as np

from variegrad.mechanisms.threads import run, threads_for

Array = np.ndarray[Any, np.dtype[Any]]

COLUMNS = 32  # of a call: one byte each
TOGETHER = 1 << 23  # coordinates whose masks are held at once
WORTH_COMPILING = 1 << 18  # coordinates: loading the compiled code takes a second
BYTE, BITS = 256, 53
GOLDEN, FIRST, SECOND = (np.uint64(k) for k in (0x9E3779B97F4A7C15, 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53))


def add_kept(total: Array, left: Array, right: Array, key: int, samples: Sequence[int], q: float) -> None:
    """Add Σ_i of what is kept of left_i ⊗ right_i.

    Args:
        total: (rows, columns), contiguous.
        left: (b, rows).
        right: (b, columns).
        key: 128 bits.
        samples: the numbers of the b samples.
        q: the probability of keeping.
    """
    compiled, rows = _implementation(len(left) * total.size), len(total)
    live: Array = np.logical_and(left != 0, np.any(right, axis=1, keepdims=True))
    cuts = threads_for(len(left) * total.size, rows)
    if compiled is None:
        run([partial(_add_kept, total, left, right, live, key, samples, q, *cut) for cut in cuts])
        return
    fixed = _for_compiled(key, samples, q)
    left, right = np.ascontiguousarray(np.where(live, left, 0)), np.ascontiguousarray(right)
    run([partial(compiled.add_kept, total, left, right, *fixed, *cut) for cut in cuts])


def keep(given: Array, key: int, samples: Sequence[int], q: float) -> None:
    """Set to zero, in place, what is not kept.

    Args:
        given: (t, rows, columns), contiguous.
        key: 128 bits.
        samples: the numbers of the t samples.
        q: the probability of keeping.
    """
    compiled = _implementation(given.size)
    cuts = threads_for(given.size, len(given))
    if compiled is None:
        run([partial(_keep, given, key, samples, q, *cut) for cut in cuts])
    else:
        run([partial(compiled.keep, given, *_for_compiled(key, samples, q), *cut) for cut in cuts])


def kept(shape: tuple[int, int], key: int, samples: Sequence[int], q: float) -> Array:
    """The masks themselves.

    Args:
        shape: rows and columns.
        key: 128 bits.
        samples: the numbers of the t samples.
        q: the probability of keeping.

    Returns:
        Booleans, (t, rows, columns).
    """
    masks = np.empty((len(samples), *shape), bool)
    for mask, sample in zip(masks, samples, strict=True):
        _Bytes(key, sample, shape[1]).kept(0, shape[0], q, mask)
    return masks


def _add_kept(
    total: Array, left: Array, right: Array, live: Array, key: int, samples: Sequence[int], q: float,
    first: int, last: int,
) -> None:  # fmt: skip
    columns = total.shape[1]
    streams = [_Bytes(key, sample, columns, first) for sample in samples]
    step = max(1, TOGETHER // max(1, len(left) * columns))
    mask = np.empty((len(left), min(step, last - first), columns), bool)
    for start in range(first, last, step):
        stop = min(start + step, last)
        for i, stream in enumerate(streams):
            if live[i, start:stop].any():
                stream.kept(start, stop, q, mask[i, : stop - start])
        for row in range(start, stop):
            if len(here := np.flatnonzero(live[:, row])):
                total[row] += left[here, row] @ (right[here] * mask[here, row - start])


def _keep(given: Array, key: int, samples: Sequence[int], q: float, first: int, last: int) -> None:
    mask = np.empty(given.shape[1:], bool)
    for i in range(first, last):
        if given[i].any():
            _Bytes(key, samples[i], given.shape[2]).kept(0, given.shape[1], q, mask)
            given[i] *= mask


def _implementation(work: int) -> Any:
    return _compiled() if work >= WORTH_COMPILING else None


@cache
def _compiled() -> Any:
    try:
        return import_module("variegrad.compiled_masks")  # an extra, and slow to import
    except Exception:  # noqa: BLE001 - no numba, none that loads, or no folder for what it compiles: numpy has the masks
        return None


def _for_compiled(key: int, samples: Sequence[int], q: float) -> tuple[Any, ...]:
    numbers = np.array(samples, np.uint64)
    keys = np.array([hash_key(key, sample) for sample in samples], np.uint64)
    limit, rest = threshold(q)
    return numbers, keys, np.uint64(key & (2**64 - 1)), np.uint64(key >> 64), limit, np.uint64(rest)


class _Bytes:
    """The bytes of one sample's rows, in order."""

    def __init__(self, key: int, sample: int, columns: int, first: int = 0) -> None:
        self.calls = -(-columns // COLUMNS)
        self.row = first
        # numpy's generator steps its counter before it draws.
        self._bits = np.random.Philox(key=key, counter=((sample << 128) + first * self.calls - 1) % 2**256)
        self._hash = hash_key(key, sample)

    def kept(self, start: int, stop: int, q: float, out: Array) -> None:
        """Write the masks of rows start … stop − 1."""
        rows, columns = out.shape
        if start != self.row:
            self._bits.advance((start - self.row) * self.calls)
        self.row = stop
        raw = self._bits.random_raw(rows * self.calls * 4).astype("<u8", copy=False)
        found = raw.view(np.uint8).reshape(rows, -1)[:, :columns]
        limit, rest = threshold(q)
        np.less(found, limit, out=out)
        if rest:
            ties = nonzero((found == limit).reshape(-1))
            flat = out.reshape(-1)
            flat[ties] = settled(self._hash, np.uint64(start * columns) + ties.astype(np.uint64)) < rest


def threshold(q: float) -> tuple[int, int]:
    """A probability as what a byte and 53 further bits are compared with.

    Args:
        q: in [0, 1].

    Returns:
        ⌊256q⌋, and the rest in units of 2⁻⁵³ of a byte's step.
    """
    limit = math.floor(q * BYTE)
    return limit, math.floor((q * BYTE - limit) * 2.0**BITS)


def hash_key(key: int, sample: int) -> int:
    """What settles the ties of a sample: 64 bits of its own.

    Args:
        key: 128 bits.
        sample: its number.

    Returns:
        64 bits.
    """
    return int(np.random.Philox(key=key, counter=((sample << 128) + (1 << 64) - 1) % 2**256).random_raw())


def settled(key: int, coordinates: Array) -> Array:
    """53 bits for each coordinate (the finalizer of MurmurHash3, keyed).

    Args:
        key: of `hash_key`.
        coordinates: row·columns + column, unsigned.

    Returns:
        Unsigned integers below 2⁵³.
    """
    z = (coordinates * GOLDEN) ^ np.uint64(key)
    z = (z ^ (z >> np.uint64(33))) * FIRST
    z = (z ^ (z >> np.uint64(33))) * SECOND
    return (z ^ (z >> np.uint64(33))) >> np.uint64(64 - BITS)


def nonzero(flags: Array) -> Array:
    """Where flags are set, fast where few are: whole machine words of eight flags are looked through first.

    Args:
        flags: contiguous Booleans.

    Returns:
        Their indices, ascending.
    """
    head = len(flags) // 8 * 8
    groups = np.flatnonzero(flags[:head].view(np.uint64) != 0)
    near = (groups[:, None] * 8 + np.arange(8)).ravel()
    return np.concatenate((near[flags[near]], head + np.flatnonzero(flags[head:])))
