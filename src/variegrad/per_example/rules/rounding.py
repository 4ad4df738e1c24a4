"""Two ways to the same sums agree if they differ by rounding: for each example, and in their sum.

Rounding is relative to what was added, not to what is left of it: where terms cancel, ‖g_i‖² may be all rounding. With
β_i ≥ ‖g_i‖² free of cancellation (such as ‖X_i‖²‖D_i‖² for g_i = X_iᵀD_i) and τ the type's tolerance, two ways agree if
|a_i − a′_i| ≤ τ(a_i + τβ_i) for the squared norms, and ‖G − G′‖² ≤ τ²(Σ_i a_i + ‖G‖² + τ Σ_i β_i) for the sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from variegrad.per_example.rules.contribution import Summed, sq_norms
from variegrad.shapes import Float

# Relative error of ‖∇f_i‖² that rounding may explain, by type.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.complex128: 1e-8, torch.complex64: 1e-3}
LOW_PRECISION_TOLERANCE = 0.1
# Entries compared at once.
BLOCK = 1 << 20


def sums_apart(one: Summed, other: Summed, bound: Float[Tensor, " b"], dtype: torch.dtype) -> float:
    """How far two results are apart."""
    tolerance = TOLERANCE.get(dtype, LOW_PRECISION_TOLERANCE)
    norms, others = one.sq_norms, other.sq_norms
    finite = norms.isfinite()
    if not torch.equal(finite, others.isfinite()):
        return float("inf")
    # Infinite gradients are the model's, and are passed on as they are.
    allowed = tolerance * (torch.maximum(norms, others) + tolerance * bound)
    off = _worst((norms - others).abs()[finite], allowed[finite])
    if one.total is None or other.total is None or not bool(finite.all()):
        return off
    square, difference = _squares(one.total, other.total)
    scale = float(norms.sum()) + square + tolerance * float(bound.sum())
    limit = tolerance**2 * scale
    if not difference:
        return off
    return max(off, (difference / limit) ** 0.5 if limit else float("inf"))


def rows_apart(one: Tensor, other: Tensor, bound: Float[Tensor, " t"]) -> float:
    """How far the gradients themselves, found in two ways, are apart."""
    tolerance = TOLERANCE.get(one.dtype, LOW_PRECISION_TOLERANCE)
    norms = sq_norms(one)
    finite = norms.isfinite()
    if not torch.equal(finite, sq_norms(other).isfinite()):
        return float("inf")
    allowed = tolerance**2 * (norms + tolerance * bound)
    return _worst(sq_norms(one - other)[finite], allowed[finite]) ** 0.5


def _worst(off: Tensor, allowed: Tensor) -> float:
    return float(torch.where(off == 0, 0.0, off / allowed).max()) if len(off) else 0.0


def _squares(one: Tensor, other: Tensor) -> tuple[float, float]:
    # Block by block: a check must not cost the memory that the engine saves.
    square = difference = 0.0
    step = max(1, BLOCK // max(1, one[0].numel() if one.dim() and len(one) else 1))
    for a, b in zip(torch.atleast_1d(one).split(step), torch.atleast_1d(other).split(step), strict=True):
        square += float(a.double().square().sum())
        difference += float((a.double() - b.double()).square().sum())
    return square, difference
