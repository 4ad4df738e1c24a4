"""The masks of `mechanisms/masks.py`, compiled by numba: the same coordinates kept, and zero rows at no cost."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

U, B = np.uint64, np.uint8
M0, M1, W0, W1 = U(0xD2E7470EE14C6C93), U(0xCA5A826395121157), U(0x9E3779B97F4A7C15), U(0xBB67AE8584CAA73B)
C1, C2 = U(0xFF51AFD7ED558CCD), U(0xC4CEB9FE1A85EC53)
ONES, TOPS = U(0x0101010101010101), U(0x8080808080808080)


@intrinsic
def _high(context, a, b):
    def code(context, builder, signature, values):
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(values[0], wide), builder.zext(values[1], wide))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), code


@njit(nogil=True, cache=True)
def _fill(words, first, sample, low, high):
    for call in range(len(words)):
        a, b, c, d, k0, k1 = first + U(call), U(0), sample, U(0), low, high
        for _ in range(10):
            p, q = _high(M0, a), _high(M1, c)
            a, b, c, d = q ^ b ^ k0, M1 * c, p ^ d ^ k1, M0 * a
            k0 += W0
            k1 += W1
        words[call, 0], words[call, 1], words[call, 2], words[call, 3] = a, b, c, d


@njit(nogil=True, cache=True)
def _tied(words, found, ties, where):
    # Three bytes of 256 at most: words that have none are passed over by arithmetic on eight bytes at once.
    count = 0
    for call in range(len(words)):
        for k in range(4):
            if (~words[call, k] - ONES * ties) & words[call, k] & TOPS:
                start = 32 * call + 8 * k
                for j in range(start, start + 8):
                    where[count] = j
                    count += U(found[j]) + ties >= U(256)
    return count


@njit(nogil=True, cache=True)
def _settled(pair, key):
    z = (pair * W0) ^ key
    z = (z ^ (z >> U(33))) * C1
    z = (z ^ (z >> U(33))) * C2
    return (z ^ (z >> U(33))) >> U(11)


@njit(nogil=True, cache=True)
def add_kept(
    total, left, right, samples, keys, low, high, first, shift, second, ties, cut_0, cut_1, cut_2, start, stop
):  # fmt: skip
    columns, kind = total.shape[1], total.dtype.type
    zero = kind(0)
    calls = (columns + 63) // 64
    half = 32 * calls
    width = min(half, columns)
    words, where = np.empty((calls, 4), np.uint64), np.empty(half + 1, np.int64)
    found = words.reshape(-1).view(np.uint8)
    for row in range(start, stop):
        one, two = total[row, :width], total[row, width:]
        for i in range(len(left)):
            factor = left[i, row]
            if factor == 0:
                continue
            _fill(words, U(row) * U(calls), samples[i], low, high)
            other, another = right[i, :width], right[i, width:]
            for j in range(len(one)):
                one[j] += factor * other[j] if found[j] < first else zero
            for j in range(len(two)):
                two[j] += factor * another[j] if B(found[j] - shift) < second else zero
            if ties:
                for k in range(_tied(words, found, ties, where)):
                    j = where[k]
                    u = _settled(U(row) * U(half) + U(j), keys[i])
                    if j < len(one):
                        one[j] += factor * other[j] * kind(u < cut_1)
                    if j < len(two):
                        two[j] += factor * another[j] * kind((cut_0 <= u) & (u < cut_2))


@njit(nogil=True, cache=True)
def add_kept_rows(
    total, given, samples, keys, low, high, first, shift, second, ties, cut_0, cut_1, cut_2, start, stop
):  # fmt: skip
    columns, kind = total.shape[1], total.dtype.type
    zero = kind(0)
    calls = (columns + 63) // 64
    half = 32 * calls
    width = min(half, columns)
    words, where = np.empty((calls, 4), np.uint64), np.empty(half + 1, np.int64)
    found = words.reshape(-1).view(np.uint8)
    for i in range(len(given)):
        for row in range(start, stop):
            one, two = total[row, :width], total[row, width:]
            _fill(words, U(row) * U(calls), samples[i], low, high)
            other, another = given[i, row, :width], given[i, row, width:]
            for j in range(len(one)):
                one[j] += other[j] if found[j] < first else zero
            for j in range(len(two)):
                two[j] += another[j] if B(found[j] - shift) < second else zero
            if ties:
                for k in range(_tied(words, found, ties, where)):
                    j = where[k]
                    u = _settled(U(row) * U(half) + U(j), keys[i])
                    if j < len(one):
                        one[j] += other[j] * kind(u < cut_1)
                    if j < len(two):
                        two[j] += another[j] * kind((cut_0 <= u) & (u < cut_2))


@njit(nogil=True, cache=True)
def keep(given, samples, keys, low, high, first, shift, second, ties, cut_0, cut_1, cut_2, start, stop):
    rows, columns = given.shape[1:]
    calls = (columns + 63) // 64
    half = 32 * calls
    width = min(half, columns)
    words, where = np.empty((calls, 4), np.uint64), np.empty(half + 1, np.int64)
    found, mask = words.reshape(-1).view(np.uint8), np.empty(columns, np.uint8)
    for i in range(start, stop):
        for row in range(rows):
            _fill(words, U(row) * U(calls), samples[i], low, high)
            for j in range(width):
                mask[j] = found[j] < first
            for j in range(columns - width):
                mask[width + j] = B(found[j] - shift) < second
            if ties:
                for k in range(_tied(words, found, ties, where)):
                    j = where[k]
                    u = _settled(U(row) * U(half) + U(j), keys[i])
                    if j < width:
                        mask[j] = u < cut_1
                    if width + j < columns:
                        mask[width + j] = (cut_0 <= u) & (u < cut_2)
            here = given[i, row]
            for j in range(columns):
                here[j] *= mask[j]
