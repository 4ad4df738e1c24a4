"""Philox4x32-10: 128 random bits as a pure function of a 128-bit counter and a 64-bit key, in numpy's integers.

Counter-based: any word of any stream can be computed alone, on any machine, in any order. Nothing here depends on
numpy's own generators, whose methods may draw other numbers in another version.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

from typing import Any

import numpy as np

Words = np.ndarray[Any, np.dtype[np.uint64]]

FIRST, SECOND = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)  # the multipliers
WEYL = (0x9E3779B9, 0xBB67AE85)  # what the key's halves grow by in each round
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
ROUNDS = 10


def philox(counter: tuple[Any, Any, Any, Any], key: int) -> tuple[Words, Words, Words, Words]:
    """The four 32-bit words of each counter.

    Args:
        counter: four 32-bit parts, whole numbers or arrays that broadcast together.
        key: 64 bits.

    Returns:
        Four arrays of unsigned 64-bit integers below 2³².
    """
    a, b, c, d = (np.asarray(part, np.uint64) for part in counter)
    low, high = key & 0xFFFFFFFF, key >> 32
    for _ in range(ROUNDS):
        left, right = a * FIRST, c * SECOND
        a, b, c, d = (
            (right >> HALF) ^ b ^ np.uint64(low), right & LOW, (left >> HALF) ^ d ^ np.uint64(high), left & LOW,
        )  # fmt: skip
        low, high = (low + WEYL[0]) & 0xFFFFFFFF, (high + WEYL[1]) & 0xFFFFFFFF
    return a, b, c, d
