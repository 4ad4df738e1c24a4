"""The readings of a run: bounded in memory, streamed to a file that a crash cannot corrupt, continued after a resume.

In memory a million readings are thinned to a few thousand; the file has them all. Of several ranks one writes. What a
crash left in the file beyond the checkpoint that is resumed from is superseded: removed when the run continues.
"""

from __future__ import annotations

import os
import re
import uuid
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

from torch import distributed

from variegrad.monitor.log_file import check_is_log, header, lines_of, reading_line, repair
from variegrad.monitor.reading import Reading
from variegrad.monitor.thinned import Thinned

_NUMBERS_AND_NAMES = re.compile(r"'[^']*'|\[[^\]]*\]|\(\d[^)]*\)|[-+]?\d[\d.,e+-]*")


class Reason(NamedTuple):
    """Why steps gave no reading.

    Attributes:
        text: the latest text of this kind.
        steps: how many steps it kept without a reading.
        last_step: the last of them.
    """

    text: str
    steps: int
    last_step: int


class History(Sequence[Reading]):
    """The readings so far, oldest first.

    Args:
        path: where to stream every reading as a line of JSON; None for memory only. Of several ranks only the first
            writes. An existing log is continued: a new run begins with a header line of its own.
        max_readings: how many readings to keep in memory, the newest half of them without gaps.

    Raises:
        ValueError: if the path is a folder or another kind of file, or another process is writing to it.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, max_readings: int = 4096) -> None:
        self.path = None if path is None else Path(path)
        self._max_readings = max_readings
        self._kept: Thinned[Reading] = Thinned(max_readings)
        self._before_resume = 0  # readings of this run that are not counted in memory
        self._run = uuid.uuid4().hex
        self._begun = False  # the file's last run is this one
        self._resumes = False  # it may be, which the file itself will tell
        self._keep_until: int | None = None  # the last step that a resumed run keeps in the file
        self._file: _OpenLog | None = None
        self._warned = False
        self.reasons: dict[str, Reason] = {}
        """Why steps that were due gave no reading."""
        if self.path is None:
            return
        if self.path.exists():
            check_is_log(self.path)
        # Which rank writes is unknown before there is a process group: the first reading decides.
        if _rank_is_known() and _rank() == 0:
            self._claim()

    @property
    def appended(self) -> int:
        """Readings of this run, also those that are no longer in memory."""
        return self._before_resume + self._kept.appended

    def append(self, reading: Reading) -> None:
        """Add a reading, in memory and in the file.

        A file that cannot be written is warned of once, and training continues.

        Args:
            reading: of a later step than the last.

        Raises:
            ValueError: if another process is writing to the file.
        """
        self._kept.append(reading)
        if self.path is None or _rank() != 0:
            return
        try:
            file = self._claim()
            if self._resumes and file.goes_on_with(self._run, self._keep_until):
                self._begun = True
            line = reading_line(reading)
            file.write(line if self._begun else header(self._run) + line)
            self._begun, self._resumes, self._keep_until = True, False, None
        except OSError as problem:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"log: {self.path} cannot be written: {problem}. Training continues, and readings are kept in "
                    "memory; readings made in the meantime will be missing from the file.",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def leave_out(self, step: int, reason: str) -> bool:
        """Note why a step gave no reading.

        Args:
            step: the optimizer step, counted from 1.
            reason: in words; numbers and names in it do not make another kind.

        Returns:
            Whether a reason of this kind is new.
        """
        kind = _NUMBERS_AND_NAMES.sub("…", reason)
        known = self.reasons.get(kind)
        self.reasons[kind] = Reason(reason, 1 if known is None else known.steps + 1, step)
        return known is None

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and text that survive a checkpoint, whatever the number of readings.

        Returns:
            What `load_state_dict` takes.
        """
        latest = self[-1] if len(self) else None
        return {
            "run": self._run,
            "appended": self.appended,
            "latest": None if latest is None else latest.to_record(),
            "reasons": [list(r) for r in self.reasons.values()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a checkpoint: with the file's readings up to it, or with the latest one if there is no file.

        Args:
            state: of `state_dict`.

        Raises:
            ValueError: if the state is not one of `state_dict`, or the file is damaged.
        """
        if state.keys() - {"reasons"} != {"run", "appended", "latest"}:
            raise ValueError(f"state must be what History.state_dict() returned; got the keys {sorted(state)}.")
        latest = None if state["latest"] is None else Reading.from_record(state["latest"])
        last_step = -1 if latest is None else latest.step
        kept: Thinned[Reading] = Thinned(self._max_readings)
        ours = False
        for line in lines_of(self.path) if self.path is not None and _has_content(self.path) else ():
            if line.values is None:
                kept, ours = Thinned(self._max_readings), line.run == state["run"]
            elif ours and line.values["step"] <= last_step:
                kept.append(Reading(**line.values))
        if latest is not None and (not len(kept) or kept[-1].step < last_step):
            kept.append(latest)
        self.reasons = {_NUMBERS_AND_NAMES.sub("…", r[0]): Reason(*r) for r in state.get("reasons", ())}
        self._run, self._keep_until = str(state["run"]), last_step
        self._begun, self._resumes = False, True
        self._kept, self._before_resume = kept, max(0, int(state["appended"]) - kept.appended)

    def close(self) -> None:
        """Let go of the file; a further reading would open it again."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._begun, self._resumes = False, self._begun or self._resumes

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Reading]:
        return iter(self._kept)

    @overload
    def __getitem__(self, index: int) -> Reading: ...

    @overload
    def __getitem__(self, index: slice) -> list[Reading]: ...

    def __getitem__(self, index: int | slice) -> Reading | list[Reading]:
        return self._kept[index]

    def __repr__(self) -> str:
        kept = "" if len(self) == self.appended else f" ({len(self):,} kept)"
        latest = f", latest: {self[-1]}" if len(self) else ""
        return f"History: {self.appended:,} readings{kept}{latest}"

    def _claim(self) -> _OpenLog:
        if self._file is None:
            assert self.path is not None
            self._file = _OpenLog(self.path)
        return self._file


class _OpenLog:
    """A log that this process alone writes to."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        from filelock import FileLock, Timeout  # noqa: PLC0415 - only if a log is written

        self._lock = FileLock(path.with_name(f".{path.name}.lock"), thread_local=False)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise ValueError(
                f"log: {path} is being written by another process, or by another Monitor of this one. "
                "Give each run its own file, or close() the other Monitor."
            ) from None
        self._path = path
        self._number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
        self._closing = weakref.finalize(self, os.close, self._number)
        check_is_log(path)
        repair(path)

    def goes_on_with(self, run: str, keep_until: int | None) -> bool:
        """Whether `run` is the file's last; then what it holds beyond a step is taken off."""
        end = last_run = None
        for line in lines_of(self._path) if _has_content(self._path) else ():
            if line.values is None:
                end, last_run = None, line.run
            elif keep_until is not None and end is None and line.values["step"] > keep_until:
                end = line.start
        if last_run == run and end is not None:
            os.ftruncate(self._number, end)
        return last_run == run

    def write(self, text: bytes) -> None:
        """Append whole lines, or leave the file as it was and raise OSError."""
        before = os.fstat(self._number).st_size
        try:
            if os.write(self._number, text) != len(text):
                raise OSError("no space left for a complete line")
        except OSError:
            os.ftruncate(self._number, before)
            raise

    def close(self) -> None:
        self._closing()
        self._lock.release()


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


_RANK_NAMES = ("RANK", "SLURM_PROCID", "LOCAL_RANK")


def _rank_is_known() -> bool:
    return _initialised() or not any(name in os.environ for name in _RANK_NAMES)


def _rank() -> int:
    if _initialised():
        return distributed.get_rank()
    return next((int(os.environ[name]) for name in _RANK_NAMES if name in os.environ), 0)


def _initialised() -> bool:
    return distributed.is_available() and distributed.is_initialized()
