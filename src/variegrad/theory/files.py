"""Data files as rows: LIBSVM, npy and npz, plain or compressed (gz, bz2, xz, zst, zip), of any size.

Text and compressed files are written once, as binary compressed rows (12 bytes a non-zero), into a temporary folder,
since every bound reads the data several times; each pass then reads that in blocks. Memory grows with the rows (a few
numbers each) and the columns, not with the non-zeros.
"""

from __future__ import annotations

import gzip
import lzma
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, load_npz

from variegrad.data_root import check_regular
from variegrad.theory.libsvm import LibsvmReader
from variegrad.theory.rows import (
    BLOCK_ENTRIES,
    Block,
    CompressedRows,
    DenseRows,
    Progress,
    Rows,
    SparseRows,
    rows_of,
)
from variegrad.theory.unpacked import NPY, ZIP, unpacked


@contextmanager
def opened(source: Any, *, progress: Progress | None = None, scratch: str | Path | None = None) -> Iterator[Rows]:
    """The rows of a matrix in memory or of a file; temporary files are gone on leaving.

    Args:
        source: what `rows_of` takes, or the path of a LIBSVM, npy or npz file (also compressed).
        progress: called after each block of each pass.
        scratch: the folder for temporary files; the system's by default.

    Yields:
        The rows.

    Raises:
        ValueError: if the file is malformed (with its line, for text), empty, or there is no room for temporary files.
        FileNotFoundError: if there is no such file.
    """
    with ExitStack() as stack:
        if isinstance(source, str | Path):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="variegrad-", dir=scratch)))
            source = _open_file(Path(source), folder, stack, progress)
        yield rows_of(source, progress)


