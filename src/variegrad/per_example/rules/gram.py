"""Inner products K_ij = ⟨g_i, g_j⟩ between the gradients of all examples, from factors or from slices of the gradients.

No rule forms b gradients at once. Where every example has one row of each factor, K = XXᵀ∘DDᵀ; where it has a few,
K_ij = Σ_{r of i, s of j} (x_r·x_s)(δ_r·δ_s); a table's rows meet only where two examples read the same one. Otherwise a
slice of the parameter is formed for all examples, or, if that cannot be, the whole for two tiles of examples.
Elementwise factors of the gradients (√P of a preconditioner) are applied to the slices; of wide layers with one row per
example, norms and row sums are then exact and the other products sketched.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from variegrad.per_example.rules.contribution import Contribution, Dense, Together
from variegrad.per_example.rules.convolution import Convolution
from variegrad.per_example.rules.embedding import Lookup
from variegrad.per_example.rules.matmul import Outer, Stacked
from variegrad.per_example.rules.tied import Tied
from variegrad.shapes import Float, Inexact

# The gradients of all examples that are formed at once, at most (one of one example where even that is larger).
SLICE_BYTES = 48 << 20
# Scaled products of one row per example have no factored form: larger layers are sketched, into this many sums.
EXACT, SUMS = 1 << 16, 1 << 12
# Single-precision sums of products are kept this short, and added up in double precision.
SHORT = 1 << 15

Gram = Float[Tensor, "b b"]


def gram(part: Contribution, scale: Tensor | None = None) -> Gram:
    """K of what one use of a parameter contributes, float64."""
    match part:
        case Outer() if scale is None and _few_rows(part):
            return _of_rows(part)
        case Outer() if scale is not None and part.left.shape[1] == 1 and part.shape.numel() > EXACT:
            return _sketched(part, scale)
        case Lookup():
            return _of_lookups(part, scale)
        case Stacked():
            scales = [None] * len(part.parts) if scale is None else list(scale)
            return torch.stack([gram(each, s) for each, s in zip(part.parts, scales, strict=True)]).sum(0)
    if part.shape and _slices(part):
        return _by_slices(part, scale)
    return gram_of_tiles(part.rows, part.count, part.shape.numel(), scale)


def gram_of_tiles(form: Callable[[int, int], Tensor], count: int, size: int, scale: Tensor | None = None) -> Gram:
    """K from the gradients themselves, two tiles of examples at a time."""
    step = max(1, SLICE_BYTES // (8 * max(1, size)))
    starts = range(0, count, step)
    blocks: dict[tuple[int, int], Tensor] = {}
    for i in starts:
        here = real_rows(form(i, min(i + step, count)), scale)
        blocks[i, i] = products(here, here)
        for j in starts:
            if j > i:
                blocks[i, j] = products(here, real_rows(form(j, min(j + step, count)), scale))
    return torch.cat([torch.cat([blocks[i, j] if i <= j else blocks[j, i].T for j in starts], 1) for i in starts])


def real_rows(rows: Inexact[Tensor, "t ..."], scale: Tensor | None = None) -> Float[Tensor, "t k"]:
    """Gradients as rows of real numbers of at least single precision, complex ones as pairs."""
    real = torch.view_as_real(rows.resolve_conj()) if rows.is_complex() else rows
    real = real.float() if real.dtype in (torch.bfloat16, torch.float16) else real
    real = real if scale is None else real * scale.to(real.dtype)
    return real.reshape(len(rows), -1)


def products(a: Float[Tensor, "s k"], b: Float[Tensor, "t k"]) -> Float[Tensor, "s t"]:
    """a·bᵀ in float64, at the speed of the rows' own type; neither overflows nor underflows."""
    total = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    one = a is b
    for left, right in zip(a.split(SHORT, 1), b.split(SHORT, 1), strict=True):
        if left.dtype != torch.float64:
            left_unit, right_unit = _unit(left), _unit(right)
            product = (left / left_unit) @ (left / left_unit if one else right / right_unit).T
            total += product.double() * (left_unit.double() * right_unit.double())
        else:
            total += left @ right.T
    return total


def _unit(rows: Tensor) -> Tensor:
    return rows.abs().amax().clamp(min=torch.finfo(rows.dtype).tiny)


def _few_rows(part: Outer) -> bool:
    count, t, p = part.left.shape
    d = part.right.shape[2]
    # In double precision, for terms may cancel; that is twice the work.
    return 2 * count * t * t * (p + d) <= (t + count) * p * d


