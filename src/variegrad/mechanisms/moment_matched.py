"""A Gaussian with the mean and the variance of Σ_i m(g_i), coordinate by coordinate: approximate, and cheap.

For DropConnect: Σ_i m(g_i) has mean c·Σg_i and, coordinates being independent, variance c²·p/(1−p)·Σ_i g_i² (squares
elementwise). One Gaussian with these two replaces b masks. The law of B_DIM and B_eff is that of the exact mechanism;
third moments and the set of values are not. Never a default.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from variegrad.mechanisms.draws import Draws
from variegrad.mechanisms.dropconnect import DropConnect
from variegrad.mechanisms.law import Mechanism
from variegrad.moments import Diversity, NormSums
from variegrad.shapes import Float


@dataclass(frozen=True)
class MomentMatched(Mechanism):
    """c·g + c·√(p/(1−p))·|g|∘z, z ~ N(0, I): DropConnect's first two moments, approximate beyond them.

    Attributes:
        of: the mechanism whose moments are matched.

    Raises:
        TypeError: for a mechanism whose variance is not known coordinate by coordinate.
    """

    of: Mechanism

    def __post_init__(self) -> None:
        if not isinstance(self.of, DropConnect):
            raise TypeError(
                f"MomentMatched knows the variance of each coordinate for DropConnect only; got {self.of}. "
                "Langevin is one exact Gaussian already; use the others as they are."
            )

    @property
    def mean_scale(self) -> float:
        return self.of.mean_scale

    def expected_sq_norm(self, norms: NormSums) -> float:
        return self.of.expected_sq_norm(norms)

    def draw(self, rows: Float[Tensor, "t ..."], draws: Draws) -> Float[Tensor, "t ..."]:
        return rows * (self.mean_scale + self._spread * draws.normal())

    def draw_of_sum(self, total: Tensor, sum_of_squares: Tensor, draws: Draws) -> Tensor:
        """One Gaussian for all examples together.

        Args:
            total: Σ_i g_i.
            sum_of_squares: Σ_i g_i², elementwise.
            draws: random numbers for one row.

        Returns:
            The parameter's shape.
        """
        return total * self.mean_scale + sum_of_squares.sqrt() * (self._spread * draws.normal()[0])

    @property
    def _spread(self) -> float:
        assert isinstance(self.of, DropConnect)
        return self.mean_scale * math.sqrt(self.of.p / (1 - self.of.p))

    def variance_in_words(self, diversity: Diversity | None) -> list[str]:  # noqa: ARG002
        return [
            f"APPROXIMATE: a Gaussian with the mean and variance of {self.of} in each coordinate, one for all examples."
        ]

    def __str__(self) -> str:
        return f"MomentMatched({self.of})"
