"""Stochastic gradient Langevin dynamics (Section 4.4): add isotropic Gaussian noise to each ∇f_i.

The noise of B examples is one Gaussian of standard deviation σ√B: drawn once per step, it costs as much as a gradient
has coordinates, and is the same for any number of workers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from torch import Tensor

from variegrad.mechanisms.draws import Draws
from variegrad.mechanisms.law import Mechanism
from variegrad.moments import Diversity, NormSums
from variegrad.shapes import Float


@dataclass(frozen=True)
class Langevin(Mechanism):
    """m(g) = g + ξ, ξ ~ N(0, σ²I), fresh for each example: t = n·d·σ²/Σ‖g_i‖².

    Attributes:
        sigma: σ ≥ 0, the noise of one example on one coordinate of the *summed* update, in units of the gradient.

    Raises:
        ValueError: if σ is negative or not finite.
        TypeError: if it is no number.
    """

    sigma: float

    def __post_init__(self) -> None:
        given: object = self.sigma
        if not isinstance(given, Real):
            raise TypeError(f"Langevin: sigma must be a number; got {given!r}.")
        if not (self.sigma >= 0 and math.isfinite(self.sigma)):
            raise ValueError(f"Langevin: sigma must be a finite number ≥ 0; got {self.sigma}.")

    @property
    def mean_scale(self) -> float:
        return 1.0

    def expected_sq_norm(self, norms: NormSums) -> float:
        return norms.sum_sq_norms + norms.count * norms.dimension * self.sigma**2

    def draw(self, rows: Float[Tensor, "t ..."], draws: Draws) -> Float[Tensor, "t ..."]:
        return rows + self.sigma * draws.normal()

    @property
    def adds_noise(self) -> bool:
        return True

    def noise_of_sum(self, count: int, draws: Draws) -> Tensor:
        return draws.normal()[0].mul_(self.sigma * math.sqrt(count))

    def then(self, other: Mechanism) -> Mechanism:
        return Langevin(math.hypot(self.sigma, other.sigma)) if isinstance(other, Langevin) else super().then(other)

    def variance_in_words(self, diversity: Diversity | None) -> list[str]:
        said = [
            f"σ = {self.sigma:.4g} for each example and coordinate, in units of the gradient of one example's loss."
        ]
        if diversity is not None:
            said.append(f"‖ξ‖ ≈ σ√d = {self.sigma * math.sqrt(diversity.dimension):.4g} for each example.")
        return said

    def __str__(self) -> str:
        return f"Langevin({self.sigma:g})"