def _of_rows(part: Outer) -> Gram:
    count, t, _ = part.left.shape
    left, right = (factor.flatten(0, 1).double() for factor in (part.left, part.right))
    step = max(1, SLICE_BYTES // (16 * count * t * t))
    found = []
    for start in range(0, count, step):
        here = slice(start * t, min(start + step, count) * t)
        product = (left[here] @ left.T).mul_(right[here] @ right.T)
        found.append(product.view(-1, t, count, t).sum((1, 3)))
    return torch.cat(found) * part.scale**2


def _sketched(part: Outer, scale: Tensor) -> Gram:
    """⟨s∘δ_ix_iᵀ, s∘δ_jx_jᵀ⟩: norms and row sums exactly, other products by random signs over the shorter side."""
    delta, x = part.left[:, 0] * part.scale, part.right[:, 0]
    if delta.shape[1] > x.shape[1]:
        delta, x, scale = x, delta, scale.T
    delta, x = real_rows(delta), real_rows(x)
    root = scale.to(x.dtype)
    squares = root.square()
    norms = ((delta.square() @ squares) * x.square()).sum(1, dtype=torch.float64)
    along = ((delta @ (squares * (delta.T @ x))) * x).sum(1, dtype=torch.float64)
    draws = torch.Generator().manual_seed(part.shape.numel())
    total = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    repeats = max(4, -(-SUMS // x.shape[1]))
    for _ in range(repeats):
        signs = torch.randint(2, (delta.shape[1],), generator=draws).mul_(2).sub_(1).to(delta)
        rows = x * ((delta * signs) @ root)
        total += products(rows, rows)
    return with_exact_sums(total / repeats, norms, along)


def _of_lookups(part: Lookup, scale: Tensor | None) -> Gram:
    device = part.tokens.device
    kept = (part.tokens >= 0) & (part.examples < part.count)
    keys, place = torch.unique(part.tokens[kept] * part.count + part.examples[kept], return_inverse=True)
    gradients = part.gradients[kept]
    rows = gradients.new_zeros(len(keys), gradients.shape[1]).index_add_(0, place, gradients)
    token, owner = keys // part.count, keys % part.count  # tokens ascend
    rows = real_rows(rows, None if scale is None else scale[token])
    total = torch.zeros(part.count, part.count, dtype=torch.float64, device=device)
    total.view(-1).index_add_(0, owner * (part.count + 1), rows.double().square().sum(1))
    # Rows that one example alone has read are orthogonal to those of all others.
    _, group, readers = torch.unique_consecutive(token, return_inverse=True, return_counts=True)
    shared = readers[group] > 1
    _, group = torch.unique_consecutive(token[shared], return_inverse=True)
    owner, rows = owner[shared], rows[shared]
    if not len(rows):
        return total
    width, number = rows.shape[1], int(group[-1]) + 1
    step = max(1, SLICE_BYTES // (4 * part.count * width))
    bounds = torch.searchsorted(group, torch.arange(0, number + step, step, device=device)).tolist()
    for k, (start, stop) in enumerate(itertools.pairwise(bounds)):
        table = rows.new_zeros(part.count, min(step, number - k * step), width)
        table[owner[start:stop], group[start:stop] - k * step] = rows[start:stop]
        total += products(table.flatten(1), table.flatten(1)).fill_diagonal_(0)
    return total


def _slices(part: Contribution) -> bool:
    """Whether a slice along the first dimension of the parameter can be formed by itself."""
    match part:
        case Convolution():
            return part.geometry.groups == 1
        case Together():
            return all(_slices(each) for each in part.parts)
    return isinstance(part, Outer | Lookup | Tied | Dense)


def _slice(part: Contribution, low: int, high: int) -> Contribution:
    match part:
        case Outer():
            return replace(part, left=part.left[:, :, low:high])
        case Lookup():
            outside = (part.tokens < low) | (part.tokens >= high)
            return replace(part, tokens=(part.tokens - low).masked_fill(outside, -1), vocabulary=high - low)
        case Tied():
            return Tied(_slice(part.lookup, low, high), _slice(part.product, low, high))  # type: ignore[arg-type]
        case Convolution():
            # The first dimension of the weight is that of the outputs, or of the inputs of a transposed convolution.
            side = "inputs" if part.geometry.transposed else "gradients"
            return replace(part, weight=part.weight[low:high], **{side: getattr(part, side)[:, :, low:high]})
        case Dense():
            return Dense(part.gradients[:, low:high])
        case Together():
            return Together(tuple(_slice(each, low, high) for each in part.parts))
    raise AssertionError(type(part).__name__)


def _by_slices(part: Contribution, scale: Tensor | None) -> Gram:
    total: Gram | None = None
    for low, high in _cuts(part):
        rows = real_rows(_slice(part, low, high).rows(0, part.count), None if scale is None else scale[low:high])
        piece = products(rows, rows)
        total = piece if total is None else total.add_(piece)
    assert total is not None
    return total


def _cuts(part: Contribution) -> list[tuple[int, int]]:
    first = part.shape[0]
    each = 4 * part.count * max(1, part.shape.numel() // max(1, first))
    step = max(1, SLICE_BYTES // each)
    return [(low, min(low + step, first)) for low in range(0, first, step)]


def with_exact_sums(gram: Gram, norms: Float[Tensor, " b"], along: Float[Tensor, " b"]) -> Gram:
    """K with the given diagonal and row sums; what is left after U-centring, and so tr(Σ²), is the sketch's."""
    m = len(gram)
    off = gram - torch.diag(gram.diagonal())
    if m <= 2:
        product = float(along[0] - norms[0]) if m == 2 else 0.0
        return torch.diag(norms) + product * (1 - torch.eye(m, dtype=gram.dtype, device=gram.device))
    missing = along - norms - off.sum(1)
    shift = (missing - missing.sum() / (2 * (m - 1))) / (m - 2)
    off = off + shift.unsqueeze(0) + shift.unsqueeze(1)
    return off - torch.diag(off.diagonal()) + torch.diag(norms)
