"""What every mechanism is: a random surrogate m(g) of a gradient g, by a law of two moments and a draw (Section 4.4).

With E m(g) = c·g and t = Σtr Var m(g_i) / (c²Σ‖g_i‖²), all closed forms follow: B_DIM = n(1+t)/(n/B_D + t) and
B_eff = (1+t)·B_D (`Diversity.bound_with`, `Diversity.effective_bound_with`). A new mechanism states `mean_scale` and
`expected_sq_norm` and draws rows; everything else has a default. `sum_of_rows`, `sum_of_outer` and `noise_of_sum` only
save time: they have the law of what `draw` gives (DropConnect also the same draws).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from variegrad.mechanisms.draws import Draws
from variegrad.moments import Diversity, NormSums
from variegrad.shapes import Float

if TYPE_CHECKING:
    from variegrad.mechanisms.description import Description


class Mechanism(ABC):
    """A diversity-inducing mechanism m: its law, and how it is drawn."""

    needs_l1_norms: ClassVar[bool] = False
    """Whether the law depends on Σ‖g_i‖₁‖g_i‖₂, which costs a measurement more than Σ‖g_i‖² does."""

    @property
    def needs_norms(self) -> bool:
        """Whether a draw depends on ‖∇f_i‖ over all parameters (`Draws.norms`), so that a first pass finds it."""
        return False

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

    @abstractmethod
    def draw(self, rows: Float[Tensor, "t ..."], draws: Draws) -> Float[Tensor, "t ..."]:
        """m(g_i) restricted to one parameter, for t examples, each drawn independently.

        Args:
            rows: the t gradients with respect to that parameter.
            draws: random numbers of the rows' shape, keyed by each row's position.

        Returns:
            Surrogates of the same shape.
        """

    def sum_of_rows(self, rows: Float[Tensor, "t ..."], draws: Draws) -> Tensor | None:  # noqa: ARG002
        """Σ_i m(rows_i), with the law of what `draw` gives, without holding the surrogates.

        Args:
            rows: as for `draw`; they are not to be written to.
            draws: as for `draw`.

        Returns:
            The sum; None where the mechanism has no such way (the default).
        """
        return None

    def sum_of_outer(
        self,
        rows: Float[Tensor, "b r"],  # noqa: ARG002
        columns: Float[Tensor, "b c"],  # noqa: ARG002
        draws: Draws,  # noqa: ARG002
    ) -> Float[Tensor, "r c"] | None:
        """Σ_i m(rows_i ⊗ columns_i), with the law of what `draw` gives, without forming the products.

        Args:
            rows: the factor along the parameter's first dimension.
            columns: the factor along its second.
            draws: as for `draw`, of all b examples.

        Returns:
            The sum; None where the mechanism has no such way (the default).
        """
        return None

    @property
    def adds_noise(self) -> bool:
        """Whether m(g) − g does not depend on g, so that a whole step's noise is one draw (`noise_of_sum`)."""
        return False

    def noise_of_sum(self, count: int, draws: Draws) -> Tensor:
        """Σ_i (m(g_i) − g_i) of a whole step, as one draw; only where `adds_noise`.

        Args:
            count: B, the examples of the step over all workers.
            draws: random numbers for one row.

        Returns:
            The parameter's shape.
        """
        raise NotImplementedError

    def then(self, other: Mechanism) -> Mechanism:
        """This mechanism first, then `other` on what it made.

        Args:
            other: the mechanism that follows.

        Returns:
            The composition, with its law in closed form.

        Raises:
            ValueError: if the law of `other` has no closed form after this one.
        """
        from variegrad.mechanisms.composed import Composed  # noqa: PLC0415 - a composition is a mechanism

        return Composed(self, other)

    def variance_in_words(self, diversity: Diversity | None) -> list[str]:  # noqa: ARG002
        """What `describe` says of this mechanism alone.

        Args:
            diversity: what was measured, where it was.

        Returns:
            Sentences.
        """
        return []

    def describe(
        self,
        *,
        batch_size: int,
        step_size: float | None = None,
        diversity: Diversity | None = None,
        granularity: str = "example",
        workers: int = 1,
    ) -> Description:
        """What the mechanism does to one update, in numbers with their units.

        Args:
            batch_size: B, the examples of an update over all workers.
            step_size: γ of the summed gradient, for the noise on the weights.
            diversity: what `measure` found (with `mechanism=` for Quantize), for t and the bounds.
            granularity: "example" or "worker", as for `backward`.
            workers: P, for "worker".

        Returns:
            A record that prints itself.

        Raises:
            ValueError: if a number is out of its range.
        """
        from variegrad.mechanisms.description import described  # noqa: PLC0415 - it speaks of mechanisms

        return described(self, batch_size, step_size, diversity, granularity, workers)
