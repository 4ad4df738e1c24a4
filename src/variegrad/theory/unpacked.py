"""Files as they are published: gz, bz2, xz, zst, or a zip of one file; recognised by their first bytes, not by name."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from typing import Any

from variegrad.data_root import check_regular

NPY = b"\x93NUMPY"
ZIP = b"PK\x03\x04"
DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


@contextmanager
def unpacked(path: Path, on_bytes: Callable[[int], None] | None = None) -> Iterator[BufferedIOBase]:
    """The content of a file, decompressed while it is read.

    Args:
        path: of the file.
        on_bytes: told how many bytes of the file have been read, whenever more are.

    Yields:
        A stream of bytes.

    Raises:
        ValueError: if it is an archive of several files, or the package for its compression is missing.
        FileNotFoundError: if there is no such file.
    """
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; name a file in it.")
    check_regular(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file.")
    with path.open("rb") as raw:
        magic = raw.read(6)
        raw.seek(0)
        file: Any = raw if on_bytes is None else _Watched(raw, on_bytes)
        for start, opener in OPENERS.items():
            if magic.startswith(start):
                with opener(file, path) as stream:
                    yield stream
                return
        yield file


def _gz(file: Any, _path: Path) -> Any:
    return gzip.open(file, "rb")


def _bz2(file: Any, _path: Path) -> Any:
    return bz2.open(file, "rb")


def _xz(file: Any, _path: Path) -> Any:
    return lzma.open(file, "rb")


def _zst(file: Any, path: Path) -> Any:
    try:
        import zstandard  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ValueError(f"{path}: .zst files need zstandard: pip install 'variegrad[zst]'.") from error
    return BufferedReader(zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True))


@contextmanager
def _zip(file: Any, path: Path) -> Iterator[Any]:
    with zipfile.ZipFile(file) as archive:
        names = [member.filename for member in archive.infolist() if not member.is_dir()]
        if len(names) != 1:
            raise ValueError(
                f"{path}: the archive must hold one file; found {len(names)}: {', '.join(names[:5])}. "
                "Unpack it and name one of them."
            )
        with archive.open(names[0]) as stream:
            yield stream


OPENERS: dict[bytes, Callable[[Any, Path], Any]] = {
    b"\x1f\x8b": _gz, b"BZh": _bz2, b"\xfd7zXZ\x00": _xz, b"\x28\xb5\x2f\xfd": _zst, ZIP: _zip,
}  # fmt: skip


class _Watched:
    """A file that tells how many of its bytes have been read: the only progress a compressed text has."""

    def __init__(self, file: Any, on_bytes: Callable[[int], None]) -> None:
        self.file, self.on_bytes = file, on_bytes

    def read(self, size: int = -1) -> bytes:
        found: bytes = self.file.read(size)
        self.on_bytes(self.file.tell())
        return found

    def read1(self, size: int = -1) -> bytes:
        return self.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)
