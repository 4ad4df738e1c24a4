"""A keyed permutation of 0 … n−1 with random access: any part of a shuffled order, in no memory and without the rest.

A Feistel network on pairs (left, right) of residues: each round adds a keyed function of one half to the other, which
can be undone, so the whole is a permutation of the a·b pairs. Numbers from n on are sent through it again until they
come out below n (cycle walking); since a·b exceeds n by O(√n) only, few need it. A short order is sorted by random
words instead: there each of the n! orders is equally likely, which a network of few rounds meets only nearly.

Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains", methods 2 and 3.
"""

from __future__ import annotations

import math

import numpy as np

from variegrad.keys import hashed, key_of
from variegrad.philox import HALF, Words, philox

ROUNDS = 10
SHORT = 4096  # up to this length, the whole order is made


def permuted(places: Words, count: int, seed: int, *key: int | str) -> Words:
    """Where a keyed shuffle of 0 … count−1 sends each place.

    Args:
        places: unsigned 64-bit integers below `count`.
        count: n ≥ 1, below 2⁶².
        seed: the run's seed.
        *key: what the order is for.

    Returns:
        As many numbers below n; different places give different numbers.
    """
    if count <= SHORT:
        low, high, *_ = philox((np.arange(count, dtype=np.uint64), 0, 0, 0), key_of(seed, *key))
        return np.argsort((high << HALF) | low, kind="stable").astype(np.uint64)[places]
    # Even sides: a round is then as often an odd permutation as an even one.
    a = 2 * math.ceil(math.sqrt(count) / 2)
    b = 2 * math.ceil(count / a / 2)
    keys = np.frombuffer(b"".join(hashed(seed, *key, r)[:8] for r in range(ROUNDS)), "<u8").astype(np.uint64)
    out = _network(places, np.uint64(a), np.uint64(b), keys)
    while len(outside := np.flatnonzero(out >= count)):
        out[outside] = _network(out[outside], np.uint64(a), np.uint64(b), keys)
    return out


def _network(numbers: Words, a: np.uint64, b: np.uint64, keys: Words) -> Words:
    left, right = numbers // b, numbers % b
    for number, key in enumerate(keys):
        if number % 2:
            right = (right + _mixed(left, key) % b) % b
        else:
            left = (left + _mixed(right, key) % a) % a
    mixed: Words = left * b + right
    return mixed


def _mixed(half: Words, key: np.uint64) -> Words:
    """Two rounds of multiply and shift (the finalizer of MurmurHash3) of the half and the round's key."""
    with np.errstate(over="ignore"):
        z = (half * np.uint64(0x9E3779B97F4A7C15)) ^ key
        z = (z ^ (z >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
        z = (z ^ (z >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return z ^ (z >> np.uint64(33))
