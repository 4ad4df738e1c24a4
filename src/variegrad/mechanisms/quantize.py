"""Quantised gradients (Section 4.4; Alistarh et al. 2016): each coordinate becomes 0 or ±‖g‖₂, without bias.

‖g‖₂ is that of the whole ∇f_i, never of one parameter's part: a first pass finds it. At most √d of d coordinates differ
from zero on average, and only as many are drawn (`thinning`). `draw` and `sum_of_outer` draw alike, up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from variegrad.mechanisms import masks, thinning
from variegrad.mechanisms.draws import Draws, rows_of
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
        given, norms, example, at = self._successes(rows, draws)
        drawn = np.zeros_like(given)
        drawn[example, at] = np.sign(given[example, at]) * norms[example]
        return torch.from_numpy(drawn).view_as(rows).to(rows.device)

    def sum_of_rows(self, rows: Float[Tensor, "t ..."], draws: Draws) -> Tensor | None:
        given, norms, example, at = self._successes(rows, draws)
        total = np.zeros(given.shape[1], given.dtype)
        np.add.at(total, at, np.sign(given[example, at]) * norms[example].astype(given.dtype))
        return torch.from_numpy(total).view(rows.shape[1:]).to(rows.device)

    def sum_of_outer(
        self, rows: Float[Tensor, "b r"], columns: Float[Tensor, "b c"], draws: Draws
    ) -> Float[Tensor, "r c"] | None:
        assert draws.norms is not None
        norms = draws.norms.double().cpu().numpy()
        left, right = rows.cpu().numpy(), columns.cpu().numpy()
        example, a, b = thinning.of_products(np.abs(left), np.abs(right), norms, draws.mask_key(), draws.positions)
        total = np.zeros((left.shape[1], right.shape[1]), left.dtype)
        signs = np.sign(left[example, a]) * np.sign(right[example, b])
        np.add.at(total, (a, b), signs * norms[example].astype(left.dtype))
        return torch.from_numpy(total).to(rows.device)

    def _successes(self, rows: Tensor, draws: Draws) -> tuple[masks.Array, masks.Array, masks.Array, masks.Array]:
        assert draws.norms is not None
        norms = draws.norms.double().cpu().numpy()
        given = rows.cpu().numpy().reshape(len(rows), -1)
        sizes = rows.detach().cpu().abs().view(len(rows), -1)
        sums = sizes.double().cumsum(1)  # torch's takes a tenth of numpy's
        columns = rows_of(draws.shape)[1]
        found = thinning.of_rows(sizes.numpy(), sums.numpy(), columns, norms, draws.mask_key(), draws.positions)
        return given, norms, *found

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
