"""The file of a history: JSON lines that a crash cannot corrupt.

A header line begins each run; every other line is one reading. A line is appended by a single write, so that a crash
can leave the beginning of one last line and nothing else: `repair` takes it off, readers pass over it and say so.
Nothing here parses more than JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from variegrad.monitor.reading import Reading, checked
from variegrad.monitor.thinned import Thinned
from variegrad.versions import version

SCHEMA = "variegrad.monitor/1"
_BEGINNING = f'{{"schema":"{SCHEMA}"'.encode()


class Line(NamedTuple):
    """One whole line of a log: a header, or a reading.

    Attributes:
        start: where it begins in the file, in bytes.
        run: the run that a header begins; None for a reading.
        values: of the reading; None for a header.
    """

    start: int
    run: str | None
    values: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Log:
    """The last run of a log.

    Attributes:
        readings: its readings, older ones thinned if there are very many.
        count: how many there are, those left out included.
        runs: how many runs the file holds.
        half_written: the file ends in a line that was not written to its end.
    """

    readings: list[Reading]
    count: int
    runs: int
    half_written: bool


def header(run: str) -> bytes:
    """The line that begins a run."""
    return _line({"schema": SCHEMA, "run": run, "version": version("variegrad")})


def reading_line(reading: Reading) -> bytes:
    """The line of a reading."""
    return _line(reading.to_record())


def read_log(path: Path, *, most: int = 4096, on_bytes: Callable[[int], None] | None = None) -> Log:
    """The last run of a log, every line of it checked."""
    kept, runs = Thinned[dict[str, Any]](most), 0
    for k, line in enumerate(lines_of(path)):
        if line.values is None:
            kept, runs = Thinned[dict[str, Any]](most), runs + 1
        else:
            kept.append(line.values)
        if on_bytes is not None and k % 4096 == 0:
            on_bytes(line.start)
    return Log(
        readings=[Reading(**values) for values in kept],
        count=kept.appended,
        runs=runs,
        half_written=_whole_part(path) < path.stat().st_size,
    )


def lines_of(path: Path) -> Iterator[Line]:
    """The whole lines of a log, checked one after another."""
    check_is_log(path)
    if path.stat().st_size == 0:
        raise ValueError(f"log: {path} is empty. Has the run that writes it begun?")
    whole, start = _whole_part(path), 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if start >= whole:
                return
            try:
                record = json.loads(line)
                if "schema" in record:
                    if record["schema"] != SCHEMA:
                        raise ValueError(f"its schema is {record['schema']!r}, not {SCHEMA!r}")
                    yield Line(start, str(record["run"]), None)
                else:
                    yield Line(start, None, checked(record))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
                raise ValueError(
                    f"log: {path}, line {number} is damaged: {_short(problem)} "
                    "Nothing was changed; remove the line to continue."
                ) from problem
            start += len(line)


def check_is_log(path: Path) -> None:
    """Refuse what is not the beginning of a log; an empty file and half a header may become one."""
    if path.is_dir():
        raise ValueError(f"log: {path} is a folder; name a file in it, such as {path / 'monitor.jsonl'}.")
    if not path.exists():
        raise ValueError(f"log: there is no file {path}. Name the file that was given to Monitor(log=...).")
    with path.open("rb") as file:
        first = file.readline(4096)
    if _BEGINNING.startswith(first) or first.startswith(_BEGINNING):
        return
    try:
        found = json.loads(first).get("schema")
    except (ValueError, AttributeError, RecursionError):
        found = None
    if isinstance(found, str) and found.startswith("variegrad.monitor/"):
        raise ValueError(
            f"log: {path} has the schema {found!r}; this version of variegrad knows {SCHEMA!r}. "
            "Use the version that wrote it, or start a new file."
        )
    raise ValueError(f"log: {path} is not a log of Monitor: its first line must begin with {_BEGINNING.decode()}.")


def repair(path: Path) -> int:
    """Remove a half-written last line; if only its end of line is missing, add that instead."""
    size, whole = path.stat().st_size, _whole_part(path)
    with path.open("r+b") as file:
        file.seek(max(0, whole - 1))
        unended = whole > 0 and file.read(1) != b"\n"
        file.truncate(whole)
        if unended:
            file.seek(whole)
            file.write(b"\n")
        file.flush()
        os.fsync(file.fileno())
    return size - whole


def _whole_part(path: Path) -> int:
    """How many bytes of the file are whole lines; a last line that lacks nothing but its end counts."""
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        tail = b""
        while position > 0 and b"\n" not in tail:
            step = min(4096, position)
            position -= step
            file.seek(position)
            tail = file.read(step) + tail
    last = tail[tail.rfind(b"\n") + 1 :]
    size = position + len(tail)
    try:
        record = json.loads(last)
        whole = isinstance(record, dict)
    except (ValueError, RecursionError):
        whole = False
    return size if whole else size - len(last)


def _line(record: dict[str, object]) -> bytes:
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _short(problem: Exception) -> str:
    text = f"no {problem}" if isinstance(problem, KeyError) else str(problem)
    return text.rstrip(".") + "."
