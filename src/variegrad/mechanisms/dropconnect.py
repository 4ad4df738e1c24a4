"""DropConnect on gradients (Section 4.4): keep each coordinate of ∇f_i with probability 1−p, independently."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from variegrad.mechanisms.draws import Array, Draws, Visit, below, blocks, nonzero_blocks
from variegrad.mechanisms.law import Mechanism
from variegrad.moments import Diversity, NormSums
from variegrad.shapes import Float


@dataclass(frozen=True)
class DropConnect(Mechanism):
    """m(g) = D·g with D diagonal, Bernoulli(1−p); divided by 1−p where `rescale` (unbiased, the default).

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
        given = (rows * self._factor).cpu().numpy().reshape(len(rows), -1)
        bounds = blocks(draws.shape)

        def begin() -> Visit:
            scratch = np.empty(bounds[0][1] if bounds else 0, bool)

            def mask(generator: np.random.Generator, i: int, start: int, stop: int) -> None:
                keep = scratch[: stop - start]
                below(generator, 1 - self.p, keep)
                given[i, start:stop] *= keep

            return mask

        draws.over_blocks(begin, nonzero_blocks(given, bounds))
        return torch.from_numpy(given).view(rows.shape).to(rows.device)

    def sum_of_outer(
        self, rows: Float[Tensor, "b r"], columns: Float[Tensor, "b c"], draws: Draws
    ) -> Float[Tensor, "r c"] | None:
        left, right = rows.cpu().numpy(), (columns * self._factor).cpu().numpy()
        width, bounds = right.shape[1], blocks(draws.shape)
        if any(start % width for start, _ in bounds):  # rows too long for a block
            return None
        total = np.zeros((left.shape[1], width), left.dtype)
        live = nonzero_blocks(left, bounds, width)
        live &= np.any(right, axis=1, keepdims=True)

        def begin(into: Array) -> Visit:
            scratch, product = np.empty(bounds[0][1], bool), np.empty(bounds[0][1], left.dtype)

            def add(generator: np.random.Generator, i: int, start: int, stop: int) -> None:
                keep, here = scratch[: stop - start], slice(start // width, stop // width)
                below(generator, 1 - self.p, keep)
                drawn = product[: stop - start].reshape(-1, width)
                np.multiply(left[i, here, None], right[i], out=drawn)
                drawn *= keep.reshape(drawn.shape)
                into[here] += drawn

            return add

        draws.sum_over_blocks(begin, total, live)
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
