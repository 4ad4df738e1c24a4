"""Bernoulli masks by counter: whether coordinate (row, column) of a sample's gradient is kept is a function of a key.

A call of Philox4x64-10 (Salmon et al. 2011) with counter (call, 0, sample, 0) gives 32 bytes, and a row has whole
calls. Its j-th byte decides columns j and `half` + j together, `half` being the number of its bytes: of the 256 values
the first ⌊256·q(1−q)⌋ keep the first column alone, the next ⌊256·q²⌋ both, the next ⌊256·q(1−q)⌋ the second alone, the
next ⌊256·(1−q)²⌋ none. At most three values are left; they are settled by 53 bits of a keyed hash in proportion to what
the floors cut off, so that both columns are independent and P(kept) = q to double precision.
A row that is zero changes no other draw, and any implementation gives the same masks: compiled if numba is installed
(the extra `fast`), or here by numpy's own Philox, whose raw words do not change from one version of numpy to another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np

from variegrad.mechanisms.threads import run, threads_for

Array = np.ndarray[Any, np.dtype[Any]]

BYTES = 32  # of a call
TOGETHER = 1 << 22  # coordinates whose masks are held at once
WORTH_COMPILING = 1 << 18  # coordinates: loading the compiled code takes a second
BITS = 53
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
    work = len(left) * total.size
    compiled, law = _implementation(work), _Law(key, samples, q)
    left = np.where(np.any(right, axis=1, keepdims=True), left, 0)
    if compiled is None:
        part = partial(_add_kept, total, left, right, law)
    else:
        part = partial(compiled.add_kept, total, left, np.ascontiguousarray(right), *law.plain)
    run([partial(part, *cut) for cut in threads_for(work, len(total))])


def add_kept_rows(total: Array, given: Array, key: int, samples: Sequence[int], q: float) -> None:
    """Add Σ_i of what is kept of given_i.

    Args:
        total: (rows, columns), contiguous.
        given: (t, rows, columns), contiguous.
        key: 128 bits.
        samples: the numbers of the t samples.
        q: the probability of keeping.
    """
    compiled, law = _implementation(given.size), _Law(key, samples, q)
    if compiled is None:
        part = partial(_add_kept_rows, total, given, law)
    else:
        part = partial(compiled.add_kept_rows, total, given, *law.plain)
    run([partial(part, *cut) for cut in threads_for(given.size, len(total))])


def keep(given: Array, key: int, samples: Sequence[int], q: float) -> None:
    """Set to zero, in place, what is not kept.

    Args:
        given: (t, rows, columns), contiguous.
        key: 128 bits.
        samples: the numbers of the t samples.
        q: the probability of keeping.
    """
    compiled, law = _implementation(given.size), _Law(key, samples, q)
    part = partial(_keep, given, law) if compiled is None else partial(compiled.keep, given, *law.plain)
    run([partial(part, *cut) for cut in threads_for(given.size, len(given))])


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
    return _Law(key, samples, q).masks(np.arange(len(samples)), 0, *shape)


def _add_kept(total: Array, left: Array, right: Array, law: _Law, first: int, last: int) -> None:
    columns = total.shape[1]
    half, step = bytes_of(columns), max(1, TOGETHER // max(1, len(left) * columns))
    width = min(half, columns)
    parts = [np.s_[:width], np.s_[width:]]
    sides = [np.ascontiguousarray(right[:, part]) for part in parts]
    room, products = _Room(), np.empty((len(left), width), right.dtype)
    for start in range(first, last, step):
        rows, used = np.nonzero(left[:, start : start + step].T)  # by row: what is zero needs no mask
        masks = law.of_rows(used, start + rows, columns, room)
        ends = np.searchsorted(rows, np.arange(min(step, last - start) + 1))
        for row, (low, high) in enumerate(pairwise(ends.tolist()), start):
            here = used[low:high]
            for part, side, mask in zip(parts, sides, masks, strict=True):
                factors = products[: high - low, : side.shape[1]]
                np.copyto(factors, mask[low:high, : side.shape[1]])
                factors *= side[here]
                total[row, part] += left[here, row] @ factors


def _add_kept_rows(total: Array, given: Array, law: _Law, first: int, last: int) -> None:
    rows, columns = last - first, total.shape[1]
    step = max(1, TOGETHER // 8 // max(1, rows * columns))
    for start in range(0, len(given), step):
        part = given[start : start + step, first:last]
        kept = law.masks(np.arange(start, start + len(part)), first, rows, columns).astype(given.dtype)
        kept *= part
        total[first:last] += kept.sum(0)


def _keep(given: Array, law: _Law, first: int, last: int) -> None:
    step = max(1, TOGETHER // 8 // max(1, given[0].size))
    for start in range(first, last, step):
        here = np.arange(start, min(start + step, last))
        given[here[0] : here[-1] + 1] *= law.masks(here, 0, *given.shape[1:])


def _implementation(work: int) -> Any:
    # By the work alone, not by what is loaded already: sums are in another order, and a resumed run has the same bits.
    return _compiled() if work >= WORTH_COMPILING else None


@cache
def _compiled() -> Any:
    try:
        return import_module("variegrad.compiled_masks")  # an extra, and slow to import
    except Exception:  # noqa: BLE001 - no numba, none that loads, or no folder for what it compiles: numpy has the masks
        return None


class _Law:
    """The masks of some samples under one key."""

    def __init__(self, key: int, samples: Sequence[int], q: float) -> None:
        self._key, self._pair = key, pair(q)
        self._low, self._high = np.uint64(key & (2**64 - 1)), np.uint64(key >> 64)
        self._numbers, self._hashes = np.array(samples, np.uint64), hashes(key, samples)

    @property
    def plain(self) -> tuple[Any, ...]:
        """What compiled code is given."""
        p = self._pair
        bounds = np.uint8(p.first), np.uint8(p.shift), np.uint8(p.second), np.uint64(p.ties)
        return self._numbers, self._hashes, self._low, self._high, *bounds, *(np.uint64(cut) for cut in p.cuts)

    def masks(self, which: Array, first: int, rows: int, columns: int) -> Array:
        """Rows first … first + rows − 1 of the masks of some of the samples, (samples, rows, columns)."""
        samples, places, room = np.repeat(which, rows), np.tile(np.arange(first, first + rows), len(which)), _Room()
        halves = self._decided(self._bytes(which, first, rows, columns, room), samples, places, room)
        return np.concatenate(halves, 1)[:, :columns].reshape(len(which), rows, columns)

    def of_rows(self, samples: Array, rows: Array, columns: int, room: _Room) -> tuple[Array, Array]:
        """One row of the mask of a sample each, in two halves of `bytes_of` columns; rows must ascend."""
        which, index = np.unique(samples, return_inverse=True)
        first, count = (int(rows[0]), int(rows[-1] - rows[0]) + 1) if len(rows) else (0, 0)
        found = self._bytes(which, first, count, columns, room)
        chosen = room("chosen", (len(rows), found.shape[1]), np.uint8)
        if len(rows):
            np.take(found, index * count + rows - first, 0, out=chosen, mode="clip")
        return self._decided(chosen, samples, rows, room)

    def _bytes(self, which: Array, first: int, rows: int, columns: int, room: _Room) -> Array:
        half, words = bytes_of(columns), Words(self._key)  # threads have their own
        found = room("bytes", (len(which), rows * half), np.uint8)
        for into, sample in zip(found, self._numbers[which].tolist(), strict=True):
            into[:] = words.at(sample, first * half, rows * half)
        return found.reshape(len(which) * rows, half)

    def _decided(self, found: Array, samples: Array, rows: Array, room: _Room) -> tuple[Array, Array]:
        p, half = self._pair, found.shape[1]
        one, two = (room(name, found.shape, bool) for name in ("one", "two"))
        np.less(found, p.first, out=one)
        np.less(np.subtract(found, np.uint8(p.shift), out=room("moved", found.shape, np.uint8)), p.second, out=two)
        if p.ties:
            ties = np.flatnonzero(np.greater_equal(found, 256 - p.ties, out=room("tied", found.shape, bool)))
            place = ties // half
            pairs = rows[place] * half + (ties - place * half)
            u = settled(self._hashes[samples[place]], pairs.astype(np.uint64))
            one.reshape(-1)[ties], two.reshape(-1)[ties] = u < p.cuts[1], (p.cuts[0] <= u) & (u < p.cuts[2])
        return one, two


class _Room:
    """Arrays by name that are used again: fresh memory costs more than what is done in it."""

    def __init__(self) -> None:
        self._held: dict[str, Array] = {}

    def __call__(self, name: str, shape: tuple[int, ...], kind: Any) -> Array:
        size = math.prod(shape)
        if name not in self._held or self._held[name].size < size:
            self._held[name] = np.empty(size, kind)
        return self._held[name][:size].reshape(shape)


class Words:
    """The bytes of a key, from any place of any sample on (Philox4x64-10).

    Args:
        key: 128 bits.
    """

    def __init__(self, key: int) -> None:
        self._bits = np.random.Philox(key=key, counter=2**256 - 1)  # it steps its counter before it draws
        self._place = 0

    def at(self, sample: int, start: int, count: int) -> Array:
        """Bytes of one sample.

        Args:
            sample: its number.
            start: the first byte, and
            count: how many: both multiples of a call's 32.

        Returns:
            Unsigned bytes.
        """
        place = (sample << 128) + start // BYTES
        self._bits.advance((place - self._place) % 2**256)
        self._place = place + count // BYTES
        return self._bits.random_raw(count // 8).astype("<u8", copy=False).view(np.uint8)


@dataclass(frozen=True)
class Pair:
    """What a byte says of two coordinates.

    Attributes:
        first: the first is kept by a byte below this.
        shift: the second by a byte that is, `shift` subtracted modulo 256,
        second: below this.
        ties: how many bytes, the largest ones, are undecided: three at most.
        cuts: of 53 further bits u: the first is kept if u < cuts[1], the second if cuts[0] ≤ u < cuts[2].
    """

    first: int
    shift: int
    second: int
    ties: int
    cuts: tuple[int, int, int]


def pair(q: float) -> Pair:
    """How two independent coordinates, each kept with probability q, are decided by a byte and a tie's 53 bits.

    Args:
        q: in [0, 1].

    Returns:
        The bounds.
    """
    exact = [256 * share for share in (q * (1 - q), q * q, (1 - q) * q, (1 - q) * (1 - q))]
    whole = [min(math.floor(share), 255) for share in exact]  # 255: a certain outcome is one tie, settled
    ties = 256 - sum(whole)
    rests, cuts = 0.0, []
    for share, count in zip(exact[:3], whole, strict=False):
        rests += share - count
        cuts.append(round(min(rests / ties, 1.0) * 2.0**BITS) if ties else 0)
    return Pair(whole[0] + whole[1], whole[0], whole[1] + whole[2], ties, (cuts[0], cuts[1], cuts[2]))


def bytes_of(columns: int) -> int:
    """How many bytes decide a row: whole calls, one byte for two columns.

    Args:
        columns: of the row.

    Returns:
        A multiple of 32.
    """
    return -(-columns // (2 * BYTES)) * BYTES


def mixed(z: Array) -> Array:
    """The finalizer of MurmurHash3.

    Args:
        z: unsigned, 64 bits.

    Returns:
        The same.
    """
    z = (z ^ (z >> np.uint64(33))) * FIRST
    z = (z ^ (z >> np.uint64(33))) * SECOND
    z ^= z >> np.uint64(33)
    return z


def hashes(key: int, samples: Sequence[int]) -> Array:
    """What `settled` mixes in for each sample.

    Args:
        key: 128 bits.
        samples: their numbers.

    Returns:
        Unsigned, 64 bits.
    """
    numbers = np.array(samples, np.uint64) * GOLDEN
    return mixed(numbers ^ np.uint64(key & (2**64 - 1))) ^ np.uint64(key >> 64)


def settled(keys: Array | np.uint64, places: Array) -> Array:
    """53 bits for each place of a sample.

    Args:
        keys: `hashes` of the samples.
        places: of a byte or coordinate in its parameter, unsigned.

    Returns:
        Unsigned integers below 2⁵³.
    """
    bits: Array = mixed((places * GOLDEN) ^ keys) >> np.uint64(64 - BITS)
    return bits
