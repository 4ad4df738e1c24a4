"""Σ‖g‖², Σg and Σ‖g‖₁‖g‖₂ over the batches of a pass, with one host read per batch."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from variegrad.moments import GradientMoments
from variegrad.per_example.evaluate import NotFinite
from variegrad.per_example.result import Norms

# Float64 costs four times a float32 sum in memory traffic: batches are added in float32 until there are this many.
BATCHES = 8


class Accumulation:
    """The three sums so far: in float64, from float32 sums of at most eight batches.

    A parameter whose gradients are sparse has a sparse sum, of the rows that were touched.

    Args:
        parameters: the trained parameters.
        l1: whether Σ‖g‖₁‖g‖₂ is wanted.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, l1: bool) -> None:
        self.count = 0
        self._parameters = parameters
        self._squares = dict.fromkeys(parameters, 0.0)
        self._sums: dict[str, Tensor] = {}
        self._recent: dict[str, tuple[Tensor, int]] = {}
        self._l1_l2 = 0.0 if l1 else None

    def add(self, norms: Norms) -> None:
        """Take a batch.

        Args:
            norms: of its examples; its sums are taken over, not copied.

        Raises:
            NotFinite: if a gradient is not finite, naming the example counted from the first batch on.
            ValueError: if ‖g‖₁ is missing although it is wanted.
        """
        device = next(iter(norms.sq_norms.values())).device
        parts = torch.stack([part.to(device, torch.float64) for part in norms.sq_norms.values()])
        each = parts.sum(0)
        found = [parts.sum(1)]
        if self._l1_l2 is not None:
            if norms.l1_norms is None:
                raise ValueError("‖∇f_i‖₁ could not be computed for this batch, and the mechanism's law needs it.")
            found.append((norms.l1_norms.to(device) * each.sqrt()).sum().reshape(1))
        values = torch.cat(found).tolist()
        if not math.isfinite(sum(values)):
            self._refuse(each)
        for name, value in zip(norms.sq_norms, values, strict=False):
            self._squares[name] += value
            self._take(name, norms.total[name].detach())
        if self._l1_l2 is not None:
            self._l1_l2 += values[-1]
        self.count += len(each)

    def moments(self) -> GradientMoments:
        """All that was added."""
        for name in list(self._recent):
            self._fold(name)
        sums = {n: self._sums[n] if n in self._sums else _zero(p) for n, p in self._parameters.items()}
        return GradientMoments(
            count=self.count, sum_sq_norms=self._squares, gradient_sum=sums, sum_l1_l2_norms=self._l1_l2
        )

    def _take(self, name: str, total: Tensor) -> None:
        recent, batches = self._recent.get(name, (None, 0))
        self._recent[name] = total if recent is None else _added(recent, total), batches + 1
        if batches + 1 == BATCHES or total.dtype.itemsize < 4:
            self._fold(name)

    def _fold(self, name: str) -> None:
        total, _ = self._recent.pop(name)
        total = total if name in self._sums and not total.is_sparse else total.to(_wide(total))
        self._sums[name] = _added(self._sums[name], total) if name in self._sums else total

    def _refuse(self, each: Tensor) -> None:
        finite = torch.isfinite(each)
        if bool(finite.all()):
            raise NotFinite(
                "the sum of the squared norms, or of ‖g‖₁‖g‖₂, is beyond float64 although every gradient is finite. "
                "Scale the losses down."
            )
        raise NotFinite(
            f"the gradient of example {self.count + int((~finite).nonzero()[0])} (counted from 0) is not finite "
            "although its loss is. Look for a square root or logarithm at zero, or an overflow in low precision."
        )


def _added(total: Tensor, part: Tensor) -> Tensor:
    """The sum, in place if it can be; a dense tensor takes a sparse one, not the other way round."""
    if total.is_sparse and part.is_sparse:
        return (total + part).coalesce()
    return total.add_(part) if not total.is_sparse else part.to(total.dtype) + total


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.complex128 if tensor.is_complex() else torch.float64


def _zero(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter, dtype=_wide(parameter))
