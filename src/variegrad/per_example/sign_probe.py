"""Balanced random signs: what a sign probe weights the losses with (`variegrad.estimators.signed_probe`)."""

from __future__ import annotations

import torch
from torch import Tensor

from variegrad.keys import generator
from variegrad.shapes import Float


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
