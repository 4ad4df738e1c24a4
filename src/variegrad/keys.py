"""Randomness as a function, not a state: draws keyed by (seed, purpose, position), the same on every machine.

Nothing here touches a global generator, so results do not depend on the number of workers or on restarts.
"""

from __future__ import annotations

import hashlib
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
        torch.manual_seed(_hashed(seed, key) % 2**63)
        yield


def _hashed(seed: int, key: tuple[int | str, ...]) -> int:
    return int.from_bytes(hashlib.blake2b(repr((int(seed), *key)).encode(), digest_size=16).digest(), "little")


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
