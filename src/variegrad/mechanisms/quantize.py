"""Quantised gradients (Section 4.4; Alistarh et al. 2016): each coordinate becomes 0 or ±‖g‖₂, without bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from variegrad.mechanisms.law import Mechanism
from variegrad.moments import NormSums


@dataclass(frozen=True)
class Quantize(Mechanism):
    """[m(g)]_l = ‖g‖₂·sign(g_l)·η_l, η_l ~ Bernoulli(|g_l|/‖g‖₂): E‖m(g)‖² = ‖g‖₁‖g‖₂, and m(0) = 0."""

    needs_l1_norms: ClassVar[bool] = True

    @property
    def mean_scale(self) -> float:
        return 1.0

    def expected_sq_norm(self, norms: NormSums) -> float:
        """Σ‖g_i‖₁‖g_i‖₂.

        Args:
            norms: sums that include Σ‖g_i‖₁‖g_i‖₂.

        Returns:
            That sum.

        Raises:
            ValueError: if it was not collected.
        """
        if norms.sum_l1_l2_norms is None:
            raise ValueError(
                "Quantize needs the sum of ‖g‖₁‖g‖₂ over examples, which was not collected. "
                "Ask for it when measuring: measure(..., mechanism=Quantize())."
            )
        return norms.sum_l1_l2_norms

    def __str__(self) -> str:
        return "Quantize()"
