"""(Û, M̂²) of one step from sums over its cells: a cell is one micro-batch of one worker.

Cell j adds up s_j = Σ_{i∈j} g_i over b_j examples and enters the step as c_j·s_j, where c_j is the factor that the loop
applied to each loss (1/b of a mean, 1/k of accumulation, the loss scale). With V = ‖Σ_j c_j s_j‖²,
E Û = mean_{i≠k}⟨g_i, g_k⟩ and E M̂² = mean‖g_i‖² for

    Û = (V − Σ c_j²A_j)/((Σ c_j b_j)² − Σ c_j² b_j),      M̂² = Σ c_j²A_j / Σ c_j² b_j

if A_j = Σ_{i∈j}‖g_i‖² is known (or estimated without bias), and otherwise, from W = Σ c_j²‖s_j‖² alone,

    Û = (V − W)/((Σ c_j b_j)² − Σ c_j² b_j²),      M̂² = (W − (Σ c_j² b_j² − Σ c_j² b_j)·Û)/Σ c_j² b_j.

Everything but V is a sum over cells: a vector of float64 that is made on the gradients' device without a host read,
added over micro-batches, all-reduced over workers, and read once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from variegrad.estimators import StepMoments
from variegrad.shapes import Float

# Weights of a mean are equal to the last bit; products with a loss scale may differ by rounding.
EQUAL = 1e-5


class StepSums(NamedTuple):
    """Sums over the cells of a step, as they are read from the vector."""

    examples: float = 0.0  # Σ b_j
    sq_examples: float = 0.0  # Σ b_j²
    weight: float = 0.0  # Σ c_j·b_j
    sq_weight: float = 0.0  # Σ c_j²·b_j
    cell_sq_weight: float = 0.0  # Σ c_j²·b_j²
    unevenness: float = 0.0  # Σ_j (b_j·Σ_i c_i² − (Σ_i c_i)²), zero if weights within each cell are equal
    sq_norms_of_sums: float = 0.0  # W
    sum_sq_norms: float = 0.0  # Σ c_j²·A_j, over the cells for which it is known
    sum_fourth_powers: float = 0.0  # Σ c_i⁴‖g_i‖⁴ over the examples that were looked at
    used: float = 0.0  # examples that were looked at
    cells_without_norms: float = 0.0  # cells with A_j unknown
    cells_of_unknown_scale: float = 0.0  # cells with c_j known only up to a factor that depends on b_j
    cells: float = 0.0  # cells with an example
    passes: float = 0.0  # watched backward passes, also those without an example
    workers: float = 0.0  # workers with an example
    watchers: float = 0.0  # workers that watched, with an example or without
    unwatched: float = 0.0  # ‖gradient‖² of workers that did not watch
    sq_norm_of_total: float = 0.0  # V, if it is spread over the workers

    @property
    def finite(self) -> bool:
        """Whether every gradient was finite."""
        return all(map(math.isfinite, self))

    @property
    def pairs(self) -> float:
        """How many pairs of examples Û is a mean over; only pairs of different cells without norms of examples."""
        return self.examples**2 - (self.sq_examples if self.cells_without_norms else self.examples)

    @property
    def uneven(self) -> bool:
        """Whether the losses of a cell entered the step with unequal weights."""
        return self.unevenness > EQUAL**2 * self.cell_sq_weight

    @property
    def cv2(self) -> float:
        """Squared coefficient of variation of ‖g_i‖² among the examples that were looked at; NaN if unknown."""
        if self.cells_without_norms or self.used < 2 or not self.sum_sq_norms:
            return math.nan
        mean = self.sum_sq_norms / self.examples
        return max(0.0, self.sum_fourth_powers / self.used / mean**2 - 1)

    def moments(self, sq_norm_of_total: float) -> StepMoments | str:
        """(Û, M̂²) in units of one unscaled loss; or, in words, why this step does not give them."""
        if self.uneven:
            return (
                "the losses enter the step with unequal weights. Multiply weights that belong to the objective into "
                "the losses before watch: monitor.watch(weights * losses); weights of zero are left out by themselves"
            )
        unequal = self.cells * self.sq_examples > self.examples**2 * (1 + 1e-6)
        if self.cells_of_unknown_scale and self.cells > 1 and unequal:
            return "micro-batches or workers of unequal size, and a loss whose reduction is not known"
        if self.cells_without_norms == 0:
            pairs = self.weight**2 - self.sq_weight
            if self.examples < 2 or pairs <= 0:
                return "a single example"
            return StepMoments((sq_norm_of_total - self.sum_sq_norms) / pairs, self.sum_sq_norms / self.sq_weight)
        pairs = self.weight**2 - self.cell_sq_weight
        if self.cells < 2 or pairs <= 1e-6 * self.weight**2:
            return "a single micro-batch on a single worker, and no norms of its examples"
        product = (sq_norm_of_total - self.sq_norms_of_sums) / pairs
        excess = self.cell_sq_weight - self.sq_weight
        return StepMoments(product, (self.sq_norms_of_sums - excess * product) / self.sq_weight)


NUMBERS, PASSES = len(StepSums._fields), StepSums._fields.index("passes")


def cell_sums(
    weights: Float[Tensor, " b"],
    sq_norm_of_sum: Float[Tensor, ""],
    *,
    norms: Float[Tensor, " m"] | None = None,
    rows: Sequence[int] | None = None,
    probe: Float[Tensor, ""] | None = None,
    scale_known: bool = True,
) -> Float[Tensor, " numbers"]:
    """The vector of one cell, on the device of its gradients.

    Args:
        weights: c_i as they arrived, zero for examples that do not count.
        sq_norm_of_sum: ‖Σc_i g_i‖².
        norms: c_i²‖g_i‖² of the examples that were looked at; None without.
        rows: which these are; None for all.
        probe: ‖Σε_i g_i‖² of a sign probe over all examples, unweighted; None without.
        scale_known: whether c is known, and not only up to a factor that depends on b.

    Returns:
        The fields of `StepSums`.
    """
    w = weights.double()
    count, first, second = torch.count_nonzero(w).double(), w.sum(), w.dot(w)
    live, single = count > 0, count == 1
    fourth = used = count
    if norms is not None:
        seen = count if rows is None else torch.count_nonzero(w[_indices(tuple(rows), w.device)]).double()
        known, used, fourth = seen > 0, seen, norms.dot(norms)
        inside = norms.sum() * (count / seen)
    elif probe is not None:
        signed = len(w) - len(w) % 2
        known = count == len(w)  # a probe cannot leave examples out
        inside = ((first / count).square() * probe * (count * (count - 1) / signed) + sq_norm_of_sum) / count
    else:
        known, inside = single, sq_norm_of_sum
    inside = torch.where(single, sq_norm_of_sum, inside)
    known = known | single
    yes = live.double()
    zero = torch.zeros_like(yes)
    return torch.stack([
        count, count * count, first, second, first * first, count * second - first * first, sq_norm_of_sum,
        torch.where(known & live, inside, zero), fourth, torch.where(known, used, count),
        (live & ~known).double(), zero if scale_known else yes, yes, torch.ones_like(yes), zero, zero, zero, zero,
    ])  # fmt: skip


def of_worker(cells: Sequence[Float[Tensor, " numbers"]]) -> Float[Tensor, " numbers"]:
    """The sum over the cells of one worker."""
    total = cells[0].clone() if len(cells) == 1 else torch.stack(list(cells)).sum(0)
    total[_WORKERS], total[_WATCHERS] = total[0] > 0, 1.0
    return total


def failed(device: torch.device) -> Float[Tensor, " numbers"]:
    """A cell that could not be measured: NaN, so that all workers leave the step out together."""
    return torch.full((NUMBERS,), math.nan, dtype=torch.float64, device=device)


def of_a_worker_that_did_not_watch(sq_norms: Sequence[Tensor], device: torch.device) -> Float[Tensor, " numbers"]:
    """Zeros, and how large its gradient was: not zero makes the step unusable, zero is a worker without examples."""
    total = torch.zeros(NUMBERS, dtype=torch.float64, device=device)
    if sq_norms:
        total[_UNWATCHED] = torch.stack(list(sq_norms)).sum()
    return total


SQ_NORMS_OF_SUMS = StepSums._fields.index("sq_norms_of_sums")
_WORKERS, _WATCHERS = StepSums._fields.index("workers"), StepSums._fields.index("watchers")
_UNWATCHED = StepSums._fields.index("unwatched")


@lru_cache(maxsize=64)
def _indices(rows: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.long, device=device)