def _open_file(path: Path, folder: Path, stack: ExitStack, progress: Progress | None) -> Rows:
    path = path.expanduser()
    check_regular(path)
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty.")
    try:
        if _is_npz(path):
            return _npz(path, path, folder, stack)
        with unpacked(path) as stream:
            start = stream.read(len(NPY))
        if start == NPY or start.startswith(ZIP):
            plain = _plain(path, start, folder)
            return _npy(plain, path, stack) if start == NPY else _npz(plain, path, folder, stack)
        size = path.stat().st_size
        watch = None if progress is None else lambda done: progress("reading the file", done, size)
        with unpacked(path, watch) as stream:
            return _libsvm(stream, path, folder, stack)
    except (EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        what = "ends early; copy it again" if isinstance(error, EOFError) else "is damaged"
        raise ValueError(f"{path}: the file {what} ({error}).") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno is None:  # bz2 has no error class of its own
            raise ValueError(f"{path}: the file is damaged ({error}).") from error
        raise ValueError(
            f"{path}: writing the temporary copy in {folder.parent} failed ({error.strerror}); a copy takes 12 bytes "
            "for each non-zero entry: name a folder with more room as `scratch`."
        ) from error


def _is_npz(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(name.endswith(".npy") for name in archive.namelist())


def _plain(path: Path, start: bytes, folder: Path) -> Path:
    """The file itself, or a decompressed copy of it: arrays are read at any place, not from the start."""
    with path.open("rb") as file:
        if file.read(len(start)) == start:
            return path
    copy = folder / "unpacked"
    with unpacked(path) as stream, copy.open("wb") as written:
        shutil.copyfileobj(stream, written, 1 << 22)
    return copy


class Flat:
    """A file of numbers of one type, read by ranges: unlike a memory map, what has been read leaves memory again."""

    def __init__(self, file: BinaryIO, dtype: np.dtype[Any], offset: int = 0) -> None:
        """Wrap an open file.

        Args:
            file: open for reading.
            dtype: of the numbers.
            offset: bytes before the first.
        """
        self.file, self.dtype, self.offset = file, dtype, offset

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """The numbers from `start` to `stop`, in a new array."""
        self.file.seek(self.offset + start * self.dtype.itemsize)
        return np.fromfile(self.file, self.dtype, stop - start)


class FiledRows(CompressedRows):
    """Compressed rows whose values and columns are in two files of numbers; only the row pointers are in memory."""

    def __init__(
        self, values: Flat, indices: Flat, indptr: NDArray[np.int64], *, columns: int, name: str, base: int = 0
    ) -> None:
        """Rows read from files.

        Args:
            values: the file of values.
            indices: the file of column indices.
            indptr: where each row starts, n+1 numbers.
            columns: d.
            name: how error messages call it.
            base: the index of the first column as it is written.
        """
        self.values, self.indices, self.indptr = values, indices, indptr
        self.rows, self.columns, self.name, self.base = len(indptr) - 1, columns, name, base

    def _entries(self, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]:
        columns = self.indices.read(start, stop)
        if self.base:
            columns -= self.base
        return self.values.read(start, stop), columns


class FiledDenseRows(Rows):
    """The rows of a dense array in a file, C order."""

    def __init__(self, values: Flat, shape: tuple[int, int], name: str) -> None:
        """Rows read from a file.

        Args:
            values: the file.
            shape: n, d.
            name: how error messages call it.
        """
        self.values, self.name = values, name
        self.rows, self.columns = shape

    def _rows(self, first: int, last: int) -> NDArray[Any]:
        return self.values.read(first * self.columns, last * self.columns).reshape(last - first, self.columns)

    def _read(self) -> Iterator[tuple[int, Block]]:
        height = max(1, BLOCK_ENTRIES // max(1, self.columns))
        for first in range(0, self.rows, height):
            yield first, self._rows(first, min(first + height, self.rows)).astype(np.float64, copy=False)

    def take(self, indices: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return [np.flatnonzero(self._rows(int(i), int(i) + 1)) for i in indices]


def _libsvm(stream: BufferedIOBase, path: Path, folder: Path, stack: ExitStack) -> Rows:
    reader, lengths = LibsvmReader(stream, path), []
    with (folder / "values").open("wb") as values, (folder / "indices").open("wb") as indices:
        for block, _ in reader:
            # Not tofile, which is silent on a full disk.
            values.write(block.data.astype(np.float64).data)
            indices.write(block.indices.astype(np.int32).data)
            lengths.append(np.diff(block.indptr))
    return FiledRows(
        Flat(stack.enter_context((folder / "values").open("rb")), np.dtype(np.float64)),
        Flat(stack.enter_context((folder / "indices").open("rb")), np.dtype(np.int32)),
        np.concatenate([[0], np.cumsum(np.concatenate(lengths), dtype=np.int64)]),
        columns=reader.columns,
        name=str(path),
        base=reader.base,
    )


def _header(file: BinaryIO, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except ValueError as error:
        raise ValueError(f"{name}: not an npy file ({error}).") from error
    if dtype.kind not in "fiub":
        raise ValueError(f"{name}: must hold real numbers; found dtype {dtype}.")
    return shape, fortran, dtype


def _flat(npy: Path, name: str, stack: ExitStack) -> tuple[Flat, tuple[int, ...], bool]:
    file = stack.enter_context(npy.open("rb"))
    shape, fortran, dtype = _header(file, name)
    offset = file.tell()
    needed = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if npy.stat().st_size < needed:
        raise ValueError(f"{name}: the file ends early: {needed:,} bytes are announced, {npy.stat().st_size:,} found.")
    return Flat(file, dtype, offset), shape, fortran


def _npy(npy: Path, path: Path, stack: ExitStack) -> Rows:
    values, shape, fortran = _flat(npy, str(path), stack)
    if len(shape) != 2:
        raise ValueError(f"{path}: must hold an array of two dimensions, one row per example; found shape {shape}.")
    if fortran:
        return DenseRows(np.load(npy, mmap_mode="r", allow_pickle=False), str(path))
    return FiledDenseRows(values, (shape[0], shape[1]), str(path))


def _npz(npz: Path, path: Path, folder: Path, stack: ExitStack) -> Rows:
    with zipfile.ZipFile(npz) as archive:
        names = archive.namelist()
        if "format.npy" not in names:
            if len(names) != 1:
                raise ValueError(f"{path}: must hold one array, or a matrix saved by scipy.sparse; found {names}.")
            archive.extract(names[0], folder)
            return _npy(folder / names[0], path, stack)
        with archive.open("format.npy") as file:
            layout = np.lib.format.read_array(file, allow_pickle=False).item()
        if layout not in (b"csr", "csr"):
            # Other layouts are not in the order of rows, so they are brought into it in memory.
            return SparseRows(load_npz(npz), str(path))
        for member in ("data", "indices", "indptr", "shape"):
            archive.extract(f"{member}.npy", folder)
    n, d = (int(size) for size in np.load(folder / "shape.npy", allow_pickle=False))
    values, _, _ = _flat(folder / "data.npy", str(path), stack)
    indices, _, _ = _flat(folder / "indices.npy", str(path), stack)
    indptr = np.load(folder / "indptr.npy", allow_pickle=False).astype(np.int64)
    rows = FiledRows(values, indices, indptr, columns=d, name=str(path))
    if rows.rows != n:
        raise ValueError(f"{path}: {n} rows are announced, the row pointers say {rows.rows}.")
    _check_order(rows, path)
    return rows


def _check_order(rows: FiledRows, path: Path) -> None:
    """Whether columns lie within the matrix and stand once a row, in order; the matrix is marked if not."""
    for _, block in rows.blocks("checking the columns"):
        try:
            csr_matrix((block.data, block.indices, block.indptr), shape=block.shape).check_format(full_check=True)
        except ValueError as error:
            raise ValueError(f"{path}: not a valid sparse matrix ({error}).") from error
        if not block.has_canonical_format:
            rows.canonical = False
            return
