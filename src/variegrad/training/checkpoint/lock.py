"""One run per folder: a lock that the system itself gives back when its process ends, however it ends."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "LOCK"
# A lock belongs to a process, so a second run in the same process would be let in; this is what it holds.
_held: set[Path] = set()


class FolderInUse(RuntimeError):  # noqa: N818 - it reads as what is wrong with the folder
    """Another run writes to the folder."""


@contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Hold a folder for this run; made if it does not exist.

    Record locks (POSIX `fcntl`) are not handed on to forked processes, so that a data loader that outlives a killed run
    does not keep them.

    Args:
        folder: of the checkpoints.

    Yields:
        Nothing.

    Raises:
        FolderInUse: if another run holds it: its process and host.
        OSError: if the folder cannot be written.
    """
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if folder in _held:
        raise FolderInUse(_message(folder, "another run in this process"))
    # Through a link, another file would be emptied below.
    file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows both
            raise FolderInUse(_message(folder, _owner(file))) from None
        _held.add(folder)
        try:
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
            yield
        finally:
            _held.discard(folder)
    finally:
        os.close(file)  # which gives the lock back; the file stays, since removing it would race with others


def _message(folder: Path, owner: str) -> str:
    return f"{folder}: one run per folder; {owner} is writing to it. Wait for it or choose another folder."


def _owner(file: int) -> str:
    try:
        owner = json.loads(os.pread(file, 1000, 0))
        return f"process {int(owner['pid'])} on {str(owner['host'])[:100]}"
    except (ValueError, KeyError, TypeError):
        return "another process"
