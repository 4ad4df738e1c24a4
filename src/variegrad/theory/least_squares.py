"""Least squares: the exact infimum of B_D(w, w′) over all pairs, which no bound from the data can exceed.

f_i(w) = ½(x_iᵀw − y_i)² gives ∇f_i(w) − ∇f_i(w′) = x_i·x_iᵀu with u = w − w′, so with D = diag ‖x_i‖²
inf B_D(w, w′) = n·λ_min of the pencil (XᵀDX, (XᵀX)²) = n/σ²_max(QᵀX̂), Q an orthonormal basis of the range of D^½X.
The second form shows that it is at least the row-normalised GLM bound n/σ²_max(X̂).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.linalg import qr
from scipy.sparse import issparse

from variegrad.theory.files import opened
from variegrad.theory.rows import Progress, Survey, transposed

LARGEST_SIDE = 4096  # columns: the factor is d × d


@dataclass(frozen=True, kw_only=True)
class LeastSquaresBound:
    """inf over w ≠ w′ of B_D(w, w′) for least squares, in examples.

    Attributes:
        bound: the infimum, exact up to rounding.
        direction: a difference w − w′ that attains it.
        rank: of X, as it was resolved.
        rows: n.
        columns: d.
    """

    bound: float
    direction: np.ndarray
    rank: int
    rows: int
    columns: int

    def __str__(self) -> str:
        return (
            f"B_D(w, w′) ≥ {self.bound:.6g} examples for every pair of weights of least squares, attained "
            f"(n = {self.rows:,}, d = {self.columns:,}, rank {self.rank:,})"
        )


def least_squares_bound(
    X: Any, *, progress: Progress | None = None, scratch: str | Path | None = None
) -> LeastSquaresBound:
    """The exact infimum of the differential batch-size bound for least squares without an L2 term.

    Args:
        X: n × d, one row per example; a matrix or a file, as for `glm_bound`. d up to 4096.
        progress: called after each block of each pass.
        scratch: where temporary files of a file that is read by blocks are written.

    Returns:
        The infimum and a direction that attains it.

    Raises:
        ValueError: if there are too many columns, or X holds NaN, infinity, or only zeros.

    Example:
        >>> import numpy as np
        >>> round(least_squares_bound(np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])).bound, 6)
        1.512787

    Source: Definition 6 for least squares; generalised eigenvalue.
    """
    with opened(X, progress=progress, scratch=scratch) as rows:
        d = rows.columns
        if d > LARGEST_SIDE:
            raise ValueError(
                f"least_squares_bound factors a d × d matrix, d at most {LARGEST_SIDE}; {rows.name} has {d} columns. "
                "glm_bound is valid for least squares too, and takes any size."
            )
        sq_norms = Survey(rows).sq_norms
        largest = float(sq_norms.max())
        if largest == 0:
            raise ValueError(f"{rows.name} holds only zeros: every gradient is zero, and B_D is 0/0.")
        factor, gram = np.zeros((0, d)), np.zeros((d, d))
        for first, block in rows.blocks("factoring"):
            scale = np.sqrt(sq_norms[first : first + block.shape[0]] / largest)[:, None]
            dense = block.toarray() if issparse(block) else block
            gram += np.asarray((transposed(block) @ block).toarray() if issparse(block) else block.T @ block)
            # QR block by block keeps the R of D^½X without squaring its condition number.
            factor = qr(np.vstack([factor, scale * dense]), mode="r")[0][:d]
        _, singular, right = np.linalg.svd(factor, full_matrices=False)
        rank = int(np.count_nonzero(singular > max(rows.rows, d) * np.finfo(float).eps * singular[0]))
        # QᵀX̂ = R⁻ᵀXᵀX, with the common scale of D^½ taken out again.
        left, top, _ = np.linalg.svd(right[:rank] @ gram / singular[:rank, None], full_matrices=False)
        direction = right[:rank].T @ (left[:, 0] / singular[:rank])
        return LeastSquaresBound(
            bound=rows.rows * largest / float(top[0]) ** 2,
            direction=direction / np.linalg.norm(direction),
            rank=rank,
            rows=rows.rows,
            columns=d,
        )
