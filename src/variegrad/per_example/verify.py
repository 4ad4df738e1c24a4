"""The check on first use: two examples and the summed gradient against the loop, kept as a few numbers a parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from variegrad.per_example.plan import Disagreement

# Relative error of ‖∇f_i‖² against the loop above which the engine refuses its own result.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.complex128: 1e-8, torch.complex64: 1e-3}
LOW_PRECISION_TOLERANCE = 0.1
BLOCK = 1 << 16


@dataclass(frozen=True)
class Fingerprint:
    """A tensor as two numbers.

    Attributes:
        sq_norm: ‖g‖².
        projection: ⟨g, z⟩ with z_k = cos k: equal norms of different tensors are told apart.
    """

    sq_norm: float
    projection: float


def fingerprint(gradient: Tensor | None) -> Fingerprint:
    """Two float64 numbers that stand for a gradient, taken block by block.

    Args:
        gradient: any tensor; None counts as zero.

    Returns:
        Its fingerprint.
    """
    if gradient is None:
        return Fingerprint(0.0, 0.0)
    square = projection = 0.0
    if gradient.is_sparse:  # an embedding's, on request
        gradient = gradient.to_dense()
    if gradient.is_complex():
        gradient = torch.view_as_real(gradient.detach().resolve_conj())
    start = 0
    # A whole of another layout is never copied: rows first, then blocks of them.
    pieces = gradient.detach().reshape(-1) if gradient.is_contiguous() else gradient.detach()
    each = pieces[0].numel() if len(pieces) else 1
    for piece in pieces.split(max(1, BLOCK // max(1, each))):
        for block in piece.reshape(-1).split(BLOCK):
            values = block.double()
            places = torch.arange(start, start + len(values), dtype=torch.float64, device=values.device)
            square += float(values @ values)
            projection += float(values @ places.cos_())
            start += len(values)
    return Fingerprint(square, projection)


@dataclass(frozen=True)
class Expected:
    """What the loop says.

    Attributes:
        sq_norms: example → parameter → ‖∇f_i‖².
        total: parameter → fingerprint of Σ∇f_i.
        low_precision: whether gradients are rounded to 16 bits on the way.
    """

    sq_norms: Mapping[int, Mapping[str, float]]
    total: Mapping[str, Fingerprint]
    low_precision: bool

    @property
    def finite(self) -> bool:
        """Whether there is anything to compare: infinite gradients are the model's, and are passed on as they are."""
        return all(math.isfinite(f.sq_norm) for f in self.total.values()) and all(
            math.isfinite(value) for each in self.sq_norms.values() for value in each.values()
        )

    def worst_mismatch(
        self, sq_norms: Mapping[str, Tensor], total: Mapping[str, Tensor], examples: Sequence[int]
    ) -> tuple[str, float] | None:
        """The parameter that is furthest off, if any is off by more than rounding.

        Args:
            sq_norms: what was found: parameter → (m,).
            total: what was found: parameter → Σ∇f_i.
            examples: which examples the m are.

        Returns:
            Its name and relative error, or None.
        """
        worst: tuple[str, float] | None = None
        if not self.finite:
            return None
        # Rounding of a sum that nearly cancels, or of a part of a gradient, is relative to the whole.
        whole = {i: sum(each.values()) for i, each in self.sq_norms.items()}
        scale = max(sum(f.sq_norm for f in self.total.values()), sum(float(n.sum()) for n in sq_norms.values()))
        for name, gradient in total.items():
            found, expected = fingerprint(gradient), self.total[name]
            errors = [abs(found.sq_norm - expected.sq_norm) / scale if scale else found.sq_norm]
            length = (scale * max(1, gradient.numel()) / 2) ** 0.5
            errors.append(abs(found.projection - expected.projection) / length if length else abs(found.projection))
            for i, each in self.sq_norms.items():
                off = abs(float(sq_norms[name][list(examples).index(i)]) - each[name])
                errors.append(off / whole[i] if whole[i] else off)
            error = max(errors)
            limit = LOW_PRECISION_TOLERANCE if self.low_precision else TOLERANCE[gradient.dtype]
            if not error <= limit and (worst is None or error > worst[1]):
                worst = (name, error)
        return worst


def mismatch(name: str, relative: float) -> RuntimeError:
    """The refusal.

    Args:
        name: the parameter that is furthest off.
        relative: by how much.

    Returns:
        An error that says what to do.
    """
    return RuntimeError(
        f"the per-example gradients of parameter {name!r} differ from the loop by a relative {relative:.2g}: refusing "
        "to return them. Does the backward pass of this model change from call to call, or is it non-linear in its "
        "output gradient? variegrad.per_example.loop_gradients is slow and always right."
    )


def disagreement(name: str, found: Disagreement) -> RuntimeError:
    """The refusal where two ways to the same gradients differ from each other.

    Args:
        name: the parameter.
        found: which two, and by how much.

    Returns:
        An error that says what to do.
    """
    return RuntimeError(
        f"the per-example gradients of parameter {name!r} differ between {found.ways[0]!r} and {found.ways[1]!r}, two "
        f"ways of the rule {found.rule!r} that must agree, by {found.relative:.2g} times what rounding may explain: "
        "refusing to return them. variegrad.per_example.loop_gradients is slow and always right."
    )
