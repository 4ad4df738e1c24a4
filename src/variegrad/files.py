"""Files that are whole or not there: written under a temporary name, flushed to the disk, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

UNFINISHED = ".unfinished"


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that readers see the former one or the whole new one, also after a power cut.

    Args:
        path: the file; its folder is created if it does not exist.
        content: what it is to hold; text as UTF-8.

    Raises:
        OSError: if the system refuses to write; the former file is as it was.
    """
    with whole(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which gets its name once the block has ended well.

    Args:
        path: the file; its folder is created if it does not exist.

    Yields:
        The open file.

    Raises:
        OSError: if the system refuses to write; the former file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")  # another process may write the same file
    try:
        with durable(unfinished) as file:
            yield file
        unfinished.replace(path)
        sync_folder(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def durable(path: Path) -> Iterator[BinaryIO]:
    """A new file whose content is on the disk when the block ends.

    Args:
        path: the file.

    Yields:
        The open file.
    """
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk.

    Args:
        folder: whose entries were made, renamed or removed.
    """
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def remove(path: Path) -> None:
    """Remove a file, a folder with all it holds, or a symbolic link (never what it points to); nothing if none exists.

    Args:
        path: what to remove.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
