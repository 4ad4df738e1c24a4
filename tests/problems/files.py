"""Small files in the published formats, made for tests."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np


def idx(array: np.ndarray, *, magic: bytes | None = None) -> bytes:
    header = magic if magic is not None else bytes([0, 0, 8, array.ndim])
    return header + b"".join(length.to_bytes(4, "big") for length in array.shape) + array.astype(np.uint8).tobytes()


def write_grey_images(folder: Path, *, train: int = 30, test: int = 12, seed: int = 0) -> None:
    """Four IDX files with MNIST's names and random content; one packed, one plain, as they may come."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for name, count in (("train", train), ("t10k", test)):
        images = idx(rng.integers(0, 256, (count, 28, 28)))
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(rng.integers(0, 10, count)))


def write_cifar10(folder: Path, *, records: int, seed: int = 0) -> None:
    """Six files in the official binary layout with random content."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        rows = rng.integers(0, 256, (records, 3073), dtype=np.uint8)
        rows[:, 0] = np.arange(records) % 10
        rows.tofile(folder / name)
