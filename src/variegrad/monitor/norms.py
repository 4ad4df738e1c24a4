"""The norm in which gradients are measured: one object that every norm of a gradient goes through."""

from __future__ import annotations

import torch
from torch import Tensor

from variegrad.per_example.rules.contribution import sq_norms

# Entries up to which one float64 pass is cheapest.
SHORT = 1 << 14


class Euclidean:
    """‖g‖₂, the geometry of SGD."""

    name = "euclidean"
    exact_for_examples = True  # the rules of single examples make this norm

    def sq_norm(self, name: str, gradient: Tensor) -> Tensor:
        """‖g‖² of one parameter's gradient in float64, without a host read; of a sparse gradient too."""
        del name
        return sq_norm(gradient)


def sq_norm(gradient: Tensor) -> Tensor:
    """‖g‖² in float64, shape ()."""
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    if gradient.is_complex():
        gradient = torch.view_as_real(gradient)
    if gradient.numel() <= SHORT:
        length: Tensor = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float64)
        return length.square()
    return sq_norms(gradient.detach().reshape(1, -1))[0]
