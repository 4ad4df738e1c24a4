"""A data matrix as blocks of rows, so that every bound is a few passes over data of any size.

One row is one example. A block is a `scipy.sparse.csr_matrix` or a dense array, always in float64, small enough for the
processor's cache; a matrix that is larger than memory differs from a small one only in where its blocks come from.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, csc_matrix, csr_matrix, issparse

from variegrad.shapes import Float64, Int

if TYPE_CHECKING:
    from torch import Tensor

# Entries of a block: about 3 MB of a sparse matrix, so that X·v and Xᵀ·u read it from memory once.
BLOCK_ENTRIES = 1 << 18

Block = Any  # csr_matrix (scipy ships no types) or a dense float64 array of two dimensions
Array = NDArray[np.float64]


class Progress(Protocol):
    """What a caller passes to follow a long computation."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Called after each block with the stage's name, and the rows or bytes done of how many."""


class Rows(ABC):
    """An n × d matrix that can be read in blocks of rows, again and again.

    Attributes:
        rows: n.
        columns: d.
        name: how error messages call the matrix.
        base: the number of the first column in the file, 1 in most LIBSVM files; 0 in an array.
    """

    rows: int
    columns: int
    name: str = "X"
    base: int = 0
    progress: Progress | None = None

    def blocks(self, stage: str) -> Iterator[tuple[int, Block]]:
        """One pass over the matrix.

        Args:
            stage: what this pass is for, in words, passed to the progress callback.

        Yields:
            The index of a block's first row, and the block.
        """
        for first, block in self._read():
            yield first, block
            if self.progress is not None:
                self.progress(stage, first + block.shape[0], self.rows)

    @abstractmethod
    def _read(self) -> Iterator[tuple[int, Block]]: ...

    @abstractmethod
    def take(self, indices: Int[np.ndarray, " k"]) -> Sequence[NDArray[np.int64]]:
        """The columns in which each of a few rows is not zero.

        Args:
            indices: which rows.

        Returns:
            One array of column indices for each.
        """


