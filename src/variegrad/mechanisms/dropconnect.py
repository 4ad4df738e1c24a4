"""DropConnect on gradients (Section 4.4): keep each coordinate of ∇f_i with probability 1−p, independently."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from variegrad.mechanisms import masks
from variegrad.mechanisms.draws import Draws, rows_of
from variegrad.mechanisms.law import Mechanism
from variegrad.moments import Diversity, NormSums
from variegrad.shapes import Float


@dataclass(frozen=True)
class DropConnect(Mechanism):
    """m(g) = D·g with D diagonal, Bernoulli(1−p); divided by 1−p if `rescale` (unbiased, the default).

    1/B_DIM = (1−p)/B_D + p/n and B_eff = B_D/(1−p), with or without rescaling. `rescale=False` is the paper's form,
    whose mean is (1−p)·g: a step size keeps its meaning only with rescaling.

    Attributes:
        p: the drop probability, 0 ≤ p < 1.
        rescale: whether kept coordinates are divided by 1−p.

    Raises:
        ValueError: if p is outside [0, 1).
        TypeError: if it is no number.
    """

    p: float
    rescale: bool = True

    def __post_init__(self) -> None:
        given: object = self.p
        if not isinstance(given, Real):
            raise TypeError(f"DropConnect: the drop probability p must be a number; got {given!r}.")
        if not 0 <= self.p < 1:
            raise ValueError(f"DropConnect: the drop probability p must lie in [0, 1); got {self.p}.")

    @property
    def mean_scale(self) -> float:
        return 1.0 if self.rescale else 1 - self.p

    def expected_sq_norm(self, norms: NormSums) -> float:
        return norms.sum_sq_norms * (self.mean_scale**2 / (1 - self.p))

    def draw(self, rows: Float[Tensor, "t ..."], draws: Draws) -> Float[Tensor, "t ..."]:
        given = (rows * self._factor).cpu().contiguous().numpy()
        masks.keep(given.reshape(len(rows), *rows_of(draws.shape)), draws.mask_key(), draws.positions, 1 - self.p)
        return torch.from_numpy(given).to(rows.device)

    def sum_of_rows(self, rows: Float[Tensor, "t ..."], draws: Draws) -> Tensor | None:
        given = rows.cpu().contiguous().numpy().reshape(len(rows), *rows_of(draws.shape))
        total = np.zeros(given.shape[1:], given.dtype)
        masks.add_kept_rows(total, given, draws.mask_key(), draws.positions, 1 - self.p)
        return (torch.from_numpy(total) * self._factor).view(rows.shape[1:]).to(rows.device)

    def sum_of_outer(
        self, rows: Float[Tensor, "b r"], columns: Float[Tensor, "b c"], draws: Draws
    ) -> Float[Tensor, "r c"] | None:
        left, right = rows.cpu().numpy(), (columns * self._factor).cpu().numpy()
        total = np.zeros((left.shape[1], right.shape[1]), left.dtype)
        masks.add_kept(total, left, right, draws.mask_key(), draws.positions, 1 - self.p)
        return torch.from_numpy(total).to(rows.device)

    @property
    def _factor(self) -> float:
        return 1 / (1 - self.p) if self.rescale else 1.0

    def then(self, other: Mechanism) -> Mechanism:
        if isinstance(other, DropConnect) and other.rescale == self.rescale:  # two independent masks are one
            return DropConnect(1 - (1 - self.p) * (1 - other.p), rescale=self.rescale)
        return super().then(other)

    def variance_in_words(self, diversity: Diversity | None) -> list[str]:  # noqa: ARG002
        return [
            f"Each coordinate of an example's gradient is kept with probability {1 - self.p:.4g}"
            + (
                f", and then multiplied by {self._factor:.4g}."
                if self.rescale
                else "; the mean shrinks by that factor."
            )
        ]

    def __str__(self) -> str:
        return f"DropConnect({self.p:g}{'' if self.rescale else ', unscaled'})"
