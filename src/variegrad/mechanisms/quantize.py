"""Quantised gradients (Section 4.4; Alistarh et al. 2016): each coordinate becomes 0 or ±‖g‖₂, without bias.

‖g‖₂ is that of the whole ∇f_i, never of one parameter's part: a first pass finds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from variegrad.mechanisms.draws import (
    WORD,
    Array,
    Draws,
    Visit,
    blocks,
    decided,
    nonzero,
    nonzero_blocks,
    successes,
    words,
)
from variegrad.mechanisms.law import Mechanism
from variegrad.moments import Diversity, NormSums
from variegrad.shapes import Float


@dataclass(frozen=True)
class Quantize(Mechanism):
    """[m(g)]_l = ‖g‖₂·sign(g_l)·η_l, η_l ~ Bernoulli(|g_l|/‖g‖₂): E‖m(g)‖² = ‖g‖₁‖g‖₂, and m(0) = 0."""

    needs_l1_norms: ClassVar[bool] = True

    @property
    def needs_norms(self) -> bool:
        return True

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

    def draw(self, rows: Float[Tensor, "t ..."], draws: Draws) -> Float[Tensor, "t ..."]:
        assert draws.norms is not None
        norms = draws.norms.double().cpu().numpy()
        given = rows.cpu().numpy().reshape(len(rows), -1)
        drawn = np.zeros_like(given)
        bounds = blocks(draws.shape)

        def write(generator: np.random.Generator, i: int, start: int, stop: int) -> None:
            here = given[i, start:stop]
            hit = successes(generator, np.abs(here).astype(np.float64) / norms[i])
            drawn[i, start:stop][hit] = np.sign(here[hit]) * norms[i]

        draws.over_blocks(lambda: write, nonzero_blocks(given, bounds))
        return torch.from_numpy(drawn).view_as(rows).to(rows.device)

    def sum_of_outer(
        self, rows: Float[Tensor, "b r"], columns: Float[Tensor, "b c"], draws: Draws
    ) -> Float[Tensor, "r c"] | None:
        assert draws.norms is not None
        norms = draws.norms.double().cpu().numpy()
        left, right = rows.cpu().numpy(), columns.cpu().numpy()
        width = right.shape[1]
        total = np.zeros((left.shape[1], width), left.dtype)
        bounds = blocks(draws.shape)
        if any(start % width for start, _ in bounds):  # rows too long for a block
            return None
        largest = np.abs(right).max(1).astype(np.float64)
        live = nonzero_blocks(left, bounds, width)
        live &= (largest > 0)[:, None]

        def begin(into: Array) -> Visit:
            def add(generator: np.random.Generator, i: int, start: int, stop: int) -> None:
                first, last = start // width, stop // width
                u = words(generator, stop - start)
                # A row's largest probability rules out all but few of its coordinates, without forming the product.
                bound = np.abs(left[i, first:last]).astype(np.float64) * largest[i] / norms[i] * WORD
                limit = np.minimum(bound + 1, WORD - 1).astype(np.uint16)
                near = nonzero((u.reshape(-1, width) <= limit[:, None]).ravel())

                def products(at: Array) -> Array:
                    values: Array = left[i, first + at // width] * right[i, at % width]
                    return values

                hit = decided(generator, u, near, lambda at: np.abs(products(at)).astype(np.float64) / norms[i] * WORD)
                into[first:last].reshape(-1)[hit] += np.sign(products(hit)) * norms[i]

            return add

        draws.sum_over_blocks(begin, total, live)
        return torch.from_numpy(total).to(rows.device)

    def variance_in_words(self, diversity: Diversity | None) -> list[str]:
        said = ["A coordinate g_l becomes ±‖g‖₂ with probability |g_l|/‖g‖₂, and 0 otherwise."]
        if diversity is not None and diversity.sum_l1_l2_norms is not None and diversity.sum_sq_norms > 0:
            share = diversity.sum_l1_l2_norms / diversity.sum_sq_norms
            said.append(
                f"‖g‖₁/‖g‖₂ ≈ {share:.4g} nonzeros for each example (mean weighted by ‖g_i‖²), "
                f"of d = {diversity.dimension:,}; never more than √d = {diversity.dimension**0.5:.4g} on average."
            )
        return said

    def __str__(self) -> str:
        return "Quantize()"
