"""What one use of a parameter adds to each example's gradient, kept in the smallest form that still gives ‖∇f_i‖²."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from variegrad.shapes import Bool, Float, Inexact

# Per-example gradients are formed in tiles of about this many bytes: within the last-level cache of most machines.
TILE_BYTES = 6 << 20
# Entries up to which one float64 reduction is cheaper than several quicker operations.
SHORT = 1 << 16
_OTHERS = tuple(tuple(range(1, dimensions)) for dimensions in range(65))  # all dimensions but the first


class NotCovered(Exception):  # noqa: N818
    """This use is outside what its rule is exact for."""


@dataclass(frozen=True)
class Summed:
    """Σ over examples and the norms, from one visit.

    Attributes:
        sq_norms: ‖g_i‖² for each example, float64.
        total: Σ_i g_i, if it was asked for.
        lost: examples of whose ‖g_i‖² rounding may have left nothing (see `mended`); None if that cannot be.
    """

    sq_norms: Float[Tensor, " b"]
    total: Tensor | None
    lost: Bool[Tensor, " b"] | None = None


class Contribution(ABC):
    """b gradients of one shape, not necessarily formed."""

    count: int
    shape: torch.Size

    @property
    def way(self) -> str:
        """How its sums are found, in words."""
        return "formed at once"

    @property
    def working_bytes(self) -> int:
        """The memory that its sums ask for at once."""
        first, last = self.tiles()[0] if self.count else (0, 0)
        return 4 * (last - first) * self.shape.numel()

    @abstractmethod
    def rows(self, start: int, stop: int) -> Float[Tensor, "t ..."]:
        """The gradients of examples start … stop−1 themselves."""

    def summed(self, *, total: bool = True) -> Summed:
        """‖g_i‖² and Σg_i; rules override this with cheaper ways."""
        return by_tiles(self.rows, self.tiles(), total=total)

    def mended(self, found: Summed) -> Summed:
        """The same with the lost norms taken from the gradients themselves; reads the device."""
        if found.lost is None:
            return found
        norms = found.sq_norms.clone()
        for i in found.lost.nonzero().flatten().tolist():
            norms[i] = sq_norms(self.rows(i, i + 1))[0]
        return Summed(norms, found.total)

    def tiles(self, tile_bytes: int = TILE_BYTES) -> list[tuple[int, int]]:
        """The ranges of examples whose gradients fit a tile."""
        step = max(1, tile_bytes // max(1, 4 * self.shape.numel()))
        return [(i, min(i + step, self.count)) for i in range(0, self.count, step)]

    def transposed(self) -> Contribution | None:
        """The same of the transposed parameter, if that is cheap."""
        return None

    def merged(self, other: Contribution) -> Contribution | None:  # noqa: ARG002
        """Both uses as one contribution of the same kind, if that is cheap."""
        return None


@dataclass(frozen=True)
class Dense(Contribution):
    """Gradients small enough to be formed at once: biases, scales, norms' weights.

    Attributes:
        gradients: one per row.
    """

    gradients: Float[Tensor, "b ..."]

    @property
    def count(self) -> int:  # type: ignore[override]
        return len(self.gradients)

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return self.gradients.shape[1:]

    def rows(self, start: int, stop: int) -> Tensor:
        return self.gradients[start:stop]

    def summed(self, *, total: bool = True) -> Summed:
        return Summed(sq_norms(self.gradients), self.gradients.sum(0) if total else None)

    def merged(self, other: Contribution) -> Dense | None:
        return Dense(self.gradients + other.gradients) if isinstance(other, Dense) else None


@dataclass(frozen=True)
class Together(Contribution):
    """Several uses of one parameter: ‖Σ_k g_ik‖² is not Σ_k ‖g_ik‖², so tiles of their sums are formed."""

    parts: tuple[Contribution, ...]

    @property
    def way(self) -> str:
        return f"tiles of {len(self.parts)} uses together"

    @property
    def count(self) -> int:  # type: ignore[override]
        return self.parts[0].count

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return self.parts[0].shape

    def rows(self, start: int, stop: int) -> Tensor:
        first, *others = (part.rows(start, stop) for part in self.parts)
        return sum(others, start=first)


def by_tiles(form: Callable[[int, int], Tensor], tiles: Iterable[tuple[int, int]], *, total: bool = True) -> Summed:
    """Form the gradients a tile at a time, and square and add them while they are in cache."""
    norms: list[Tensor] = []
    sums: Tensor | None = None
    for start, stop in tiles:
        rows = form(start, stop)
        norms.append(sq_norms(rows))
        if total:
            # In 16 bits a long sum stops growing: it is kept in 32.
            if sums is None or len(rows) > 1:
                part = rows.sum(0, dtype=_wide(rows.dtype))
                sums = part if sums is None else sums.add_(part)
                del part
            else:
                sums.add_(rows[0])
        dtype = rows.dtype
        del rows  # before the next are formed
    return Summed(torch.cat(norms), None if sums is None else sums.to(dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def combine(parts: Sequence[Contribution]) -> Contribution:
    """The sum of several uses of one parameter, in one shape."""
    merged = [parts[0]]
    for part in parts[1:]:
        for k, kept in enumerate(merged):
            if (joint := kept.merged(part)) is not None:
                merged[k] = joint
                break
        else:
            merged.append(part)
    return merged[0] if len(merged) == 1 else Together(tuple(merged))


def sq_norms(rows: Inexact[Tensor, "b ..."]) -> Float[Tensor, " b"]:
    """‖row‖² in float64, at the speed of a float32 norm; complex rows are pairs of reals."""
    if rows.is_complex():
        rows = torch.view_as_real(rows.resolve_conj())
    if rows.dim() > 1 and rows.dtype == torch.float32 and rows.numel() <= SHORT:
        return torch.linalg.vector_norm(rows, dim=_OTHERS[rows.dim()], dtype=torch.float64).square_()
    flat = rows.flatten(1) if rows.dim() > 1 else rows.unsqueeze(1)
    if flat.dtype in (torch.bfloat16, torch.float16):
        flat = flat.float()
    if flat.dtype == torch.float64:
        return torch.linalg.vecdot(flat, flat)
    if flat.shape[1] <= 64:
        return torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64).square_()
    # Short float32 sums lose nothing that matters; the long one over them is float64.
    width = next((w for w in (1024, 800, 768, 576, 512, 400, 256, 128, 75, 64) if flat.shape[1] % w == 0), None)
    if width is None:
        return torch.linalg.vector_norm(flat, dim=1).double().square()
    return torch.linalg.vector_norm(flat.unflatten(1, (-1, width)), dim=2).double().square().sum(1)


def l1_norms(rows: Inexact[Tensor, "t ..."]) -> Float[Tensor, " t"]:
    """‖row‖₁ in float64; a complex entry counts as two."""
    if rows.is_complex():
        rows = torch.view_as_real(rows.resolve_conj())
    return rows.flatten(1).abs().sum(1, dtype=torch.float64) if rows.dim() > 1 else rows.abs().double()
