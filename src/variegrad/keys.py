"""Randomness as a function, not a state: draws keyed by (seed, purpose, position), the same on every machine.

Nothing here touches a global generator, so results do not depend on the number of workers or on restarts.
"""

from __future__ import annotations

import hashlib

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
    digest = hashlib.blake2b(repr((int(seed), *key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


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
