"""Small sets of gradients, and every sample that can be drawn from them: enumeration is the oracle."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

# theory, second golden example: Σ‖g‖² = 31, ‖Σg‖² = 125.
SIX = torch.tensor([[2, 1, 0], [1, 0, 1], [0, 1, 1], [3, 1, 1], [1, 2, 0], [1, 1, 2]], dtype=torch.float64)


def population(count: int, dimension: int, seed: int, shift: float = 0.5) -> Float[Tensor, "n d"]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dimension, generator=generator, dtype=torch.float64) + shift


def with_replacement(gradients: Float[Tensor, "n d"], m: int) -> Iterator[Float[Tensor, "m d"]]:
    for index in itertools.product(range(len(gradients)), repeat=m):
        yield gradients[list(index)]


def without_replacement(gradients: Float[Tensor, "n d"], m: int) -> Iterator[Float[Tensor, "m d"]]:
    for index in itertools.permutations(range(len(gradients)), m):
        yield gradients[list(index)]


def mean_product(gradients: Float[Tensor, "n d"]) -> float:
    """mean_{i≠j}⟨g_i, g_j⟩ by a loop."""
    n = len(gradients)
    return sum(float(gradients[i] @ gradients[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))


def mean_sq_norm(gradients: Float[Tensor, "n d"]) -> float:
    return sum(float(g @ g) for g in gradients) / len(gradients)


def true_bound(gradients: Float[Tensor, "n d"]) -> float:
    """n·Σ‖g‖²/‖Σg‖²."""
    total = sum(gradients)
    return len(gradients) * sum(float(g @ g) for g in gradients) / float(total @ total)