class DenseRows(Rows):
    """The rows of a dense array, of any real type, in memory or memory-mapped."""

    def __init__(self, array: NDArray[Any], name: str = "X") -> None:
        """Wrap an array without copying it.

        Args:
            array: n × d.
            name: how error messages call it.
        """
        self.array, self.name = array, name
        self.rows, self.columns = array.shape

    def _read(self) -> Iterator[tuple[int, Block]]:
        height = max(1, BLOCK_ENTRIES // max(1, self.columns))
        for first in range(0, self.rows, height):
            yield first, np.asarray(self.array[first : first + height], dtype=np.float64)

    def take(self, indices: Int[np.ndarray, " k"]) -> Sequence[NDArray[np.int64]]:
        return [np.flatnonzero(self.array[i]) for i in indices]


class CompressedRows(Rows):
    """The rows of a sparse matrix from its three arrays (compressed sparse rows); subclasses say where they are."""

    indptr: NDArray[Any]
    canonical: bool = True

    @abstractmethod
    def _entries(self, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Values and column indices of the entries from `start` to `stop`."""

    def _read(self) -> Iterator[tuple[int, Block]]:
        # A product Xᵀu costs d for each block besides its entries, hence not fewer entries than columns.
        entries = max(BLOCK_ENTRIES, self.columns)
        first = 0
        while first < self.rows:
            # A key of the pointers' own type: with any other, every search would convert all of them.
            stop = self.indptr.dtype.type(min(int(self.indptr[first]) + entries, int(self.indptr[-1])))
            last = int(np.searchsorted(self.indptr, stop, side="right")) - 1
            # At least one row, however long; and not too many empty ones.
            last = min(max(last, first + 1), self.rows, first + entries)
            yield first, self._block(first, last)
            first = last

    def _block(self, first: int, last: int) -> Block:
        start, stop = int(self.indptr[first]), int(self.indptr[last])
        values, columns = self._entries(start, stop)
        pointers = self.indptr[first : last + 1] - start
        block = compressed(
            csr_matrix, values.astype(np.float64, copy=False), columns, pointers, (last - first, self.columns)
        )
        if not self.canonical:
            block = block.copy()
            block.sum_duplicates()
        return block

    def take(self, indices: Int[np.ndarray, " k"]) -> Sequence[NDArray[np.int64]]:
        supports = []
        for i in indices:
            row = self._block(int(i), int(i) + 1)
            supports.append(row.indices[row.data != 0].astype(np.int64))
        return supports


class SparseRows(CompressedRows):
    """The rows of a `scipy.sparse` matrix in memory; formats other than compressed rows are converted once."""

    def __init__(self, matrix: Any, name: str = "X") -> None:
        """Wrap a sparse matrix; compressed rows are not copied.

        Args:
            matrix: n × d.
            name: how error messages call it.
        """
        matrix = matrix.tocsr()
        self.rows, self.columns = matrix.shape
        self.name = name
        self.indptr, self.indices, self.data = matrix.indptr, matrix.indices, matrix.data
        self.canonical = bool(matrix.has_canonical_format)

    def _entries(self, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]:
        return self.data[start:stop], self.indices[start:stop]


def compressed(
    kind: Any, values: NDArray[Any], indices: NDArray[Any], pointers: NDArray[Any], shape: tuple[int, int]
) -> Block:
    """A sparse matrix around existing arrays: SciPy's constructor would copy a slice of larger ones.

    Args:
        kind: `csr_matrix` or `csc_matrix`.
        values: the entries.
        indices: the column (or row) of each.
        pointers: where each row (or column) starts.
        shape: of the matrix.

    Returns:
        The matrix, which shares memory with the arrays.
    """
    matrix = kind(shape, dtype=values.dtype)
    matrix.data, matrix.indices, matrix.indptr = values, indices, pointers.astype(indices.dtype, copy=False)
    return matrix


def transposed(block: Block) -> Block:
    """The transpose of a block, without a copy.

    Args:
        block: of rows.

    Returns:
        The same numbers by columns.
    """
    if not issparse(block):
        return block.T
    return compressed(csc_matrix, block.data, block.indices, block.indptr, block.shape[::-1])


def rows_of(X: Any, progress: Progress | None = None) -> Rows:
    """The rows of a matrix in memory.

    Args:
        X: n × d, one row per example: a dense array, a tensor, or a sparse array of SciPy or torch; a `Rows` is
            returned as it is.
        progress: called after each block of each pass.

    Returns:
        Its rows, without a copy if X is dense or stored by rows.

    Raises:
        TypeError: if X is none of these or does not hold real numbers.
        ValueError: if X does not have two dimensions, or has no row or no column.
    """
    if isinstance(X, Rows):
        rows = X
    else:
        torch = sys.modules.get("torch")  # whoever has a tensor has it; the command needs it not
        if torch is not None and isinstance(X, torch.Tensor):
            X = _numpy(X.detach().cpu())
        if not issparse(X):
            X = np.asarray(X)
        if X.ndim != 2:
            raise ValueError(f"X must have two dimensions, one row per example; got shape {tuple(X.shape)}.")
        if X.dtype.kind not in "fiub":
            raise TypeError(f"X must hold real numbers; got dtype {X.dtype}.")
        rows = SparseRows(X) if issparse(X) else DenseRows(X)
    if rows.rows == 0 or rows.columns == 0:
        raise ValueError(f"{rows.name} must have at least one row and one column; got {rows.rows} × {rows.columns}.")
    rows.progress = progress or rows.progress
    return rows


def _numpy(X: Tensor) -> Any:
    import torch  # noqa: PLC0415 - only for tensors

    if X.dtype == torch.bfloat16:  # NumPy has no such type; the wider one holds every value exactly
        X = X.float()
    if X.layout == torch.strided:
        return X.numpy()
    if X.layout == torch.sparse_csr:
        return csr_matrix((X.values().numpy(), X.col_indices().numpy(), X.crow_indices().numpy()), shape=tuple(X.shape))
    X = X.to_sparse().coalesce()
    return coo_matrix((X.values().numpy(), tuple(X.indices().numpy())), shape=tuple(X.shape))


class Survey:
    """What one pass over the rows tells: norms, column counts, signs; it also refuses what is not a finite number.

    Attributes:
        sq_norms: ‖x_i‖² of every row.
        degrees: in how many rows each column is not zero.
        column_sums: Σ_i x_i.
        constant: the columns that hold one non-zero number in all rows.
        nonzeros: how many entries are not zero.
        longest_row: the largest number of stored entries per row.
        non_negative: whether no entry is negative.
    """

    def __init__(self, rows: Rows) -> None:
        """Read the matrix once.

        Args:
            rows: the matrix.

        Raises:
            ValueError: if an entry is not finite, or a row's squared norm leaves the range of float64.
        """
        self.sq_norms: Float64[np.ndarray, " n"] = np.empty(rows.rows)
        self.degrees = np.zeros(rows.columns, dtype=np.int64)
        self.column_sums = np.zeros(rows.columns)
        self.constant = np.empty(0, dtype=np.int64)
        self.nonzeros = 0
        self.longest_row = 0
        self.non_negative = True
        for first, block in rows.blocks("reading rows"):
            self._add(rows, first, block)

    def _add(self, rows: Rows, first: int, block: Block) -> None:
        ones = np.ones(block.shape[1])
        values = block.data if issparse(block) else block
        with np.errstate(over="ignore", invalid="ignore"):
            if issparse(block):
                sq_norms = compressed(csr_matrix, values * values, block.indices, block.indptr, block.shape) @ ones
                self.longest_row = max(self.longest_row, int(np.diff(block.indptr).max(initial=0)))
            else:
                sq_norms = (values * values).sum(axis=1)
                self.longest_row = rows.columns
        check_rows(rows, first, block, sq_norms)
        nonzeros = int(np.count_nonzero(values))
        self.nonzeros += nonzeros
        self.sq_norms[first : first + block.shape[0]] = sq_norms
        degrees = column_degrees(block, nonzeros)
        self.degrees += degrees
        self.column_sums += transposed(block) @ np.ones(block.shape[0])
        self._keep_constant(first, block, degrees)
        self.non_negative = self.non_negative and bool(values.min(initial=0.0) >= 0)

    def _keep_constant(self, first: int, block: Block, degrees: NDArray[np.int64]) -> None:
        if first == 0:
            self.constant = np.arange(len(degrees))
            self._constants = np.zeros(len(degrees))
        full = degrees[self.constant] == block.shape[0]
        self.constant, self._constants = self.constant[full], self._constants[full]
        if len(self.constant) == 0:
            return
        values = block[:, self.constant]
        values = values.toarray() if issparse(values) else values
        if first == 0:
            self._constants = values[0]
        same = (values == self._constants).all(axis=0)
        self.constant, self._constants = self.constant[same], self._constants[same]


def column_degrees(block: Block, nonzeros: int) -> NDArray[np.int64]:
    """In how many rows of a block each column is not zero.

    Args:
        block: with every entry stored once.
        nonzeros: how many of its values are not zero.

    Returns:
        One count for each column.
    """
    if not issparse(block):
        return np.asarray(np.count_nonzero(block, axis=0), dtype=np.int64)
    columns = block.indices if nonzeros == len(block.data) else block.indices[block.data != 0]
    return np.asarray(np.bincount(columns, minlength=block.shape[1]), dtype=np.int64)


def check_finite(rows: Rows, first: int, block: Block) -> None:
    """Refuse a block that holds NaN or infinity.

    Args:
        rows: the matrix, for its name.
        first: index of the block's first row.
        block: its rows.

    Raises:
        ValueError: with the first offending row.
    """
    values = block.data if issparse(block) else block
    # A finite sum of squares rules both out at the price of one product; only otherwise is every entry checked.
    flat = values.ravel()
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not np.isfinite(flat @ flat)
    if suspicious and not np.isfinite(values).all():
        for i in range(block.shape[0]):
            if not np.isfinite(block[i].data if issparse(block) else block[i]).all():
                raise ValueError(
                    f"{rows.name} must be finite; row {first + i} (counting from 0) holds NaN or infinity."
                )


def check_rows(rows: Rows, first: int, block: Block, sq_norms: Array) -> None:
    """Refuse a block that is not finite, or whose squared norms overflow or underflow.

    Args:
        rows: the matrix, for its name.
        first: index of the block's first row.
        block: its rows.
        sq_norms: ‖x_i‖² of each.

    Raises:
        ValueError: with the first offending row.
    """
    check_finite(rows, first, block)
    # A subnormal squared norm has lost its digits; an exactly zero one is a row of zeros unless it underflowed.
    suspect = np.flatnonzero(~np.isfinite(sq_norms) | (sq_norms < np.finfo(float).tiny))
    for i in suspect:
        row = block[i].data if issparse(block) else block[i]
        if row.any():
            raise ValueError(
                f"{rows.name}: the squared norm of row {first + i} (counting from 0) leaves the range of float64; "
                "scale the row, which changes no bound of this module that normalises rows."
            )
