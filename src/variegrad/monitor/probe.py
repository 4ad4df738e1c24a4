"""The last source: a balanced sign probe, one more backward pass over the graph, on any model.

With signs on m of the b examples (m = b, or b−1 for odd b), half of them +1,
E‖Σε_i g_i‖² = m(bΣ‖g_i‖² − ‖Σg_i‖²)/(b(b−1)).
With batch statistics (BatchNorm in training mode) the g_i are those of the coupled losses within this batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from variegrad.monitor.watched import Watched
from variegrad.per_example.evaluate import left_as_found
from variegrad.per_example.rules.contribution import sq_norms
from variegrad.per_example.sign_probe import balanced_signs

# Entries up to which one float64 pass is cheapest.
SHORT = 1 << 14


def sq_norm(gradient: Tensor) -> Tensor:
    """‖g‖² in float64; of a sparse gradient too.

    Args:
        gradient: any gradient.

    Returns:
        Shape ().
    """
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    if gradient.numel() <= SHORT:
        length: Tensor = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float64)
        return length.square()
    return sq_norms(gradient.detach().reshape(1, -1))[0]


def probed_sq_norm(watched: Watched, model: nn.Module, parameters: Mapping[str, nn.Parameter], *key: int) -> float:
    """‖Σε_i∇f_i‖² of unweighted losses.

    Args:
        watched: this step's losses; their graph is kept.
        model: the unwrapped model, whose buffers and random state stay as they are.
        parameters: the trained parameters.
        *key: what the signs are a function of.

    Returns:
        The squared norm.
    """
    signs = balanced_signs(watched.count, 0, *key)
    below = [p for name, p in parameters.items() if name in watched.graph.leaves]
    with left_as_found(model):
        per_example = watched.per_example()
        found: tuple[Tensor | None, ...] = torch.autograd.grad(
            [per_example], below, [signs.to(per_example)], retain_graph=True, allow_unused=True
        )
    return sum(float(sq_norm(g)) for g in found if g is not None)


def sum_sq_norms(probe: float, sq_norm_of_sum: float, count: int) -> float:
    """Σ‖g_i‖² without bias, from a probe and ‖Σg_i‖².

    Args:
        probe: ‖Σε_i g_i‖².
        sq_norm_of_sum: ‖Σg_i‖².
        count: b ≥ 2.

    Returns:
        The estimate.
    """
    signed = count - count % 2
    return (probe * count * (count - 1) / signed + sq_norm_of_sum) / count
