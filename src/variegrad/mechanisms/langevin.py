"""Stochastic gradient Langevin dynamics (Section 4.4): add isotropic Gaussian noise to each ∇f_i."""

from __future__ import annotations

import math
from dataclasses import dataclass

from variegrad.mechanisms.law import Mechanism
from variegrad.moments import NormSums


@dataclass(frozen=True)
class Langevin(Mechanism):
    """m(g) = g + ξ, ξ ~ N(0, σ²I), fresh for each example: t = n·d·σ²/Σ‖g_i‖².

    Attributes:
        sigma: σ ≥ 0, the noise of one example on one coordinate of the *summed* update, in units of the gradient.

    Raises:
        ValueError: if σ is negative or not finite.
    """

    sigma: float

    def __post_init__(self) -> None:
        if not (self.sigma >= 0 and math.isfinite(self.sigma)):
            raise ValueError(f"Langevin: sigma must be a finite number ≥ 0; got {self.sigma}.")

    @property
    def mean_scale(self) -> float:
        return 1.0

    def expected_sq_norm(self, norms: NormSums) -> float:
        return norms.sum_sq_norms + norms.count * norms.dimension * self.sigma**2

    def __str__(self) -> str:
        return f"Langevin({self.sigma:g})"
