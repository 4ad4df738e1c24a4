"""Randomness as a function, not a state: draws keyed by (seed, purpose, position), the same on every machine.

Nothing here touches a global generator, so results do not depend on the number of workers or on restarts.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from operator import index
from typing import SupportsIndex

import numpy as np
import torch
from torch import Tensor

from variegrad.shapes import Float


def generator(seed: int, *key: int | str) -> np.random.Generator:
    """A generator whose stream is a pure function of its key (Philox, counter-based).

    Args:
        seed: the run's seed.
        *key: what the draw is for: a purpose, the position of a sample, a parameter's name.

    Returns:
        A generator of its own.
    """
    return np.random.Generator(np.random.Philox(key=_hashed(seed, key)))


def balanced_signs(count: int, seed: int, *key: int) -> Float[Tensor, " b"]:
    """⌊b/2⌋ signs +1, as many −1 and, for odd b, one 0, in random order; a function of its key.

    Args:
        count: b.
        seed: of the draw.
        *key: what the draw is for.

    Returns:
        The signs.
    """
    half = count // 2
    signs = torch.zeros(count, dtype=torch.float64)
    order = torch.from_numpy(generator(seed, "signs", *key).permutation(count))
    signs[order[:half]], signs[order[half : 2 * half]] = 1.0, -1.0
    return signs


@contextmanager
def torch_draws(seed: int, *key: int | str) -> Iterator[None]:
    """Let torch's own draws (dropout masks) inside the block be a function of the key; its global state is given back.

    On the CPU torch keeps 32 bits of a seed: two of that many keys may share their draws, as harmless as it is for
    dropout. Draws on an accelerator have 63 bits.

    Args:
        seed: the run's seed.
        *key: what the draws are for.

    Yields:
        Nothing.
    """
    if torch.cuda.is_initialized():
        with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
            torch.manual_seed(_hashed(seed, key) % 2**63)
            yield
        return
    # torch.manual_seed formats a traceback for each accelerator that is not in use, a third of a millisecond.
    before = torch.default_generator.get_state()
    try:
        torch.default_generator.manual_seed(_hashed(seed, key) % 2**63)
        yield
    finally:
        torch.default_generator.set_state(before)


def _hashed(seed: int, key: tuple[int | str, ...]) -> int:
    return int.from_bytes(hashed(seed, *key), "little")


def hashed(seed: SupportsIndex, *key: SupportsIndex | str) -> bytes:
    """A key as 128 bits.

    Args:
        seed: the run's seed.
        *key: what the draws are for: texts and whole numbers of any integer type.

    Returns:
        Sixteen bytes.
    """
    plain = (index(seed), *(part if isinstance(part, str) else index(part) for part in key))
    return hashlib.blake2b(repr(plain).encode(), digest_size=16).digest()


def key_of(seed: int, *key: int | str) -> int:
    """A key for `philox`.

    Args:
        seed: the run's seed.
        *key: what the draws are for.

    Returns:
        64 bits.
    """
    return int.from_bytes(hashed(seed, *key)[:8], "little")


class Streams:
    """Fast streams of random words (SFC64), each a pure function of a hashed key and a place; one object a thread.

    Restarting a generator costs a few microseconds, making one several times that: masks need thousands a step.
    """

    def __init__(self) -> None:
        self._bits = np.random.SFC64(0)
        self._state = self._bits.state
        self._generator = np.random.Generator(self._bits)

    def at(self, key: bytes, *place: int) -> np.random.Generator:
        """The beginning of the stream of a key and a place; the stream that was asked for before ends here.

        Args:
            key: of `hashed`.
            *place: integers from −2⁶³ to 2⁶³ − 1, always equally many for one key.

        Returns:
            A generator at the beginning of that stream.
        """
        digest = hashlib.blake2b(struct.pack(f"<{len(place)}q", *place), key=key, digest_size=24).digest()
        # As SFC64 seeds itself: three words of seed, a counter of one, and twelve rounds of mixing.
        words = np.frombuffer(digest + (1).to_bytes(8, "little"), "<u8").astype(np.uint64)
        self._bits.state = {**self._state, "state": {"state": words}}
        self._bits.random_raw(12, output=False)
        return self._generator
