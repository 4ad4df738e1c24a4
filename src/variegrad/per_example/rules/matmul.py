"""Products with a weight: nn.Linear of any rank, functional linear, attention projections, einsum.

Every row r of the left factor with output gradient δ_r adds x_r ⊗ δ_r, so that g_i = Σ_{r of i} x_r δ_rᵀ = XᵢᵀDᵢ.
Norms without forming g_i where rows are few (Gram): ‖g_i‖² = Σ_{r,s} (x_r·x_s)(δ_r·δ_s). Where g_i is formed anyway,
Σ_i g_i *is* the weight gradient and is not computed a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Size, Tensor

from variegrad.per_example.graph import saved
from variegrad.per_example.plan import choose, chosen
from variegrad.per_example.rules.contribution import (
    TILE_BYTES,
    Contribution,
    Dense,
    NotCovered,
    Summed,
    by_tiles,
    sq_norms,
)
from variegrad.per_example.rules.rounding import sums_apart
from variegrad.per_example.rules.sparse import sparse_rows
from variegrad.per_example.rules.visit import Visit
from variegrad.shapes import Float

# A Gram's sum below this fraction of ‖X‖²‖D‖² has lost too many digits to cancellation.
GRAM_FLOOR = {torch.float32: 2e-3, torch.float64: 1e-6}


@dataclass(frozen=True)
class Outer(Contribution):
    """g_i = leftᵢᵀ rightᵢ.

    Attributes:
        left: rows of the first factor.
        right: rows of the second.
        scale: a constant factor (α of addmm).
        formed: whether products of rows must not stand for gradients: they have cancelled on some batch.
    """

    left: Float[Tensor, "b t p"]
    right: Float[Tensor, "b t d"]
    scale: float = 1.0
    formed: bool = False

    @property
    def count(self) -> int:  # type: ignore[override]
        return len(self.left)

    @property
    def shape(self) -> Size:  # type: ignore[override]
        return Size((self.left.shape[2], self.right.shape[2]))

    def rows(self, start: int, stop: int) -> Tensor:
        rows = self._turned(start, stop).transpose(1, 2)
        return rows if self.scale == 1 else rows * self.scale

    def first(self, count: int) -> Outer:
        return replace(self, left=self.left[:count], right=self.right[:count])

    def _turned(self, start: int, stop: int, out: Tensor | None = None) -> Float[Tensor, "t d p"]:
        # nn.Linear multiplies by the transpose of its weight: g_iᵀ is what lies like the weight itself.
        return torch.bmm(self.right[start:stop].transpose(1, 2), self.left[start:stop], out=out)

    def merged(self, other: Contribution) -> Outer | None:
        if not isinstance(other, Outer) or other.shape != self.shape or other.scale != self.scale:
            return None
        left, right = torch.cat((self.left, other.left), 1), torch.cat((self.right, other.right), 1)
        return Outer(left, right, self.scale, self.formed or other.formed)

    def transposed(self) -> Outer:
        return Outer(self.right, self.left, self.scale, self.formed)

    def summed(self, *, total: bool = True) -> Summed:
        return choose(self, self.variants(total=total), Outer._apart, total, {"formed": lambda o: o._one_by_one(total)})

    def _apart(self, one: Summed, other: Summed) -> float:
        return sums_apart(self.mended(one), self.mended(other), self.bound(), self.left.dtype)

    def bound(self) -> Float[Tensor, " b"]:
        """‖leftᵢ‖²‖rightᵢ‖² ≥ ‖g_i‖², in which nothing cancels."""
        return self.scale**2 * sq_norms(self.left) * sq_norms(self.right)

    @property
    def way(self) -> str:
        if self.left.shape[1] == 1:
            return "rank one"
        return f"product, {chosen(self, True) or next(iter(self.variants()))}"

    @property
    def working_bytes(self) -> int:
        return 0 if self.left.shape[1] == 1 else super().working_bytes

    @property
    def family(self) -> tuple[Hashable, ...]:
        return ("outer", self.shape, self.left.dtype, self.left.device, self.formed)

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.left.shape[1],)

    def variants(self, *, total: bool = True) -> Mapping[str, Callable[[Outer], Summed]]:
        """The exact ways to the same sums, cheapest by the count of operations first."""
        if self.left.shape[1] == 1:
            return {"rank one": lambda o: o._rank_one(total)}
        _, t, p = self.left.shape
        d = self.right.shape[2]
        direct = 2 * t * p * d
        gram = 2 * t * t * (p + d) + direct * total
        ways: dict[str, Callable[[Outer], Summed]] = {}
        # In 16 bits every example's Gram would have to be formed after all.
        exact = self.left.dtype in GRAM_FLOOR and not self.formed
        if direct < 8 * gram or not exact:
            ways["direct"] = lambda o: o._formed(o.tiles(), total)
            if self.count > 1:
                ways["one by one"] = lambda o: o._one_by_one(total)
        if exact and gram < 3 * direct and 4 * t * t < 16 * TILE_BYTES:
            ways["gram"] = lambda o: o._gram(total)
        return ways

    def _rank_one(self, total: bool) -> Summed:
        return self._scaled(sq_norms(self.left) * sq_norms(self.right), self._whole() if total else None)

    def _one_by_one(self, total: bool) -> Summed:
        return self._formed([(i, i + 1) for i in range(self.count)], total)

    def _formed(self, tiles: Sequence[tuple[int, int]], total: bool) -> Summed:
        # Fresh memory for each tile would cost as much as its sums: one tile is written again and again.
        longest = max((stop - start for start, stop in tiles), default=0)
        tile = self.left.new_empty(longest, self.right.shape[2], self.left.shape[2])
        summed = by_tiles(lambda i, j: self._turned(i, j, tile[: j - i]), tiles, total=total)
        return self._scaled(summed.sq_norms, summed.total)

    def _gram(self, total: bool) -> Summed:
        squares = self.gram_sq_norms()
        # Terms that cancel (softmax makes Σ_t δ_t = 0) leave rounding, and large ones overflow.
        lost = ~(squares >= GRAM_FLOOR[self.left.dtype] * sq_norms(self.left) * sq_norms(self.right)) | squares.isinf()
        return replace(self._scaled(squares, self._whole() if total else None), lost=lost)

    def gram_sq_norms(self) -> Float[Tensor, " b"]:
        """Σ_{r,s} (x_r·x_s)(δ_r·δ_s) for each example, without the scale: worthless where terms cancel."""
        step = max(1, TILE_BYTES // (4 * self.left.shape[1] ** 2))
        norms = []
        for start in range(0, self.count, step):
            left, right = self.left[start : start + step], self.right[start : start + step]
            product = torch.bmm(left, left.transpose(1, 2)).mul_(torch.bmm(right, right.transpose(1, 2)))
            norms.append(product.flatten(1).sum(1, dtype=torch.float64))
        return torch.cat(norms)

    def _whole(self) -> Float[Tensor, "d p"]:
        return torch.mm(self.right.flatten(0, 1).t(), self.left.flatten(0, 1))

    def _scaled(self, norms: Tensor, turned: Tensor | None) -> Summed:
        if self.scale != 1:
            norms, turned = norms * self.scale**2, None if turned is None else turned * self.scale
        return Summed(norms, None if turned is None else turned.t())


@dataclass(frozen=True)
class Stacked(Contribution):
    """Independent products of one batched weight (experts, heads): gradients stacked along its first dimension."""

    parts: tuple[Contribution, ...]

    @property
    def way(self) -> str:
        return f"{len(self.parts)} × {self.parts[0].way}"

    @property
    def count(self) -> int:  # type: ignore[override]
        return self.parts[0].count

    @property
    def shape(self) -> Size:  # type: ignore[override]
        return Size((len(self.parts), *self.parts[0].shape))

    def rows(self, start: int, stop: int) -> Tensor:
        return torch.stack([part.rows(start, stop) for part in self.parts], 1)

    def summed(self, *, total: bool = True) -> Summed:
        each = [part.summed(total=total) for part in self.parts]
        totals = [s.total for s in each if s.total is not None]
        lost = [s.lost for s in each if s.lost is not None]
        return Summed(
            torch.stack([s.sq_norms for s in each]).sum(0),
            torch.stack(totals) if total else None,
            torch.stack(lost).any(0) if lost else None,
        )


def mm(visit: Visit, slot: int, shape: Size) -> Contribution:
    """Y = A·W: rows of A and of ∂Y (slot 1); or Y = W·A: columns (slot 0)."""
    node = visit.node
    return _product(visit, saved(node, "mat2") if slot == 0 else saved(node, "self"), slot, shape, 1.0)


def addmm(visit: Visit, slot: int, shape: Size) -> Contribution:
    """Y = β·bias + α·A·W: the bias is slot 0, the factors are slots 1 and 2."""
    node = visit.node
    if slot == 0:
        beta = saved(node, "beta")
        bias = visit.reduced(visit.rows(visit.gradient), shape)
        return Dense(bias if beta == 1 else bias * beta)
    factor: Tensor = saved(node, "mat2") if slot == 1 else saved(node, "mat1")
    return _product(visit, factor, slot - 1, shape, float(saved(node, "alpha")))


def bmm(visit: Visit, slot: int, shape: Size) -> Contribution:  # noqa: ARG001
    """Y[k] = A[k]·W[k] for each k of a batched weight, the examples running along the rows (or columns) of every k."""
    if visit.layout.dim == 0:
        raise NotCovered("a batched product whose examples run along its batch")
    factor: Tensor = saved(visit.node, "mat2") if slot == 0 else saved(visit.node, "self")
    inner = replace(visit, layout=replace(visit.layout, dim=visit.layout.dim - 1))
    return Stacked(tuple(_outer(inner, factor[k], visit.gradient[k], slot, 1.0) for k in range(len(factor))))


def _product(visit: Visit, factor: Tensor, slot: int, shape: Size, scale: float) -> Contribution:
    if factor.layout == torch.strided:
        return _outer(visit, factor, visit.gradient, slot, scale)
    if slot == 0:
        raise NotCovered("a weight on the left of a sparse factor")
    return sparse_rows(visit, factor, shape, scale)


def _outer(visit: Visit, factor: Tensor, gradient: Tensor, slot: int, scale: float) -> Outer:
    if visit.layout.dim != (1 if slot == 0 else 0):
        raise NotCovered("a product whose examples run along the summed dimension")
    if slot == 0:  # Y = W·A is Yᵀ = AᵀWᵀ: its columns are the rows, and g_i = ∂Y_i A_iᵀ
        turned = replace(visit, layout=replace(visit.layout, dim=0))
        return Outer(turned.rows(gradient.t()), turned.rows(factor.t()), scale, visit.formed)
    return Outer(visit.rows(factor), visit.rows(gradient), scale, visit.formed)
