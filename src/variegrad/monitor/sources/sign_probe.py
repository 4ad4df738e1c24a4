"""The last source: a balanced sign probe, one more backward pass over the graph, on any model.

With signs on m of the b examples (m = b, or b−1 for odd b), half of them +1,
E‖Σε_i g_i‖² = m(bΣ‖g_i‖² − ‖Σg_i‖²)/(b(b−1)); `exchange.sums` solves it for Σ‖g_i‖².
With batch statistics (BatchNorm in training mode) the g_i are those of the coupled losses within this batch.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from variegrad.keys import balanced_signs
from variegrad.monitor.loss import Watched
from variegrad.monitor.norms import Euclidean
from variegrad.per_example.passes import gradients
from variegrad.per_example.state import left_as_found
from variegrad.shapes import Float


def probed_sq_norms(
    watched: Watched, model: nn.Module, parameters: Mapping[str, nn.Parameter], norm: Euclidean, *key: int
) -> dict[str, Float[Tensor, ""]]:
    """‖Σε_i∇f_i‖² of unweighted losses by parameter; signs are a function of the key, the model is left as found."""
    signs = balanced_signs(watched.count, 0, *key)
    with left_as_found(model):
        losses = watched.per_example()
        found = gradients(losses, signs.to(losses), parameters.values(), hooks=True)
    pairs = zip(parameters, found, strict=True)
    return {name: norm.sq_norm(name, g) for name, g in pairs if g is not None}
