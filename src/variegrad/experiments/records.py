"""One cell of an experiment is one record: a JSON file named by a hash of what the cell is.

A cell is everything that its numbers depend on: experiment and version of its code, data, settings, batch size, step
size, seed, replication, mechanism. A record is written under a temporary name and renamed, so that it stands whole or
not at all; one that is damaged is set aside to be computed again. Finished records can be packed into one file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from variegrad.files import write_whole

SCHEMA = "variegrad.experiment/1"
FOLDER, PACKED = "records", "records.jsonl"
DIGITS = 8  # significant digits kept of a result; float32 carries seven


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """What is to be computed.

    Attributes:
        experiment: the name of its experiment.
        version: of the experiment's code; a change that changes numbers raises it.
        values: everything else that the result depends on, plain JSON numbers and texts.
    """

    experiment: str
    version: int
    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @cached_property
    def key(self) -> str:
        """The hash of the content: 32 hexadecimal digits."""
        content = {"experiment": self.experiment, "version": self.version, "values": dict(self.values)}
        return hashlib.blake2b(_text(content).encode(), digest_size=16).hexdigest()

    def __str__(self) -> str:
        return f"{self.experiment}: " + ", ".join(f"{name} {value}" for name, value in self.values.items())


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """What was computed.

    Attributes:
        cell: of what.
        values: the results by name: numbers, texts and lists of them; infinities and NaN are allowed.
        seconds: its processor time, of cells computed together an equal share; wall-clock time of a cell that has the
            machine for itself.
    """

    cell: Cell
    values: Mapping[str, Any]
    seconds: float

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


@dataclass(frozen=True, kw_only=True)
class Found:
    """The contents of a folder.

    Attributes:
        records: by the key of their cell.
        damaged: what could not be believed, one sentence each.
    """

    records: dict[str, Record]
    damaged: tuple[str, ...]


def write_record(folder: Path, record: Record) -> Path:
    """Write one record, whole or not at all.

    Args:
        folder: of the experiment's run.
        record: what to write.

    Returns:
        The path of its file.
    """
    target = folder / FOLDER / f"{record.cell.key}.json"
    write_whole(target, _line(record))
    return target


def read_records(folder: Path) -> Found:
    """Every record of a folder, packed or not; damaged ones are named, not raised.

    Args:
        folder: of the experiment's run; it need not exist.

    Returns:
        The records and what was damaged.
    """
    records: dict[str, Record] = {}
    damaged: list[str] = []

    def take(text: str, name: str, expected: str | None) -> None:
        try:
            record = _record(text)
            if expected not in (None, record.cell.key):
                raise ValueError("its name is not the hash of its cell")
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            damaged.append(f"{name}: {problem}")
        else:
            records[record.cell.key] = record

    packed = folder / PACKED
    if packed.is_file():
        for number, line in enumerate(packed.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            take(line, f"{PACKED} line {number}", None)
    for path in sorted((folder / FOLDER).glob("*.json")):
        take(path.read_text(encoding="utf-8", errors="replace"), f"{FOLDER}/{path.name}", path.stem)
    return Found(records=records, damaged=tuple(damaged))


def pack(folder: Path) -> Path:
    """Gather all records of a folder in one file, a line each, ordered by key; single files are removed afterwards.

    Args:
        folder: of the experiment's run.

    Returns:
        The path of the packed file.
    """
    found = read_records(folder)
    singles = list((folder / FOLDER).glob("*.json"))
    target = folder / PACKED
    write_whole(target, "".join(_line(found.records[key]) for key in sorted(found.records)))
    for path in singles:  # only what is in the packed file by now, and what was damaged
        path.unlink()
    if (folder / FOLDER).is_dir() and not any((folder / FOLDER).iterdir()):
        (folder / FOLDER).rmdir()
    return target


def _line(record: Record) -> str:
    cell = {"experiment": record.cell.experiment, "version": record.cell.version, "values": dict(record.cell.values)}
    body = {"schema": SCHEMA, "cell": cell, "values": _plain(record.values), "seconds": round(record.seconds, 3)}
    return _text({**body, "digest": _digest(body)}) + "\n"


def _record(text: str) -> Record:
    body = json.loads(text)
    digest = body.pop("digest")
    if body["schema"] != SCHEMA:
        raise ValueError(f"its schema is {body['schema']!r}, not {SCHEMA!r}")
    if digest != _digest(body):
        raise ValueError("its content does not match its digest")
    return Record(cell=Cell(**body["cell"]), values=_numbers(body["values"]), seconds=body["seconds"])


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.blake2b(_text(body).encode(), digest_size=8).hexdigest()


def _text(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """Results as JSON: rounded, and with words for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else str(float(value))
    return value


def _numbers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _numbers(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_numbers(part) for part in value]
    return float(value) if value in ("inf", "-inf", "nan") else value
