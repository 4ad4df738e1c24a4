"""What every mechanism is: a random surrogate m(g) of a gradient g, by a law of two moments and a draw (Section 4.4).

With E m(g) = c·g and t = Σtr Var m(g_i) / (c²Σ‖g_i‖²), all closed forms follow: B_DIM = n(1+t)/(n/B_D + t) and
B_eff = (1+t)·B_D (`Diversity.bound_with`, `Diversity.effective_bound_with`). A new mechanism states `mean_scale` and
`expected_sq_norm` and draws rows; everything else has a default. `sum_of_rows`, `sum_of_outer` and `noise_of_sum` only
save time: they have the law of what `draw` gives (DropConnect also the same draws).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from variegrad.mechanisms.description import Description, described
from variegrad.mechanisms.draws import Draws
from variegrad.moments import Diversity, NormSums
from variegrad.shapes import Float


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
            norms: n, d, Σ‖g_i‖² and, if `needs_l1_norms`, Σ‖g_i‖₁‖g_i‖₂.

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
            The sum; None if the mechanism has no such method (the default).
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
            The sum; None if the mechanism has no such method (the default).
        """
        return None

    @property
    def adds_noise(self) -> bool:
        """Whether m(g) − g does not depend on g, so that a whole step's noise is one draw (`noise_of_sum`)."""
        return False

    def noise_of_sum(self, count: int, draws: Draws) -> Tensor:
        """Σ_i (m(g_i) − g_i) of a whole step, as one draw; only if `adds_noise`.

        Args:
            count: B, the examples of the step over all workers.
            draws: random numbers for one row.

        Returns:
            The parameter's shape.

        Raises:
            NotImplementedError: if this mechanism adds no noise.
        """
        raise NotImplementedError(f"{type(self).__name__} adds no noise that does not depend on the gradients.")

    def then(self, other: Mechanism) -> Mechanism:
        """This mechanism first, then `other` on what it made.

        Args:
            other: the mechanism that follows.

        Returns:
            The composition, with its law in closed form.

        Raises:
            ValueError: if the law of `other` has no closed form after this one.
        """
        return Composed(self, other)

    def variance_in_words(self, diversity: Diversity | None) -> list[str]:  # noqa: ARG002
        """What `describe` says of this mechanism alone.

        Args:
            diversity: what was measured, if anything was.

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
        return described(self, batch_size, step_size, diversity, granularity, workers)


@dataclass(frozen=True)
class Composed(Mechanism):
    """m(g) = m₂(m₁(g)) with independent draws; made by `first.then(second)`.

    A law that depends on Σ‖g_i‖² and n only is affine in both, since it holds for every set of gradients; so it may be
    applied to the *expected* Σ‖m₁(g_i)‖² of an independent stage before it. For stages with a constant t (DropConnect,
    with Quantize in front), 1+t = (1+t₁)(1+t₂). Σ‖g‖₁‖g‖₂ of what a stage made has no closed form: Quantize can only be
    first.

    Attributes:
        first: m₁.
        second: m₂.

    Raises:
        ValueError: if m₂ needs norms of what m₁ made.
        TypeError: if it is no mechanism.
    """

    first: Mechanism
    second: Mechanism

    def __post_init__(self) -> None:
        second: object = self.second
        if not isinstance(second, Mechanism):
            raise TypeError(f"only a Mechanism can follow {self.first}; got {second!r}.")
        if self.second.needs_l1_norms or self.second.needs_norms:
            raise ValueError(
                f"{self.second} cannot follow {self.first}: its law depends on ‖g‖₁‖g‖₂ of what {self.first} made, "
                f"which has no closed form. Put it first: {self.second}.then({self.first})."
            )

    @property
    def needs_l1_norms(self) -> bool:  # type: ignore[override]
        """Whether the first stage needs them."""
        return self.first.needs_l1_norms

    @property
    def needs_norms(self) -> bool:
        return self.first.needs_norms

    @property
    def mean_scale(self) -> float:
        return self.first.mean_scale * self.second.mean_scale

    def expected_sq_norm(self, norms: NormSums) -> float:
        return self.second.expected_sq_norm(_After(norms.count, norms.dimension, self.first.expected_sq_norm(norms)))

    def draw(self, rows: Float[Tensor, "t ..."], draws: Draws) -> Float[Tensor, "t ..."]:
        return self.second.draw(self.first.draw(rows, draws.stage(0)), draws.stage(1))

    def variance_in_words(self, diversity: Diversity | None) -> list[str]:
        return [
            *(f"First: {line}" for line in self.first.variance_in_words(diversity)),
            *(f"Then: {line}" for line in self.second.variance_in_words(None)),
        ]

    def __str__(self) -> str:
        return f"{self.first}.then({self.second})"


@dataclass(frozen=True)
class _After:
    """The sums over gradients that a stage has made, in expectation."""

    count: int
    dimension: int
    sum_sq_norms: float
    sum_l1_l2_norms: float | None = None
