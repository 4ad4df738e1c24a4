"""The IDX format of MNIST and its relatives: unsigned bytes in any number of dimensions, plain or gzipped.

A file is a magic number (0, 0, 8 for unsigned bytes, the number of dimensions), each dimension as a big-endian 32-bit
integer, and the bytes. Source: http://yann.lecun.com/exdb/mnist/ ("The IDX file format"). Other element types than
unsigned bytes are refused.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from variegrad.problems.images import Split
from variegrad.shapes import UInt8

UNSIGNED_BYTE = 8


def read_idx(path: Path, *, dimensions: int) -> UInt8[Tensor, "*shape"]:
    """The array in one IDX file.

    Args:
        path: of the file; whether it is gzipped is read from its content.
        dimensions: how many it must have.

    Returns:
        The bytes in the shape that the file states.

    Raises:
        ValueError: if the magic number, the size or the compression is not what it should be.
    """
    content = _content(path)
    magic = bytes([0, 0, UNSIGNED_BYTE, dimensions])
    if content[:4] != magic:
        raise ValueError(
            f"{path}: an IDX file of bytes in {dimensions} dimensions starts with the magic number 0x{magic.hex()}; "
            f"found 0x{content[:4].hex()} in {len(content)} bytes. Is it a different file, or still compressed?"
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise ValueError(f"{path}: ends inside its header, after {len(content)} bytes. Get the file again.")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"{path}: its header states {' × '.join(map(str, shape))} = {math.prod(shape)} bytes; "
            f"found {len(content) - start}. Get the file again."
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).copy()).reshape(shape)


def read_images(images: Path, labels: Path, *, classes: int) -> Split:
    """Grey images and their labels, from two IDX files.

    Args:
        images: path of the file with n × h × w bytes.
        labels: path of the file with n bytes.
        classes: labels must lie below it.

    Returns:
        Images of shape (n, 1, h, w) and labels of shape (n,).

    Raises:
        ValueError: if a file is malformed, there are no images, counts differ, or a label is out of range.
    """
    pixels, answers = read_idx(images, dimensions=3), read_idx(labels, dimensions=1)
    if pixels.numel() == 0:
        raise ValueError(f"{images}: has no images (its header says {' × '.join(map(str, pixels.shape))}).")
    if len(pixels) != len(answers):
        raise ValueError(
            f"{images} holds {len(pixels)} images but {labels} holds {len(answers)} labels; there must be one for "
            "each. Are both from the same split?"
        )
    check_labels(labels, answers, classes=classes)
    return Split(pixels[:, None], answers)


def check_labels(path: Path, labels: UInt8[Tensor, " n"], *, classes: int) -> None:
    """Refuses labels that are out of range.

    Args:
        path: of the file that they come from.
        labels: to check.
        classes: labels must lie below it.

    Raises:
        ValueError: if one does not.
    """
    if int(labels.max()) >= classes:
        worst = int(labels.argmax())
        raise ValueError(
            f"{path}: labels must lie in 0 … {classes - 1}; example {worst} has label {int(labels[worst])}."
        )


def sha256(path: Path) -> str:
    """SHA-256 of an IDX file's uncompressed content.

    Args:
        path: of the file, gzipped or not.

    Returns:
        The digest in hexadecimal.

    Raises:
        ValueError: if it is gzipped and damaged.
    """
    return hashlib.sha256(_content(path)).hexdigest()


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged or truncated gzip file ({error}). Get the file again.") from error
