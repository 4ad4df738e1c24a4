"""LIBSVM text, a few megabytes at a time: `label index:value …`, one example per line, indices ascending.

Also read: several labels per line (`3,17 index:value …`) or none, and the header line of extreme-classification files
(`examples columns labels`, whose indices count from 0). scikit-learn parses; what it lets pass (NaN, infinity) is
refused here, and what it refuses is given its line number.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_svmlight_file

from variegrad.theory.rows import Block
from variegrad.theory.unpacked import DAMAGED

CHUNK_BYTES = 1 << 24
LARGEST_INDEX = 2**31 - 2  # column indices are stored in 32 bits
HEADER = re.compile(rb"\s*(\d+)\s+(\d+)(?:\s+\d+)?\s*$")
SEVERAL = re.compile(rb"^[^\s#:]*,|^[ \t]+[^\s#:]+:", re.MULTILINE)  # `3,17 1:2`, or ` 1:2` without a label
NO_LABEL = re.compile(rb"^[^\s#:]+:", re.MULTILINE)


class Examples(NamedTuple):
    """Some lines of a file.

    Attributes:
        features: compressed rows; columns are the indices as written.
        labels: one number per row; a tuple of numbers per row if any line has several or none.
    """

    features: Block
    labels: Sequence[Any]


class LibsvmReader:
    """Reads a LIBSVM stream once, block by block; afterwards it knows how the file counts its columns."""

    def __init__(self, stream: BufferedIOBase, path: Path) -> None:
        """Read from a stream.

        Args:
            stream: the decompressed text.
            path: how error messages call it.
        """
        self.stream, self.path = stream, path
        self.header: tuple[int, int] | None = None
        self.rows, self.lowest, self.highest = 0, np.iinfo(np.int32).max, 0

    def __iter__(self) -> Iterator[Examples]:
        """The examples, block by block.

        Yields:
            Their features and labels.

        Raises:
            ValueError: with file and line, if a line is malformed or the compressed stream ends early.
        """
        line = 1
        while chunk := self._whole_lines(line):
            lines = chunk.count(b"\n")
            if line == 1:
                chunk = self._without_header(chunk)
            found = _parse(chunk, self.path, line)
            self.rows += found.features.shape[0]
            self.lowest = min(self.lowest, int(found.features.indices.min(initial=self.lowest)))
            self.highest = max(self.highest, int(found.features.indices.max(initial=0)))
            yield found
            line += lines
        if self.rows == 0:
            raise ValueError(f"{self.path}: has no example. A line is a label and then index:value pairs.")
        if self.header is not None and self.header[0] != self.rows:
            raise ValueError(f"{self.path}: its header announces {self.header[0]:,} examples; found {self.rows:,}.")
        if self.header is not None and self.highest - self.base >= self.header[1]:
            raise ValueError(
                f"{self.path}: its header announces {self.header[1]:,} columns; index {self.highest} occurs."
            )

    @property
    def base(self) -> int:
        """The index of the first column: 1 as in LIBSVM, 0 in a file that uses index 0 or has a header."""
        if self.header is not None:
            return int(self.lowest > 0 and self.highest == self.header[1])
        return int(self.lowest > 0)

    @property
    def columns(self) -> int:
        """d: what the header says, else the largest index that occurs."""
        return max(1, self.highest + 1 - self.base) if self.header is None else max(1, self.header[1])

    def _without_header(self, chunk: bytes) -> bytes:
        first, newline, rest = chunk.partition(b"\n")
        if b"\0" in chunk[:4096]:
            raise ValueError(
                f"{self.path}: is not text, so not LIBSVM; only `variegrad bound` also reads npy and npz files."
            )
        if first.count(b",") > 1 and b":" not in first:
            raise ValueError(
                f"{self.path}: looks like CSV, not LIBSVM (`label index:value …`). Save the table by NumPy instead: "
                "np.save('table.npy', table)."
            )
        if match := HEADER.match(first):
            self.header = (int(match[1]), int(match[2]))
            return newline + rest  # an empty line in its place keeps the count of lines
        return chunk

    def _whole_lines(self, line: int) -> bytes:
        pieces: list[bytes] = []
        size = 0
        try:
            # In small reads, so that a broken stream gives what stands before the break, and with it the line.
            while size < CHUNK_BYTES and (piece := self.stream.read1(min(CHUNK_BYTES, 1 << 20))):
                pieces.append(piece)
                size += len(piece)
            while pieces and not pieces[-1].endswith(b"\n") and (piece := self.stream.readline()):
                pieces.append(piece)
        except DAMAGED as error:
            reached = line + sum(piece.count(b"\n") for piece in pieces)
            what = "the compressed file ends early" if isinstance(error, EOFError) else "the file is damaged"
            raise ValueError(f"{self.path}: {what}, in line {reached}; copy it again ({error}).") from error
        return b"".join(pieces)


def _parse(chunk: bytes, path: Path, line: int) -> Examples:
    cause: Exception | None = None
    several = SEVERAL.search(chunk) is not None
    try:
        features, labels = load_svmlight_file(io.BytesIO(chunk), zero_based=True, multilabel=several)
    except (ValueError, OverflowError, IndexError) as error:
        cause = error
    # Python's float() would take "1_0" for ten.
    if cause is not None or b"_" in chunk or NO_LABEL.search(chunk) or not np.isfinite(features.data).all():
        for number, text in enumerate(chunk.split(b"\n"), start=line):
            if problem := _problem(text):
                raise ValueError(f"{path}, line {number}: {problem}.") from cause
        if cause is not None:
            raise ValueError(f"{path}, after line {line}: not LIBSVM text ({cause}).") from cause
    return Examples(features, labels)


def _problem(text: bytes) -> str:
    """What is wrong with a line, or nothing."""
    fields = text.split(b"#", 1)[0].split()
    if not fields:
        return ""
    label, *features = [_shown(field) for field in fields]
    if text[:1].isspace() and ":" in label:  # an example without labels
        label, features = "", [label, *features]
    if label and any(_number(one) is None for one in label.split(",")):
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
        return f"an index must be between 0 and {LARGEST_INDEX}; found {column}"
    if column == last:
        return f"an index may occur only once; found {column} twice"
    return f"indices must be in ascending order; found {column} after {last}" if column < last else ""


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


def _shown(field: bytes) -> str:
    """A field as a message can show it: text, and not pages of it."""
    text = field.decode(errors="replace")
    return text if len(text) <= 40 else f"{text[:40]}…"
