"""Is everything finite? Asked of many tensors, read from the device once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from variegrad.shapes import Bool, Float


def finite(values: Tensor) -> Bool[Tensor, ""]:
    """Whether every number is finite, left on the device.

    Args:
        values: of any type and shape, dense or sparse.

    Returns:
        One Boolean.
    """
    values = values.detach()
    if values.is_sparse:
        values = values.coalesce().values()
    if values.is_complex():
        values = torch.view_as_real(values)
    if not values.is_floating_point() or not values.numel():
        return torch.ones((), dtype=torch.bool, device=values.device)
    low, high = torch.aminmax(values)  # they hand NaN on, never overflow, and take a tenth of an infinite norm
    return low.isfinite() & high.isfinite()


def total(values: Tensor) -> Float[Tensor, ""]:
    """Σ of the values: not finite if one of them is not, for half of what `finite` costs; left on the device.

    Args:
        values: of any type and shape, dense or sparse.

    Returns:
        One number in float64. It may overflow although all are finite: ask `finite` then.
    """
    values = values.detach()
    if values.is_sparse:
        values = values.coalesce().values()
    if values.is_complex():
        values = torch.view_as_real(values)
    if values.dtype in (torch.float16, torch.bfloat16):
        return values.sum(dtype=torch.float32).double()
    return values.sum().double()


def finite_rows(rows: Float[Tensor, "t ..."]) -> Bool[Tensor, " t"]:
    """Whether every number of each row is finite, left on the device.

    Args:
        rows: dense and real.

    Returns:
        One Boolean per row.
    """
    rows = rows.detach().reshape(len(rows), -1)
    if not rows.shape[1]:
        return torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    return rows.amax(1).isfinite() & rows.amin(1).isfinite()


class FiniteChecks:
    """Checks whose answers stay on the device until they are read together."""

    def __init__(self) -> None:
        self._flags: list[Tensor] = []
        self._errors: list[Callable[[], Exception]] = []

    def note(self, flag: Bool[Tensor, ""], error: Callable[[], Exception]) -> None:
        """Add a check.

        Args:
            flag: its answer.
            error: what to raise if it is False.
        """
        self._flags.append(flag)
        self._errors.append(error)

    def all(self) -> Bool[Tensor, ""] | None:
        """Whether all hold, on the device.

        Returns:
            One Boolean; None if nothing was checked.
        """
        return torch.stack(self._flags).all() if self._flags else None

    def refuse(self) -> None:
        """Raise the first error, with one read from the device; nothing is checked twice."""
        answers = torch.stack(self._flags).tolist() if self._flags else []
        errors = [error for error, answer in zip(self._errors, answers, strict=True) if not answer]
        self._flags, self._errors = [], []
        if errors:
            raise errors[0]()
