"""LIBSVM text, a few megabytes at a time: `label index:value …`, one example a line, indices ascending.

scikit-learn parses; what it lets pass (NaN, infinity) is refused here, and what it refuses is given its line number.
"""

from __future__ import annotations

import io
import math
import re
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from sklearn.datasets import load_svmlight_file

from variegrad.theory.rows import Block

CHUNK_BYTES = 1 << 24
LARGEST_INDEX = 2**31 - 2  # column indices are stored in 32 bits


def read_libsvm(stream: BufferedIOBase, path: Path) -> Iterator[Block]:
    """The features of a LIBSVM stream, block by block; labels and query ids are not kept.

    Args:
        stream: the decompressed text.
        path: how error messages call it.

    Yields:
        Compressed rows whose columns are the indices as written (most files count from 1).

    Raises:
        ValueError: with file and line, if a line is malformed or the compressed stream ends early.
    """
    line = 1
    while chunk := _whole_lines(stream, path, line):
        yield _parse(chunk, path, line)
        line += chunk.count(b"\n")


def _whole_lines(stream: BufferedIOBase, path: Path, line: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    try:
        # In small reads, so that a broken stream gives what stands before the break, and with it the line.
        while size < CHUNK_BYTES and (piece := stream.read1(min(CHUNK_BYTES, 1 << 20))):
            pieces.append(piece)
            size += len(piece)
        pieces.append(stream.readline())
    except (EOFError, OSError, zlib.error) as error:
        reached = line + sum(piece.count(b"\n") for piece in pieces)
        what = "the compressed file ends early" if isinstance(error, EOFError) else "the file is damaged"
        raise ValueError(f"{path}: {what}, in line {reached}; copy it again ({error}).") from error
    return b"".join(pieces)


def _parse(chunk: bytes, path: Path, line: int) -> Block:
    cause: Exception | None = None
    try:
        features, _ = load_svmlight_file(io.BytesIO(chunk), zero_based=True)
    except (ValueError, OverflowError, IndexError) as error:
        cause = error
    # Python's float() would take "1_0" for ten.
    if cause is not None or b"_" in chunk or not np.isfinite(features.data).all():
        for number, text in enumerate(chunk.split(b"\n"), start=line):
            if problem := _problem(text):
                raise ValueError(f"{path}, line {number}: {problem}.") from cause
        if cause is not None:
            raise ValueError(f"{path}, after line {line}: not LIBSVM text ({cause}).") from cause
    return features


def _problem(text: bytes) -> str:
    """What is wrong with a line, or nothing."""
    fields = text.split(b"#", 1)[0].split()
    if not fields:
        return ""
    label, *features = [field.decode(errors="replace") for field in fields]
    if _number(label) is None:
        return f"the label must be a number; found {label!r}"
    if features and features[0].startswith("qid:"):
        del features[0]
    last = -1
    for feature in features:
        index, colon, value = feature.partition(":")
        if not colon or not re.fullmatch(r"[+-]?\d+", index):
            return f"a feature must be written index:value; found {feature!r}"
        if problem := _index_problem(int(index), last) or _value_problem(value, feature):
            return problem
        last = int(index)
    return ""


def _index_problem(column: int, last: int) -> str:
    if not 0 <= column <= LARGEST_INDEX:
        return f"an index must lie between 0 and {LARGEST_INDEX}; found {column}"
    if column == last:
        return f"an index may stand only once; found {column} twice"
    return f"indices must ascend; found {column} after {last}" if column < last else ""


def _value_problem(value: str, feature: str) -> str:
    number = _number(value)
    if number is None:
        return f"a value must be a number; found {feature!r}"
    return "" if math.isfinite(number) else f"a value must be finite; found {feature!r}"


def _number(text: str) -> float | None:
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None
