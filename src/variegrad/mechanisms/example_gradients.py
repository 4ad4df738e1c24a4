"""The per-example gradients that a mechanism is applied to: one parameter at a time, a tile of examples at a time.

Where rules cover a parameter, its gradients stay factors (inputs and output gradients) until a tile asks for rows; all
uses of a tied parameter are summed in these rows. The others come from the exact fallback, chunk by chunk. A gradient
that is not finite is refused here, by the names of its example and parameter, before any mechanism sees it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from variegrad.batches import Batch, map_tensors, shared_length
from variegrad.mechanisms.finite import FiniteChecks, finite_rows
from variegrad.per_example import fallback
from variegrad.per_example.capture import Capture
from variegrad.per_example.evaluate import Losses, NotFinite, evaluate
from variegrad.per_example.norms import engine_of
from variegrad.per_example.rules.contribution import sq_norms
from variegrad.per_example.rules.matmul import Outer
from variegrad.per_example.step import Step
from variegrad.shapes import Float

# Rows, their draws and their sums are in memory together, so tiles are smaller than if only norms are wanted.
TILE_BYTES = 2 << 20
KEPT_BYTES = 32 << 20  # of rows that were formed for their norms and are kept for the draws


@dataclass(frozen=True)
class Tile:
    """∇f_i of examples start … start + t − 1 with respect to one parameter.

    Attributes:
        name: the parameter.
        start: the first example.
        rows: the gradients, float32 or float64; of a complex parameter as pairs of reals, (t, *shape, 2).
    """

    name: str
    start: int
    rows: Float[Tensor, "t ..."]


@dataclass(frozen=True)
class Product:
    """∇f_i = rows_i ⊗ columns_i of all b examples with respect to one parameter: a linear layer that is used once.

    Attributes:
        name: the parameter.
        rows: the factor along the parameter's first dimension.
        columns: the factor along its second.
    """

    name: str
    rows: Float[Tensor, "b r"]
    columns: Float[Tensor, "b c"]

    def tiles(self) -> Iterator[Tile]:
        """The products themselves.

        Yields:
            Tiles that cover all examples.
        """
        step = _examples_in_a_tile(self.rows.shape[1] * self.columns.shape[1])
        for start in range(0, len(self.rows), step):
            here = slice(start, start + step)
            yield Tile(self.name, start, self.rows[here].unsqueeze(2) * self.columns[here].unsqueeze(1))


class ExampleGradients:
    """The gradients of one batch, which can be gone through more than once.

    Args:
        model: the unwrapped model.
        losses: the user's function.
        batch: the batch.
        per_example: `losses(model, batch)`; its backward pass is run here.
        parameters: the trained parameters.
        checks: collects whether every gradient is finite; the caller reads it before it uses the gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        losses: Losses,
        batch: Batch,
        per_example: Float[Tensor, " b"],
        parameters: Mapping[str, nn.Parameter],
        checks: FiniteChecks,
    ) -> None:
        self.checks = checks
        self._formed: dict[str, list[Tile]] = {}
        self._per_example, self._parameters = per_example, parameters
        self._step = Step.of(model, losses, batch, per_example, parameters)
        self._capture = engine_of(model).kept(self._step)

    def __iter__(self) -> Iterator[Product | Tile]:
        if self._capture is None:
            yield from self._of_chunks(
                {name: g.unsqueeze(0) for name, g in gradient.items()}
                for gradient in fallback.loop(self._per_example, self._parameters)
            )
            return
        left = {name: p for name, p in self._parameters.items() if name in self._capture.uncovered}
        for name, parameter in self._parameters.items():
            if name in left:
                continue
            if (product := self._product(self._capture, name)) is not None:
                yield product
                continue
            if name in self._formed:
                yield from self._formed.pop(name)
                continue
            kept = self._capture.kept(name)
            step = _examples_in_a_tile(max([parameter.numel(), *(part.shape.numel() for _, part in kept)]))
            for start in range(0, len(self._per_example), step):
                stop = min(start + step, len(self._per_example))
                yield self._checked(name, start, self._capture.rows(name, start, stop, parameter))
        if left:
            yield from self._of_chunks(fallback.gradients(self._step, left, self._capture.known))

    def tiles(self) -> Iterator[Tile]:
        """The same with every product formed, a tile at a time.

        Yields:
            Tiles; those of one parameter in the order of the examples.
        """
        for part in self:
            if isinstance(part, Tile):
                yield part
            else:
                yield from part.tiles()

    def norms(self) -> Float[Tensor, " b"]:
        """‖∇f_i‖ over all parameters together.

        Returns:
            Float64.
        """
        formed: dict[str, list[Tile]] = {}
        room = KEPT_BYTES
        squares = torch.zeros(len(self._per_example), dtype=torch.float64, device=self._per_example.device)
        for part in self:
            if isinstance(part, Product):
                squares += sq_norms(part.rows) * sq_norms(part.columns)
            else:
                room -= part.rows.numel() * part.rows.element_size()
                covered = self._capture is not None and part.name not in self._capture.uncovered
                if covered and room >= 0:  # small rows are not formed again when they are drawn
                    formed.setdefault(part.name, []).append(part)
                squares[part.start : part.start + len(part.rows)] += sq_norms(part.rows)
        count = len(self._per_example)
        self._formed = {n: tiles for n, tiles in formed.items() if sum(len(t.rows) for t in tiles) == count}
        return squares.sqrt()

    def _of_chunks(self, chunks: Iterator[dict[str, Tensor]]) -> Iterator[Tile]:
        start = 0
        for chunk in chunks:
            for name, rows in chunk.items():
                yield self._checked(name, start, rows.detach())
            start += len(next(iter(chunk.values())))

    def _product(self, capture: Capture, name: str) -> Product | None:
        parts = capture.kept(name)
        if len(parts) != 1:
            return None
        ((use, part),) = parts
        if not isinstance(part, Outer) or part.left.shape[1] != 1 or {n.name() for n in use.chain} - {"TBackward0"}:
            return None
        if part.left.dtype not in (torch.float32, torch.float64) or part.left.dtype != self._parameters[name].dtype:
            return None
        left, right = part.left[:, 0] * part.scale if part.scale != 1 else part.left[:, 0], part.right[:, 0]
        rows, columns = (right, left) if len(use.chain) % 2 else (left, right)
        largest = _largest(rows.detach()) * _largest(columns.detach())
        self._note(largest.isfinite(), 0, name)
        return Product(name, rows.detach(), columns.detach())

    def _checked(self, name: str, start: int, rows: Tensor) -> Tile:
        rows = rows.float() if rows.dtype in (torch.bfloat16, torch.float16) else rows
        rows = as_reals(rows)
        self._note(finite_rows(rows), start, name)
        return Tile(name, start, rows)

    def _note(self, finite: Tensor, start: int, name: str) -> None:
        self.checks.note(finite.all(), lambda: not_finite(start + int((~finite).nonzero()[0]), name))


