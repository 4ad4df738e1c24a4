"""Two mechanisms, one after the other, where the law still has a closed form.

A law that depends on Σ‖g_i‖² and n only is affine in both, since it holds for every set of gradients; so it may be
applied to the *expected* Σ‖m₁(g_i)‖² of an independent stage before it. For stages with a constant t (DropConnect, with
Quantize in front), 1+t = (1+t₁)(1+t₂). Σ‖g‖₁‖g‖₂ of what a stage made has no closed form: Quantize can only be first.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from variegrad.mechanisms.draws import Draws
from variegrad.mechanisms.law import Mechanism
from variegrad.moments import Diversity, NormSums
from variegrad.shapes import Float


@dataclass(frozen=True)
class Composed(Mechanism):
    """m(g) = m₂(m₁(g)) with independent draws; made by `first.then(second)`.

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
