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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from variegrad.estimators import StepMoments
from variegrad.shapes import Float

# Weights of a mean are equal to the last bit; products with a loss scale may differ by rounding.
EQUAL = 1e-5
Rows = Tensor | slice | Sequence[int] | None
"""Which examples were measured; None for all."""


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
    sum_fourth_powers: float = 0.0  # Σ c_i⁴‖g_i‖⁴ over the examples that were measured
    used: float = 0.0  # examples that were measured
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
        """Whether every gradient was finite; W is only made if it is used."""
        used = self if self.cells_without_norms else self._replace(sq_norms_of_sums=0.0)
        return all(map(math.isfinite, used))

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
        """Squared coefficient of variation of ‖g_i‖² among the examples that were measured; NaN if unknown."""
        if self.cells_without_norms or self.used < 2 or not self.sum_fourth_powers:
            return math.nan
        mean = self.sum_sq_norms / self.examples
        return max(0.0, self.sum_fourth_powers / self.used / mean**2 - 1)

    def moments(self, sq_norm_of_total: float) -> StepMoments | str:
        """(Û, M̂²) in units of one unscaled loss; or, in words, why this step does not give them."""
        if self.uneven:
            return (
                "the losses enter the step with unequal weights. Multiply weights that belong to the objective into "
                "the losses before watch: monitor.watch(weights * losses); weights of zero are ignored automatically"
            )
        unequal = self.cells * self.sq_examples > self.examples**2 * (1 + 1e-6)
        if self.cells_of_unknown_scale and self.cells > 1 and unequal:
            return "micro-batches or workers of unequal size, with a loss whose reduction is not known"
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


NUMBERS, MEASURED = len(StepSums._fields), 8
SQ_NORMS_OF_SUMS, SUM_SQ_NORMS, CELLS_WITHOUT_NORMS, PASSES, _WORKERS, _WATCHERS, _UNWATCHED, TOTAL = map(
    StepSums._fields.index,
    """sq_norms_of_sums sum_sq_norms cells_without_norms passes workers watchers unwatched sq_norm_of_total""".split(),  # noqa: SIM905
)


def measured(
    weights: Float[Tensor, " b"],
    sq_norm_of_sum: Float[Tensor, ""],
    norms: Float[Tensor, " m"] | None = None,
    rows: Rows = None,
    probe: Float[Tensor, ""] | None = None,
) -> Float[Tensor, " 8"]:
    """All that a cell needs of the device: Σ1, Σc, Σc², ‖Σcg‖², examples seen, Σc²‖g‖², Σc⁴‖g‖⁴, the probe."""
    if weights.device.type == "cpu":  # as plain numbers: nothing waits there
        c = weights.detach().numpy().astype(np.float64)
        seen = c if rows is None else c[rows]
        each = None if norms is None else norms.detach().numpy()
        return torch.tensor(
            [
                np.count_nonzero(c), c.sum(), c.dot(c), float(sq_norm_of_sum.detach().numpy()), np.count_nonzero(seen),
                0.0 if each is None else each.sum(), 0.0 if each is None else each.dot(each),
                0.0 if probe is None else float(probe.detach().numpy()),
            ],
            dtype=torch.float64,
        )  # fmt: skip
    w = weights.double()
    count, zero = torch.count_nonzero(w).double(), w.new_zeros(())
    known = count if rows is None else torch.count_nonzero(w[rows]).double()
    of_examples = [zero, zero] if norms is None else [norms.sum(), norms.dot(norms)]
    parts = [count, w.sum(), w.dot(w), sq_norm_of_sum, known, *of_examples, zero if probe is None else probe]
    return torch.stack(parts)


