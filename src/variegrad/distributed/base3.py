"""Signs in {0, +, −}, five to a byte (3⁵ = 243 ≤ 256): the form of m = Q(v) if its nonzeros are dense."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegrad.distributed.refused import Refused

DIGITS = 5
VALUES = 3**DIGITS
# The five base-3 digits of every byte, the lowest first; rows from 243 on are never read.
TABLE = (np.arange(256)[:, None] // 3 ** np.arange(DIGITS) % 3).astype(np.uint8)


def size(elements: int) -> int:
    """Bytes of d coded signs.

    Args:
        elements: d.

    Returns:
        d/5, rounded up.
    """
    return -(-elements // DIGITS)


def pack(signs: NDArray[np.uint8]) -> bytes:
    """Code signs.

    Args:
        signs: 0 for zero, 1 for +, 2 for −, of each coordinate.

    Returns:
        The bytes; digits beyond d are zero.
    """
    digits = np.zeros(size(len(signs)) * DIGITS, np.uint8)
    digits[: len(signs)] = signs
    packed = digits[0::DIGITS].copy()
    for place in range(1, DIGITS):
        packed += digits[place::DIGITS] * np.uint8(3**place)
    return packed.tobytes()


def unpack(body: memoryview, elements: int, symbols: NDArray[Any]) -> NDArray[Any]:
    """Undo `pack`.

    Args:
        body: the bytes.
        elements: d.
        symbols: what stands for the digits 0, 1 and 2.

    Returns:
        The d symbols.

    Raises:
        Refused: if the body has another length, a byte beyond 242, or digits beyond d that are not zero.
    """
    if len(body) != size(elements):
        raise Refused(f"{elements} signs take {size(elements)} bytes; there are {len(body)}")
    packed = np.frombuffer(body, np.uint8)
    if len(packed) and packed.max() >= VALUES:
        raise Refused(f"a byte of five signs is at most {VALUES - 1}; one is {packed.max()}")
    if len(packed) and TABLE[packed[-1], (elements - 1) % DIGITS + 1 :].any():
        raise Refused(f"there are signs beyond the {elements} coordinates")
    return symbols[TABLE][packed].reshape(-1)[:elements]
