"""Π_W, the Euclidean projection of the trained weights onto a convex set W, after each update (Section 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from variegrad.exact import short, text

PIECE = 2**20  # weights


@runtime_checkable
class Projection(Protocol):
    """A convex set W that the weights are kept in."""

    def project(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the weights by the nearest point of W, in place.

        Args:
            weights: every trained parameter by its name: together they are w.
        """


@dataclass(frozen=True, eq=False)
class Ball(Projection):
    """W = {w : ‖w − c‖₂ ≤ R}, over all trained weights together.

    Attributes:
        radius: R > 0.
        center: c, a tensor for each trained parameter by its name; the origin by default.

    Raises:
        ValueError: if the radius is not positive and finite.
    """

    radius: float
    center: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.radius < math.inf:
            raise ValueError(f"Ball: radius must be positive and finite; got {self.radius}.")

    def project(self, weights: Mapping[str, Tensor]) -> None:
        if self.center is not None and self.center.keys() != weights.keys():
            raise ValueError(
                f"Ball: center must name the trained parameters {_names(list(weights))}; "
                f"got {_names(list(self.center))}."
            )
        center = {name: None if self.center is None else self.center[name].to(w) for name, w in weights.items()}
        squares = [_squares(w if (c := center[name]) is None else w - c) for name, w in weights.items()]
        distance = math.sqrt(math.fsum(squares))
        if distance <= self.radius:
            return
        for name, w in weights.items():
            if (c := center[name]) is None:
                w.mul_(self.radius / distance)
            else:
                w.sub_(c).mul_(self.radius / distance).add_(c)

    def __str__(self) -> str:
        return f"Ball({short(self.radius)}{'' if self.center is None else f', around {text(self.center)}'})"


@dataclass(frozen=True)
class Box(Projection):
    """W = {w : low ≤ w_j ≤ high for every coordinate j}.

    Attributes:
        low: the smallest weight; −inf for none.
        high: the largest; +inf for none.

    Raises:
        ValueError: if low is not below high.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"Box: low must be below high; got {self.low} and {self.high}.")

    def project(self, weights: Mapping[str, Tensor]) -> None:
        for w in weights.values():
            w.clamp_(self.low, self.high)

    def __str__(self) -> str:
        return f"Box({short(self.low)}, {short(self.high)})"


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


def _squares(w: Tensor) -> float:
    """‖w‖² in float64, a piece at a time: a copy of the whole would cost more than the norm."""
    return math.fsum(float(piece.double().square().sum()) for piece in w.detach().reshape(-1).split(PIECE))
