"""Remark 1, sharpened: a lower bound on B_D(w) for every w of a generalised linear model, from the data alone.

f_i(w) = ℓ_i(x_iᵀw) gives g_i = a_i·x_i. With b_i = a_i‖x_i‖ and X̂ the matrix of rows x_i/‖x_i‖,
‖Σg_i‖² = ‖X̂ᵀb‖² ≤ σ²_max(X̂)·Σ‖g_i‖², hence **B_D(w) ≥ n/σ²_max(X̂)**: the infimum over all real a, never below 1, and
never below the paper's n·min‖x_i‖²/σ²_max(X). The same holds for B_D(w, w′), where a_i is a difference of derivatives,
and for outputs of several dimensions (softmax), where g_i = p_i ⊗ x_i.

It does not hold for an L2 term inside f_i: apply it to the data loss alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from variegrad.theory.arguments import formerly
from variegrad.theory.files import opened
from variegrad.theory.rows import Array, Progress, Rows, Survey, transposed
from variegrad.theory.spectral import Interval, WeightedGram, lanczos, largest_eigenvalue

ASSUMPTION = (
    "holds for every w if f_i is a function of x_i·w (a GLM, softmax included) and has no L2 term inside it: "
    "a regulariser in f_i voids it"
)
CENTRING_STEPS = 7  # Ritz values of a spectrum worth centring settle within a few per cent by then


@dataclass(frozen=True, kw_only=True)
class GLMBound:
    """B_D(w) ≥ n/σ²_max(X̂) for all w, X̂ = X with its rows normalised; all bounds in examples.

    Attributes:
        bound: the certified lower bound, equal to `low`.
        low: lower end of the interval that contains n/σ²_max(X̂), the exact infimum over arbitrary derivatives.
        high: its upper end.
        certificate: what `low` is based on.
        failure_probability: of the certificate; 0 if it is deterministic.
        paper_bound: Remark 1's own n·min‖x_i‖²/σ²_max(X), certified in the same way; None if not asked for.
        paper_high: upper end of the interval that contains Remark 1's number.
        leave_one_out: (n−1)/σ²_max(X̂), valid for the data without any one example; what stability needs.
        centred_estimate: an estimate, not a certificate, of the bound after subtracting the column means; None if not
            asked for.
        rows: n.
        columns: d.
        nonzeros: entries that are not zero.
        zero_rows: rows without a non-zero entry.
        passes: how often the data were read.
        warnings: what weakens the bound, in words.

    Source: Remark 1, row-normalised; `paper_bound` is Remark 1.
    """

    bound: float
    low: float
    high: float
    certificate: str
    failure_probability: float
    paper_bound: float | None
    paper_high: float | None
    leave_one_out: float
    centred_estimate: float | None
    rows: int
    columns: int
    nonzeros: int
    zero_rows: int
    passes: int
    warnings: Sequence[str] = field(default=())

    def __str__(self) -> str:
        lines = [
            f"B_D(w) ≥ {self.bound:.6g} examples for every w (n/σ²_max of the normalised rows; "
            f"n = {self.rows:,}, d = {self.columns:,}, {self.nonzeros:,} non-zeros)",
            f"  the exact infimum lies in [{self.low:.6g}, {self.high:.6g}]; {self.certificate}",
            f"  without any one example (for stability): {self.leave_one_out:.6g}",
        ]
        if self.paper_bound is not None:
            lines.append(f"  Remark 1 as printed in the paper: [{self.paper_bound:.6g}, {self.paper_high:.6g}]")
        if self.centred_estimate is not None:
            lines.append(f"  after centring the columns: about {self.centred_estimate:.4g} (an estimate)")
        lines.append(f"  {ASSUMPTION}")
        return "\n".join(lines + [f"  warning: {warning}" for warning in self.warnings])


@formerly(paper="paper_bound")
def glm_bound(
    X: Any,
    *,
    tolerance: float = 0.01,
    failure_probability: float = 1e-9,
    paper_bound: bool = True,
    centring: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    scratch: str | Path | None = None,
) -> GLMBound:
    """The data-only bound B_D(w) ≥ n/σ²_max(X̂), certified: σ_max is bounded from above.

    Args:
        X: n × d, one row per example: a dense or sparse array, a tensor, or the path of a LIBSVM, npy or npz file.
        tolerance: the relative width of the interval to reach.
        failure_probability: allowed if signed data need a random start; other data get a deterministic certificate.
        paper_bound: also certify Remark 1's own number.
        centring: also estimate what centring the columns would give.
        seed: of the random start.
        progress: called after each block of each pass.
        scratch: where temporary files of a file that is read by blocks are written; the system's folder by default.

    Returns:
        The bound, its interval, and warnings.

    Raises:
        ValueError: if X holds NaN, infinity, or nothing but zeros, or a setting is out of range.

    Example:
        >>> import numpy as np
        >>> round(glm_bound(np.eye(3)).bound, 6)
        3.0

    Source: Remark 1, row-normalised (`paper_bound` is Remark 1 itself).
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie between 0 and 1, such as 0.01; got {tolerance}.")
    if not 0 < failure_probability < 1:
        raise ValueError(f"failure_probability must lie between 0 and 1, such as 1e-9; got {failure_probability}.")
    with opened(X, progress=progress, scratch=scratch) as rows:
        survey = Survey(rows)
        sq_norms = survey.sq_norms
        kept = int(np.count_nonzero(sq_norms))
        if kept == 0:
            raise ValueError(
                f"{rows.name} holds only zeros: every gradient of a GLM is then zero, and B_D is 0/0 (the batch "
                f"size does not matter)."
            )
        search = _Search(rows, survey, tolerance, failure_probability, seed)
        weights = np.divide(1.0, sq_norms, out=np.zeros_like(sq_norms), where=sq_norms > 0)
        top = search.largest(weights, "bounding σ² of the normalised rows")
        # X̂ has `kept` unit rows, so σ² ≤ kept; and σ² ≤ max degree, by Cauchy-Schwarz in each column.
        top = replace(top, low=max(top.low, 1.0), high=min(top.high, float(kept), float(survey.degrees.max())))
        top = replace(top, low=min(top.low, top.high))
        printed, passes = (None, 0)
        if paper_bound:
            printed, passes = _remark_1(search, top)
        centred = _centred_estimate(search, survey) if centring and rows.rows > 1 else None
        low, high = rows.rows / top.high, rows.rows / top.low
        return GLMBound(
            bound=low,
            low=low,
            high=high,
            certificate=top.certificate,
            failure_probability=top.failure_probability,
            paper_bound=None if printed is None else printed[0],
            paper_high=None if printed is None else printed[1],
            leave_one_out=(rows.rows - 1) / top.high,
            centred_estimate=centred,
            rows=rows.rows,
            columns=rows.columns,
            nonzeros=survey.nonzeros,
            zero_rows=rows.rows - kept,
            passes=1 + top.iterations + passes + (0 if centred is None else 1 + CENTRING_STEPS),
            warnings=tuple(_warnings(survey, rows, low, centred)),
        )


