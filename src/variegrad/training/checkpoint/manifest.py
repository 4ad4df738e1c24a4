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

SCHEMA = 1
NAME = "manifest.json"
DIGEST = "sha256_of_the_rest"


class Damaged(ValueError):  # noqa: N818 - it reads as what is wrong with the file
    """A checkpoint that cannot be used, with the reason."""


class LaterVersion(Damaged):
    """A checkpoint of a later schema: whole, perhaps, but not ours to judge."""


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
    """What stands in the manifest.

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
    for name in ("settings", "state"):
        _check_plain(getattr(manifest.progress, name), name)
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
        LaterVersion: if it is of another schema.
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
        raise LaterVersion(
            f"it is of schema {schema}, this version reads schema {SCHEMA}; use the version that wrote it"
        )
    try:
        return Manifest(
            step=content["step"],
            progress=Progress(**content["progress"]),
            tensors=File(**content["tensors"]),
            same_as=content["same_as"],
        )
    except (KeyError, TypeError):
        raise Damaged("the manifest lacks a field, or has one too many") from None


def _canonical(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


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