def not_finite(example: int | None, name: str) -> NotFinite:
    """What to say of a gradient that is not finite.

    Args:
        example: in the batch; None if only their sum is not finite.
        name: the parameter.

    Returns:
        The error.
    """
    whose = "the summed gradient" if example is None else f"the gradient of example {example} of the batch"
    return NotFinite(
        f"{whose} with respect to {name!r} is not finite, and a mechanism would hide that (a quantiser makes a NaN a "
        "finite zero). Nothing was added to .grad. Look for a square root or logarithm at zero, or an overflow."
    )


def first_not_finite(
    model: nn.Module, losses: Losses, batch: Batch, parameters: Mapping[str, nn.Parameter]
) -> NotFinite | None:
    """Which example's gradient is not finite when it is differentiated alone.

    Args:
        model: the unwrapped model.
        losses: the user's function.
        batch: the batch.
        parameters: the trained parameters.

    Returns:
        The error that names it; None if there is none, or examples cannot be cut out of the batch.
    """
    for i in range(shared_length(batch) or 0):
        try:
            alone = evaluate(model, losses, map_tensors(lambda t, i=i: t[i : i + 1], batch))  # type: ignore[misc]
        except Exception:  # noqa: BLE001 - losses that know the whole batch: then what was seen there is said
            return None
        for name, gradient in fallback.one_gradient(alone, 0, parameters).items():
            if not bool(gradient.isfinite().all()):
                return not_finite(i, name)
    return None


def _largest(rows: Tensor) -> Tensor:
    return torch.maximum(rows.amax(1), -rows.amin(1))


def _examples_in_a_tile(size: int) -> int:
    return max(1, TILE_BYTES // max(1, 4 * size))


def as_reals(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of reals, (*shape, 2): a mechanism sees real coordinates only."""
    return torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor.detach()
