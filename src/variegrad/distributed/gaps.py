"""Sparse positions with a sign each, as 16-bit words: how far to the next non-zero, and which sign it has.

A word's upper bit is the sign, its lower 15 bits the distance to the previous position, less one (the first counts from
−1). The distance `FAR` means: advance by `FAR` coordinates, all zero. Each list of positions has
exactly one form. For m = Q(v) of d = 10⁶ Gaussian coordinates, about 800 non-zeros, this is 1.6 kB.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from variegrad.distributed.refused import Refused

FAR = 0x7FFF
NEGATIVE = 0x8000
WORD = np.dtype("<u2")


def size(positions: NDArray[np.int64]) -> int:
    """Bytes of the coded positions.

    Args:
        positions: of the non-zeros, ascending.

    Returns:
        Two for each, and two for each jump over 32,767 coordinates.
    """
    return WORD.itemsize * int(len(positions) + (_distances(positions) // FAR).sum())


def pack(positions: NDArray[np.int64], negative: NDArray[np.bool_]) -> bytes:
    """Code positions and signs.

    Args:
        positions: of the non-zeros, ascending.
        negative: whether each is below zero.

    Returns:
        The words, little-endian.
    """
    jumps, rest = np.divmod(_distances(positions), FAR)
    words = np.full(len(positions) + int(jumps.sum()), FAR, WORD)
    words[np.arange(len(positions)) + np.cumsum(jumps)] = rest | np.where(negative, NEGATIVE, 0)
    return words.tobytes()


def unpack(body: memoryview, elements: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Undo `pack`; memory grows with the body, not with what it claims.

    Args:
        body: the words.
        elements: d.

    Returns:
        Positions, ascending, and whether each is below zero.

    Raises:
        Refused: if the body is no whole number of words, leaves the d coordinates or is not in its one form.
    """
    if len(body) % WORD.itemsize:
        raise Refused(f"a word is {WORD.itemsize} bytes; the positions take {len(body)}")
    words = np.frombuffer(body, WORD)
    if len(words) > elements + elements // FAR:
        raise Refused(f"{elements} coordinates have no room for {len(words)} words")
    distance = (words & FAR).astype(np.int64)
    jump = distance == FAR
    if len(words) and jump[-1]:
        raise Refused("the last word is a jump to nowhere")
    if (words[jump] & NEGATIVE).any():
        raise Refused("a jump carries a sign")
    positions = np.cumsum(np.where(jump, FAR, distance + 1))[~jump] - 1
    if len(positions) and positions[-1] >= elements:
        raise Refused(f"a position lies at {positions[-1]}, beyond the {elements} coordinates")
    return positions, (words[~jump] & NEGATIVE).astype(bool)


def _distances(positions: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.diff(positions, prepend=-1) - 1
