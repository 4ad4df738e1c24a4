"""Norms of the differences ∇f_i(w) − ∇f_i(w′) of Definition 6: both are formed, a chunk of examples at a time."""

from __future__ import annotations

import torch
from torch import nn

from variegrad.batches import Batch
from variegrad.per_example import fallback
from variegrad.per_example.evaluate import Losses, trained_parameters
from variegrad.per_example.norms import example_gradients
from variegrad.per_example.result import Norms
from variegrad.per_example.rules.contribution import sq_norms
from variegrad.per_example.state import Generators


def differential_norms(model: nn.Module, other: nn.Module, losses: Losses, batch: Batch) -> Norms:
    """‖∇f_i(w) − ∇f_i(w′)‖² by parameter, and the sum of the differences.

    Args:
        model: the model at w, unwrapped.
        other: the model at w′, unwrapped, with the same trained parameters.
        losses: `losses(model, batch) → (b,)`.
        batch: the batch; both models see the same random draws.

    Returns:
        The norms of the differences.
    """
    norms: dict[str, list[torch.Tensor]] = {}
    total: dict[str, torch.Tensor] = {}
    step = fallback.chunk_size(trained_parameters(model))
    # Each generator evaluates its losses when first asked; the second must start from the same random state.
    state = Generators(model, other)
    here = example_gradients(model, losses, batch, chunk_size=step)
    first = next(here, None)
    state.restore()
    there = example_gradients(other, losses, batch, chunk_size=step)
    while first is not None:
        second = next(there)
        for name, rows in first.items():
            assert rows.shape == second[name].shape
            wide = torch.complex128 if rows.is_complex() else torch.float64
            difference = rows.to(wide) - second[name].to(rows.device, wide)
            norms.setdefault(name, []).append(sq_norms(difference))
            total[name] = total.get(name, 0) + difference.sum(0)
        first = next(here, None)
    return Norms(sq_norms={name: torch.cat(parts) for name, parts in norms.items()}, total=total)
