"""Remark 2, sharpened: a lower bound on B_D(w) from the supports of the gradients.

By Cauchy-Schwarz in each coordinate, ‖Σg_i‖² ≤ max_c deg(c)·Σ‖g_i‖² with deg(c) = #{i : c ∈ supp g_i}, hence
**B_D(w) ≥ n/max_c deg(c)** for every w, attained by g_i = e_c. Examples that share a coordinate all conflict with each
other, so max deg ≤ ρ+1 and the paper's n/(ρ+1) never exceeds it. Neither needs the n × n conflict graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, issparse

from variegrad.theory.arguments import formerly
from variegrad.theory.files import opened
from variegrad.theory.rows import Block, Progress, Rows, check_finite, column_degrees, compressed

WORD = 64  # rows whose conflicts with all others one pass counts, one bit each


@dataclass(frozen=True, kw_only=True)
class SparseBound:
    """B_D(w) ≥ n/max_c deg(c) for all w, in examples; supp ∇f_i must lie within the non-zero columns of row i.

    Attributes:
        bound: n/max_c deg(c), exact.
        low: the same number: the interval is a point.
        high: the same number.
        certificate: what it is based on.
        largest_degree: max_c deg(c), in examples.
        column: a column that attains it, as the file counts columns (LIBSVM: mostly from 1), or from 0 in an array.
        paper_bound: Remark 2's own n/(ρ+1); None unless asked for, its lower end if ρ was not searched to the end.
        paper_high: upper end of the interval that contains Remark 2's number.
        conflict_degree: (low, high) for ρ.
        leave_one_out: (n−1)/max_c deg(c), valid for the data without any one example.
        rows: n.
        columns: d.
        nonzeros: entries that are not zero.
        warnings: what weakens the bound, in words.

    Source: Remark 2, by column counts; `paper_bound` is Remark 2.
    """

    bound: float
    low: float
    high: float
    certificate: str
    largest_degree: int
    column: int
    paper_bound: float | None
    paper_high: float | None
    conflict_degree: tuple[int, int] | None
    leave_one_out: float
    rows: int
    columns: int
    nonzeros: int
    warnings: Sequence[str] = field(default=())

    def __str__(self) -> str:
        lines = [
            f"B_D(w) ≥ {self.bound:.6g} examples for every w (n over the largest column count {self.largest_degree:,}, "
            f"that of column {self.column}; n = {self.rows:,}, d = {self.columns:,}, {self.nonzeros:,} non-zeros)",
            f"  {self.certificate}",
            f"  without any one example (for stability): {self.leave_one_out:.6g}",
        ]
        if self.conflict_degree is not None:
            low, high = self.conflict_degree
            degree = f"{low:,}" if low == high else f"between {low:,} and {high:,}"
            lines.append(f"  Remark 2 as printed in the paper: {self.paper_bound:.6g} (conflict degree ρ {degree})")
        return "\n".join(lines + [f"  warning: {warning}" for warning in self.warnings])


@formerly(paper="paper_bound")
def sparse_bound(
    X: Any,
    *,
    paper_bound: bool = False,
    passes: int | None = None,
    progress: Progress | None = None,
    scratch: str | Path | None = None,
) -> SparseBound:
    """The data-only bound B_D(w) ≥ n/max_c deg(c), from one count of the columns.

    Args:
        X: n × d; an entry that is not zero says that ∇f_i may depend on that coordinate. A dense or sparse array, a
            tensor, or the path of a LIBSVM, npy or npz file.
        paper_bound: also search the conflict degree ρ, for Remark 2's own number.
        passes: stop that search after this many passes, which leaves an interval; None searches to the end.
        progress: called after each block of each pass.
        scratch: where temporary files of a file that is read by blocks are written.

    Returns:
        The bound, exactly.

    Raises:
        ValueError: if X holds NaN, infinity, or nothing but zeros.

    Example:
        >>> import numpy as np
        >>> sparse_bound(np.array([[1, 0], [1, 1], [0, 2], [0, 3]])).bound
        1.3333333333333333

    Source: Remark 2, by column counts (`paper_bound` is Remark 2 itself).
    """
    with opened(X, progress=progress, scratch=scratch) as rows:
        degrees, nonzeros = _count_columns(rows)
        if nonzeros == 0:
            raise ValueError(
                f"{rows.name} holds only zeros: no gradient depends on any coordinate, and B_D is 0/0 (the "
                f"batch size does not matter)."
            )
        n, largest = rows.rows, int(degrees.max())
        column = int(degrees.argmax()) + rows.base
        conflicts = _search_conflicts(rows, degrees, passes) if paper_bound else None
        warnings = []
        if largest == n > 1:
            warnings.append(f"column {column} is non-zero in every row, so this bound is 1: use the GLM bound")
        return SparseBound(
            bound=n / largest,
            low=n / largest,
            high=n / largest,
            certificate="deterministic: a count of the columns, exact",
            largest_degree=largest,
            column=column,
            paper_bound=None if conflicts is None else n / (conflicts[1] + 1),
            paper_high=None if conflicts is None else n / (conflicts[0] + 1),
            conflict_degree=conflicts,
            leave_one_out=(n - 1) / largest,
            rows=n,
            columns=rows.columns,
            nonzeros=nonzeros,
            warnings=tuple(warnings),
        )


def remark_2(
    X: Any, *, passes: int | None = None, progress: Progress | None = None, scratch: str | Path | None = None
) -> float:
    """The paper's own bound n/(ρ+1) from the conflict degree ρ; it never exceeds `sparse_bound`.

    Args:
        X: as for `sparse_bound`.
        passes: stop the search for ρ after this many passes, with a smaller bound; None searches to the end.
        progress: called after each block of each pass.
        scratch: folder for temporary files, as for `sparse_bound`.

    Returns:
        A lower bound on B_D(w) for every w, in examples.

    Raises:
        ValueError: as for `sparse_bound`.

    Source: Remark 2.
    """
    printed = sparse_bound(X, paper_bound=True, passes=passes, progress=progress, scratch=scratch).paper_bound
    assert printed is not None
    return printed


def conflict_degree(X: Any, *, progress: Progress | None = None, scratch: str | Path | None = None) -> int:
    """ρ, the largest number of other examples with which one example shares a coordinate; exact.

    Sixty-four rows are compared with all others in one pass, one bit each: the n × n conflict graph is never formed.
    Rows are tried in the order of a bound from above, and rows with rare columns are used to lower that bound.

    Args:
        X: as for `sparse_bound`.
        progress: called after each block of each pass.
        scratch: where temporary files of a file that is read by blocks are written.

    Returns:
        ρ, between 0 and n−1.

    Raises:
        ValueError: if X holds NaN or infinity.

    Example:
        >>> import numpy as np
        >>> conflict_degree(np.array([[1, 0], [1, 1], [0, 2], [0, 3]]))
        3

    Source: Remark 2, the maximum degree of the conflict graph.
    """
    with opened(X, progress=progress, scratch=scratch) as rows:
        degrees, _ = _count_columns(rows)
        low, high = _search_conflicts(rows, degrees, passes=None)
        assert low == high
        return low


def _count_columns(rows: Rows) -> tuple[NDArray[np.int64], int]:
    degrees = np.zeros(rows.columns, dtype=np.int64)
    nonzeros = 0
    for first, block in rows.blocks("counting columns"):
        values = block.data if issparse(block) else block
        check_finite(rows, first, block)
        found = int(np.count_nonzero(values))
        nonzeros += found
        degrees += column_degrees(block, found)
    return degrees, nonzeros


def _pattern(block: Block) -> Block:
    """The non-zero entries of a block as compressed rows."""
    if not issparse(block):
        return csr_matrix(block)
    if np.count_nonzero(block.data) < len(block.data):
        block = block.copy()
        block.eliminate_zeros()
    return block


def _search_conflicts(rows: Rows, degrees: NDArray[np.int64], passes: int | None) -> tuple[int, int]:
    """An interval for ρ, a point unless `passes` ended the search."""
    n = rows.rows
    score = np.empty(n, dtype=np.int64)
    for first, block in rows.blocks("bounding conflicts"):
        pattern = _pattern(block)
        # An empty row scores 0: it conflicts with no row, not even itself.
        score[first : first + block.shape[0]] = compressed(
            csr_matrix, degrees[pattern.indices] - 1, pattern.indices, pattern.indptr, pattern.shape
        ) @ np.ones(rows.columns, dtype=np.int64)
        filled = np.diff(pattern.indptr) > 0
        empty_here = block.shape[0] - int(filled.sum())
        score[first : first + block.shape[0]][~filled] = -1
        n -= empty_here
    return _Conflicts(rows, score, int(degrees.max()), n).search(passes)


class _Conflicts:
    """Branch and bound over rows: `upper[i]` bounds the conflicts of row i, `best` is attained by some row."""

    def __init__(self, rows: Rows, score: NDArray[np.int64], largest_degree: int, filled: int) -> None:
        self.rows, self.score, self.filled = rows, score, filled
        self.best = max(0, largest_degree - 1)
        self.by_columns = np.minimum(score, filled - 1)
        self.strangers = np.zeros(rows.rows, dtype=np.int64)  # rows known to share nothing with row i
        self.examined = score < 0

    def search(self, passes: int | None) -> tuple[int, int]:
        while True:
            upper = np.minimum(self.by_columns, self.filled - 1 - self.strangers)
            open_rows = np.flatnonzero(~self.examined & (upper > self.best))
            if len(open_rows) == 0:
                return self.best, self.best
            if passes is not None:
                if passes == 0:
                    return self.best, int(upper[open_rows].max())
                passes -= 1
            self._compare(self._choose(open_rows, upper))

    def _choose(self, open_rows: NDArray[np.int64], upper: NDArray[np.int64]) -> NDArray[np.int64]:
        """The most promising rows and, while many are open, as many of the loneliest, which share least."""
        # By the upper bound, then by the score, which is not capped at n−1: one number, to sort less than all.
        rank = -(upper[open_rows] + self.score[open_rows] / (1.0 + self.score.max()))
        order = np.argpartition(rank, WORD)[:WORD] if len(rank) > WORD else np.arange(len(rank))
        order = order[np.argsort(rank[order], kind="stable")]
        lonely_room = WORD // 2 if len(open_rows) > WORD and self.best > self.filled // 2 else 0
        promising = open_rows[order[: WORD - lonely_room]]
        if not lonely_room:
            return promising
        unseen = ~self.examined
        unseen[promising] = False
        rest = np.flatnonzero(unseen)
        if len(rest) > lonely_room:
            rest = rest[np.argpartition(self.score[rest], lonely_room)[:lonely_room]]
        return np.concatenate([promising, rest])

    def _compare(self, chosen: NDArray[np.int64]) -> None:
        """One pass: which of up to 64 rows share a column with each row, as the bits of one word."""
        masks = np.zeros(self.rows.columns, dtype=np.uint64)
        for bit, support in enumerate(self.rows.take(chosen)):
            masks[support] |= np.uint64(1 << bit)
        conflicts = np.zeros(WORD, dtype=np.int64)
        for first, block in self.rows.blocks("searching the conflict degree"):
            pattern = _pattern(block)
            filled = np.flatnonzero(np.diff(pattern.indptr))
            if len(filled) == 0:
                continue
            words = np.bitwise_or.reduceat(masks[pattern.indices], pattern.indptr[filled])
            bits = np.unpackbits(words.astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
            conflicts += bits.sum(axis=0, dtype=np.int64)
            self.strangers[first + filled] += len(chosen) - bits.sum(axis=1, dtype=np.int64)
        # Each chosen row meets itself once.
        self.best = max(self.best, int(conflicts[: len(chosen)].max()) - 1)
        self.examined[chosen] = True
