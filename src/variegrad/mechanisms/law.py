"""What every mechanism is: a random surrogate m(g) of a gradient g, known by two moments (Section 4.4).

With E m(g) = c·g and t = Σtr Var m(g_i) / (c²Σ‖g_i‖²), all closed forms follow: B_DIM = n(1+t)/(n/B_D + t) and
B_eff = (1+t)·B_D (`Diversity.bound_with`, `Diversity.effective_bound_with`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from variegrad.moments import NormSums


class Mechanism(ABC):
    """A diversity-inducing mechanism m, by its law."""

    needs_l1_norms: ClassVar[bool] = False
    """Whether the law depends on Σ‖g_i‖₁‖g_i‖₂, which costs a measurement more than Σ‖g_i‖² does."""

    @property
    @abstractmethod
    def mean_scale(self) -> float:
        """The factor c in E m(g) = c·g."""

    @abstractmethod
    def expected_sq_norm(self, norms: NormSums) -> float:
        """Σ_i E‖m(g_i)‖² from the sums over the gradients it is applied to.

        Args:
            norms: n, d, Σ‖g_i‖² and, where `needs_l1_norms`, Σ‖g_i‖₁‖g_i‖₂.

        Returns:
            The expected sum of squared norms.
        """
