"""Randomness as a function, not a state: draws keyed by (seed, purpose, position), the same on every machine.

Nothing here touches a global generator, so results do not depend on the number of workers or on restarts.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


def generator(seed: int, *key: int | str) -> np.random.Generator:
    """A generator whose stream is a pure function of its key (Philox, counter-based).

    Args:
        seed: the run's seed.
        *key: what the draw is for: a purpose, a step, the global position of an example, a parameter's name.

    Returns:
        A generator of its own.
    """
    return np.random.Generator(np.random.Philox(key=_hashed(seed, key)))


@contextmanager
def torch_draws(seed: int, *key: int | str) -> Iterator[None]:
    """Let torch's own draws (dropout masks) inside the block be a function of the key; its global state is given back.

    Args:
        seed: the run's seed.
        *key: what the draws are for.

    Yields:
        Nothing.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(devices)):
        # torch.manual_seed formats a traceback for each accelerator that is not in use, a third of a millisecond.
        (torch.manual_seed if devices else torch.default_generator.manual_seed)(_hashed(seed, key) % 2**63)
        yield


def _hashed(seed: int, key: tuple[int | str, ...]) -> int:
    return int.from_bytes(hashed(seed, *key), "little")


def hashed(seed: int, *key: int | str) -> bytes:
    """A key as 128 bits.

    Args:
        seed: the run's seed.
        *key: what the draws are for.

    Returns:
        Sixteen bytes.
    """
    return hashlib.blake2b(repr((int(seed), *key)).encode(), digest_size=16).digest()


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


def epoch_order(seed: int, epoch: int, count: int) -> Int[Tensor, " n"]:
    """The order in which pass number `epoch` visits `count` examples: each once.

    Args:
        seed: the run's seed.
        epoch: the number of the pass, from 0.
        count: n.

    Returns:
        A permutation of 0 … n−1.
    """
    return torch.from_numpy(generator(seed, "epoch", epoch).permutation(count))


def draws_with_replacement(seed: int, step: int, batch_size: int, count: int) -> Int[Tensor, " b"]:
    """The examples of step number `step` of equation (2): each drawn uniformly from all, with replacement.

    Args:
        seed: the run's seed.
        step: the number of the update, from 0.
        batch_size: B.
        count: n.

    Returns:
        B indices in 0 … n−1.
    """
    return torch.from_numpy(generator(seed, "draw", step).integers(0, count, size=batch_size))
