"""The manifest of a checkpoint: what it holds, how far the run was, and a SHA-256 of every byte, its own included.

It is canonical JSON: one set of facts has one form, and any other sequence of bytes is damaged.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = 2  # 2: draws belong to samples, and updates are counted
NAME = "manifest.json"
DIGEST = "sha256_of_the_rest"


class Damaged(ValueError):  # noqa: N818 - it reads as what is wrong with the file
    """A checkpoint that cannot be used, with the reason."""


class OtherVersion(Damaged):
    """A checkpoint of another schema: whole, perhaps, but not ours to judge."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run was, and what it was.

    Attributes:
        samples_seen: examples used so far: the position in the order of the data.
        workers: P.
        batch_size: B.
        seed: the key of all draws.
        settings: what must not change on resuming (`check_settings`), JSON.
        state: anything else the run must find again (mechanism, sampling, monitor, optimizer scalars), JSON.
    """

    samples_seen: int
    workers: int
    batch_size: int
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class File:
    """What a file must be.

    Attributes:
        size: bytes.
        sha256: of its bytes, in hex.
    """

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of the manifest.

    Attributes:
        step: updates made.
        progress: how far the run was.
        tensors: the file of tensors.
        same_as: names of tensors that are other names of a stored one (tied weights).
    """

    step: int
    progress: Progress
    tensors: File
    same_as: Mapping[str, str]


def digest(data: bytes) -> str:
    """SHA-256 in hex.

    Args:
        data: the bytes.

    Returns:
        64 digits.
    """
    return hashlib.sha256(data).hexdigest()


def to_bytes(manifest: Manifest) -> bytes:
    """The file's content.

    Args:
        manifest: to write.

    Returns:
        Canonical JSON with its own digest.

    Raises:
        ValueError: if progress holds something that JSON does not, or not exactly; it is named.
    """
    check_plain(manifest.progress)
    content = {"schema": SCHEMA, **asdict(manifest)}
    return _canonical({**content, DIGEST: digest(_canonical(content))})


def from_bytes(data: bytes) -> Manifest:
    """Read a manifest.

    Args:
        data: the file's content.

    Returns:
        The manifest.

    Raises:
        Damaged: if any byte is not as it was written.
        OtherVersion: if it is of another schema.
    """
    try:
        content = json.loads(data)
        stated = content.pop(DIGEST)
        schema = content["schema"]
        whole = data == _canonical({**content, DIGEST: stated}) and stated == digest(_canonical(content))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Damaged("the manifest is no JSON of this form") from None
    if not whole:
        raise Damaged("the manifest does not fit its own SHA-256")
    if schema != SCHEMA:
        raise OtherVersion(
            f"it is of schema {schema}, this version reads schema {SCHEMA}; use the version that wrote it"
        )
    _check_form(content, {"schema": None, **FORM}, "")
    return Manifest(
        step=content["step"],
        progress=Progress(**content["progress"]),
        tensors=File(**content["tensors"]),
        same_as=content["same_as"],
    )


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _mapping(value: Any) -> bool:
    return isinstance(value, dict)


# Field → what holds for its value. A digest says that the bytes are those that were written, not that they make sense.
FORM: Mapping[str, Any] = {
    "step": _count,
    "progress": {
        "samples_seen": _count, "workers": lambda value: _count(value) and value > 0,
        "batch_size": lambda value: _count(value) and value > 0,
        "seed": lambda value: isinstance(value, int) and not isinstance(value, bool),
        "settings": _mapping, "state": _mapping,
    },
    "tensors": {"size": _count, "sha256": lambda value: isinstance(value, str)},
    "same_as": lambda value: _mapping(value) and all(isinstance(name, str) for name in value.values()),
}  # fmt: skip


def _check_form(content: Any, form: Mapping[str, Any], place: str) -> None:
    if not isinstance(content, dict) or content.keys() != form.keys():
        raise Damaged("the manifest lacks a field, or has one too many")
    for name, expected in form.items():
        if isinstance(expected, Mapping):
            _check_form(content[name], expected, f"{place}{name}.")
        elif expected is not None and not expected(content[name]):
            raise Damaged(f"the manifest's {place}{name} is {str(content[name])[:40]!r}, which it cannot be")


def _canonical(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def check_plain(progress: Progress) -> None:
    """Refuse settings or state that JSON does not hold, or not exactly.

    Args:
        progress: to be written.

    Raises:
        ValueError: the place and what was found there.
    """
    for name in ("settings", "state"):
        _check_plain(getattr(progress, name), name)


def _check_plain(value: Any, place: str) -> None:
    """JSON would turn keys into text, tuples into lists and refuse NaN only later and without a name."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{place} must have text as keys; got the key {key!r}. Write str(key).")
            _check_plain(inner, f"{place}.{key}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _check_plain(inner, f"{place}[{number}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{place} must be finite; got {value}. Leave it out, or write it as text.")
    elif not (value is None or isinstance(value, str | int)):
        raise ValueError(
            f"{place} must be plain (text, numbers, True, False, None, lists, mappings); got {type(value).__name__}. "
            "Tensors go among the tensors."
        )