def remark_1(
    X: Any,
    *,
    tolerance: float = 0.01,
    failure_probability: float = 1e-9,
    seed: int = 0,
    progress: Progress | None = None,
    scratch: str | Path | None = None,
) -> float:
    """The paper's own bound n·min‖x_i‖²/σ²_max(X), certified from below.

    It is zero if one row is zero, may fall below 1, and never exceeds `glm_bound`.

    Args:
        X: as for `glm_bound`.
        tolerance: the relative width of the interval to reach.
        failure_probability: allowed if signed data need a random start.
        seed: of the random start.
        progress: called after each block of each pass.
        scratch: folder for temporary files, as for `glm_bound`.

    Returns:
        A lower bound on B_D(w) for every w, in examples.

    Raises:
        ValueError: as for `glm_bound`.

    Source: Remark 1.
    """
    printed = glm_bound(
        X, tolerance=tolerance, failure_probability=failure_probability, centring=False, seed=seed, progress=progress,
        scratch=scratch,
    ).paper_bound  # fmt: skip
    assert printed is not None
    return printed


@dataclass(frozen=True)
class _Search:
    """What every spectral bound of one matrix shares."""

    rows: Rows
    survey: Survey
    tolerance: float
    failure_probability: float
    seed: int

    @property
    def basis_bytes(self) -> int:
        """Memory for a Lanczos basis: no more than the matrix itself takes, and at least 256 MB."""
        return max(1 << 28, 12 * self.survey.nonzeros)

    def largest(self, weights: Array, stage: str) -> Interval:
        return largest_eigenvalue(
            WeightedGram(self.rows, weights, stage),
            non_negative=self.survey.non_negative,
            summands=self.survey.longest_row + int(self.survey.degrees.max()),
            tolerance=self.tolerance,
            failure_probability=self.failure_probability,
            seed=self.seed,
            basis_bytes=self.basis_bytes,
        )


