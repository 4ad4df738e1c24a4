"""(Û, M̂²) of one step from sums over its cells: a cell is one micro-batch of one worker.

Cell j adds up s_j = Σ_{i∈j} g_i over b_j examples and enters the step as c_j·s_j, where c_j is what the loop makes of
each loss (1/b of a mean, 1/k of accumulation, the loss scale). With V = ‖Σ_j c_j s_j‖², E Û = mean_{i≠k}⟨g_i, g_k⟩ and
E M̂² = mean‖g_i‖² for

    Û = (V − Σ c_j²A_j)/((Σ c_j b_j)² − Σ c_j² b_j),      M̂² = Σ c_j²A_j / Σ c_j² b_j

where A_j = Σ_{i∈j}‖g_i‖² is known (or estimated without bias), and otherwise, from W = Σ c_j²‖s_j‖² alone,

    Û = (V − W)/((Σ c_j b_j)² − Σ c_j² b_j²),      M̂² = (W − (Σ c_j² b_j² − Σ c_j² b_j)·Û)/Σ c_j² b_j.

Everything but V is a sum over cells, so that workers exchange it in one all-reduce. For equal c_j these are
`moments_from_norms` and `moments_from_workers`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from variegrad.estimators import StepMoments


@dataclass(frozen=True, kw_only=True)
class StepSums:
    """Sums over the cells of a step.

    Attributes:
        examples: Σ b_j.
        sq_examples: Σ b_j².
        weight: Σ c_j·b_j.
        sq_weight: Σ c_j²·b_j.
        cell_sq_weight: Σ c_j²·b_j².
        sq_norms_of_sums: W = Σ c_j²·‖s_j‖².
        sum_sq_norms: Σ c_j²·A_j, over the cells where it is known.
        used: examples whose norms were looked at.
        without_norms: number of cells where A_j is not known.
        unscaled: number of cells where c_j is known up to a factor that depends on b_j only.
    """

    examples: float = 0.0
    sq_examples: float = 0.0
    weight: float = 0.0
    sq_weight: float = 0.0
    cell_sq_weight: float = 0.0
    sq_norms_of_sums: float = 0.0
    sum_sq_norms: float = 0.0
    used: float = 0.0
    without_norms: float = 0.0
    unscaled: float = 0.0

    @classmethod
    def of_cell(
        cls,
        count: int,
        scale: float,
        sq_norm_of_sum: float,
        sum_sq_norms: float | None,
        *,
        used: int,
        scale_known: bool = True,
    ) -> StepSums:
        """The sums of one cell.

        Args:
            count: b.
            scale: c, of every example.
            sq_norm_of_sum: c²·‖Σg_i‖², as the gradients arrived.
            sum_sq_norms: c²·Σ‖g_i‖², or None.
            used: examples whose norms were looked at.
            scale_known: whether c is known, and not only up to a factor that depends on b.

        Returns:
            The sums.
        """
        return cls(
            examples=float(count),
            sq_examples=float(count) ** 2,
            weight=scale * count,
            sq_weight=scale**2 * count,
            cell_sq_weight=scale**2 * count**2,
            sq_norms_of_sums=sq_norm_of_sum,
            sum_sq_norms=0.0 if sum_sq_norms is None else sum_sq_norms,
            used=float(used),
            without_norms=float(sum_sq_norms is None),
            unscaled=float(not scale_known),
        )

    def __add__(self, other: StepSums) -> StepSums:
        return StepSums(**{name: a + getattr(other, name) for name, a in vars(self).items()})

    @property
    def finite(self) -> bool:
        """Whether every gradient was."""
        return all(map(math.isfinite, vars(self).values()))

    @property
    def pairs(self) -> float:
        """How many pairs of examples Û is a mean over, within cells only where norms of examples are known."""
        return self.examples**2 - (self.sq_examples if self.without_norms else self.examples)

    def moments(self, sq_norm_of_total: float, cells: int) -> StepMoments | str:
        """(Û, M̂²), in units of one unscaled loss.

        Args:
            sq_norm_of_total: V.
            cells: how many cells there were, over all workers.

        Returns:
            The pair, or why this step does not say it.
        """
        if self.unscaled and cells > 1 and cells * self.sq_examples > self.examples**2 * (1 + 1e-6):
            return "micro-batches or workers of unequal size, and a loss whose reduction is not known"
        if self.without_norms == 0:
            pairs = self.weight**2 - self.sq_weight
            if self.examples < 2 or pairs <= 0:
                return "a single example"
            return StepMoments((sq_norm_of_total - self.sum_sq_norms) / pairs, self.sum_sq_norms / self.sq_weight)
        pairs = self.weight**2 - self.cell_sq_weight
        if cells < 2 or pairs <= 1e-6 * self.weight**2:
            return "a single micro-batch on a single worker, and no norms of its examples"
        product = (sq_norm_of_total - self.sq_norms_of_sums) / pairs
        excess = self.cell_sq_weight - self.sq_weight
        return StepMoments(product, (self.sq_norms_of_sums - excess * product) / self.sq_weight)