def cell(
    numbers: Sequence[Any], examples: int, *, normed: bool = False, probed: bool = False, scale_known: bool = True
) -> list[Any]:
    """The fields of `StepSums` of one cell, from what was `measured`.

    Numbers are plain, or tensors of shape () that are not read: no branch depends on them. `examples` is b,
    those of weight zero included; c may be known only up to a factor that depends on b.
    """
    count, first, second, total, seen, norms, fourth, probe = numbers
    some = count + (count == 0)
    inside, known, used = total, count == 1, count
    if normed:
        inside, used = norms * (count / (seen + (seen == 0))), _where(seen > 0, seen, count)
        inside, known = _where(seen > 0, inside, total), (seen > 0) | known
    elif probed:
        signed = max(2, examples - examples % 2)
        inside = ((first / some) ** 2 * probe * (count * (count - 1) / signed) + total) / some
        inside, known = _where(known, total, inside), (count == examples) | known  # a probe leaves no example out
    live = _where(count > 0, 1.0, 0.0)
    return [
        count, count * count, first, second, first * first, count * second - first * first, total,
        _where(known & (count > 0), inside, 0.0), fourth, used, _where(known, 0.0, live),
        0.0 if scale_known else live, live, 1.0, 0.0, 0.0, 0.0, 0.0,
    ]  # fmt: skip


def _where(condition: Any, yes: Any, no: Any) -> Any:
    return torch.where(condition, yes, no) if isinstance(condition, Tensor) else (yes if condition else no)


def on_device(found: Float[Tensor, " k"], formula: Callable[[Sequence[Any]], list[Any]]) -> Float[Tensor, " numbers"]:
    """A formula of what was measured, as a vector on its device."""
    if found.device.type == "cpu":  # nothing waits there, and plain numbers are faster
        return torch.tensor(formula(found.detach().numpy().tolist()), dtype=torch.float64)
    return torch.stack([torch.as_tensor(n, dtype=torch.float64, device=found.device) for n in formula(found.unbind())])


def cell_sums(
    weights: Float[Tensor, " b"],
    sq_norm_of_sum: Float[Tensor, ""],
    *,
    norms: Float[Tensor, " m"] | None = None,
    rows: Rows = None,
    probe: Float[Tensor, ""] | None = None,
    scale_known: bool = True,
) -> Float[Tensor, " numbers"]:
    """The vector of one cell, on the device of its gradients: of c_i, ‖Σc_i g_i‖², and c_i²‖g_i‖² of some `rows`."""
    how = {"normed": norms is not None, "probed": probe is not None, "scale_known": scale_known}
    return on_device(measured(weights, sq_norm_of_sum, norms, rows, probe), lambda n: cell(n, len(weights), **how))


def of_worker(cells: Sequence[Float[Tensor, " numbers"]]) -> Float[Tensor, " numbers"]:
    """The sum over the cells of one worker."""
    total = cells[0].clone() if len(cells) == 1 else torch.stack(list(cells)).sum(0)
    total[_WORKERS], total[_WATCHERS] = total[0] > 0, 1.0
    return total


def of_process(cells: Sequence[list[float]]) -> list[float]:
    """The same of plain numbers, of a process that works alone."""
    total = [math.fsum(column) if len(cells) > 1 else column[0] for column in zip(*cells, strict=True)]
    total[_WORKERS], total[_WATCHERS] = float(total[0] > 0), 1.0
    return total


def failed(device: torch.device, length: int = 0) -> Float[Tensor, " numbers"]:
    """A cell that could not be measured: NaN, so that all workers leave the step out together."""
    return torch.full((length or NUMBERS,), math.nan, dtype=torch.float64, device=device)


def of_a_worker_that_did_not_watch(
    sq_norms: Sequence[Tensor], device: torch.device, length: int = 0
) -> Float[Tensor, " numbers"]:
    """Zeros, and how large its gradient was: not zero makes the step unusable, zero is a worker without examples."""
    total = torch.zeros(length or NUMBERS, dtype=torch.float64, device=device)
    if sq_norms:
        total[_UNWATCHED] = torch.stack(list(sq_norms)).sum()
    return total