def _remark_1(search: _Search, normalised: Interval) -> tuple[tuple[float, float], int]:
    sq_norms, n = search.survey.sq_norms, search.rows.rows
    smallest, largest = float(sq_norms.min()), float(sq_norms.max())
    if smallest == 0:
        return (0.0, 0.0), 0
    if largest <= smallest * (1 + 1e-6):
        # ‖x‖ between r and r(1+1e-6): σ²(X) lies between r²σ²(X̂) and r²(1+1e-6)σ²(X̂), so no further pass is needed.
        return (n / normalised.high * smallest / largest, n / normalised.low), 0
    # Scaled by the largest norm, so that products neither overflow nor underflow.
    top = search.largest(np.full(n, 1 / largest), "bounding σ² of the rows as they are")
    share = n * smallest / largest
    return (share / top.high, share / top.low), top.iterations


def _centred_estimate(search: _Search, survey: Survey) -> float | None:
    """n/σ²_max of the rows x_i − x̄, normalised, without forming them: a few Lanczos steps, hence an estimate."""
    rows = search.rows
    mean = survey.column_sums / rows.rows
    offset = float(mean @ mean)
    sq_norms = np.empty(rows.rows)
    for first, block in rows.blocks("subtracting the column means"):
        last = first + block.shape[0]
        sq_norms[first:last] = survey.sq_norms[first:last] - 2 * (block @ mean) + offset
    # A row equal to the mean leaves only rounding.
    weights = np.where(sq_norms > 1e-12 * (survey.sq_norms + offset), 1 / np.maximum(sq_norms, 1e-300), 0.0)
    if not weights.any():
        return None

    def product(v: Array) -> Array:
        total, weight, shift = np.zeros(rows.columns), 0.0, float(mean @ v)
        for first, block in rows.blocks("estimating the gain of centring"):
            scaled = weights[first : first + block.shape[0]] * (block @ v - shift)
            total += transposed(block) @ scaled
            weight += float(scaled.sum())
        return total - weight * mean

    steps = 8 * rows.columns * CENTRING_STEPS
    top = lanczos(
        product, side=rows.columns, tolerance=0.01, failure_probability=1e-9, seed=search.seed, basis_bytes=steps
    )
    return rows.rows / top.low


def _warnings(survey: Survey, rows: Rows, bound: float, centred: float | None) -> list[str]:
    found = []
    n = rows.rows
    zero_rows = n - int(np.count_nonzero(survey.sq_norms))
    if zero_rows:
        found.append(f"{zero_rows:,} of {n:,} rows are zero; their gradients are zero, and Remark 1 as printed gives 0")
    if n > 1 and len(survey.constant):
        found.append(
            f"{len(survey.constant)} column(s) are constant, the first is column {survey.constant[0] + rows.base} "
            f"(counting from {rows.base}): an intercept makes all gradients share a direction"
        )
    if centred is not None and centred > 1.2 * bound:
        found.append(
            f"the columns are not centred: subtracting their means would raise the bound from {bound:.4g} to about "
            f"{centred:.4g} examples ({centred / bound:.1f} times)"
        )
    return found
