"""The masks of `mechanisms/masks.py`, compiled by numba: the same coordinates kept, and zero rows at no cost."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

U = np.uint64
M0, M1, W0, W1 = U(0xD2E7470EE14C6C93), U(0xCA5A826395121157), U(0x9E3779B97F4A7C15), U(0xBB67AE8584CAA73B)
C1, C2 = U(0xFF51AFD7ED558CCD), U(0xC4CEB9FE1A85EC53)


@intrinsic
def _high(context, a, b):
    def code(context, builder, signature, values):
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(values[0], wide), builder.zext(values[1], wide))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), code


@njit(nogil=True, cache=True, inline="always")
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
def _ties(found, mask, limit, rest, key, first):
    columns = len(mask)
    for start in range(0, columns, 64):
        stop, some = min(start + 64, columns), 0
        for j in range(start, stop):
            some += found[j] == limit
        if some:
            for j in range(start, stop):
                if found[j] == limit:
                    z = ((first + U(j)) * W0) ^ key
                    z = (z ^ (z >> U(33))) * C1
                    z = (z ^ (z >> U(33))) * C2
                    mask[j] = ((z ^ (z >> U(33))) >> U(11)) < rest


@njit(nogil=True, cache=True)
def add_kept(total, left, right, samples, keys, low, high, limit, rest, start, stop):
    columns = total.shape[1]
    calls = (columns + 31) // 32
    words = np.empty((calls, 4), np.uint64)
    found = words.reshape(-1).view(np.uint8)
    mask = np.empty(columns, np.uint8)
    for row in range(start, stop):
        into = total[row]
        for i in range(len(left)):
            factor = left[i, row]
            if factor == 0:
                continue
            number = U(row)
            _fill(words, number * U(calls), samples[i], low, high)
            for j in range(columns):
                mask[j] = found[j] < limit
            if rest:
                _ties(found, mask, limit, rest, keys[i], number * U(columns))
            other = right[i]
            for j in range(columns):
                into[j] += factor * other[j] * mask[j]


@njit(nogil=True, cache=True)
def keep(given, samples, keys, low, high, limit, rest, start, stop):
    rows, columns = given.shape[1:]
    calls = (columns + 31) // 32
    words = np.empty((calls, 4), np.uint64)
    found = words.reshape(-1).view(np.uint8)
    mask = np.empty(columns, np.uint8)
    for i in range(start, stop):
        for row in range(rows):
            here = given[i, row]
            _fill(words, U(row) * U(calls), samples[i], low, high)
            for j in range(columns):
                mask[j] = found[j] < limit
            if rest:
                _ties(found, mask, limit, rest, keys[i], U(row) * U(columns))
            for j in range(columns):
                here[j] *= mask[j]
