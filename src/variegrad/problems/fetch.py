"""Getting data sets from OpenML through scikit-learn, and writing them in their published formats.

Only `fetch` uses the network, and only when it is called. What arrives is checked against what is known of the
published data (SHA-256 for MNIST; class counts in both splits, and the colour means of CIFAR-10, for the others), so
that a changed upload or another order of rows is refused rather than trained on.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
from scipy.sparse import csr_matrix

from variegrad.data_root import root_folder
from variegrad.problems import cifar10
from variegrad.problems.mnist import MNIST_SHA256

Files = dict[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a data set is found on OpenML, and how it becomes files.

    Attributes:
        data_id: its number there.
        title: its name there, which must agree.
        files: makes the content of each file, by its path below the data root, from features and labels.
    """

    data_id: int
    title: str
    files: Callable[[Any, np.ndarray], Files]


def fetch(name: str, root: str | Path | None = None) -> list[Path]:
    """Downloads a data set and writes it where `load` finds it; files appear whole or not at all.

    CIFAR-10 comes as text: it takes some minutes and several gigabytes of memory.

    Args:
        name: "mnist", "fashion-mnist", "cifar10" or "a9a".
        root: the data root; by default VARIEGRAD_DATA, or ~/.cache/variegrad.

    Returns:
        The files written.

    Raises:
        ValueError: if the name is unknown, or what arrived is not the published data.
        OSError: if there is no network, or a file cannot be written.
    """
    if name not in SOURCES:
        raise ValueError(f"fetch: name must be one of {', '.join(SOURCES)}; got {name!r}.")
    source = SOURCES[name]
    bunch = sklearn.datasets.fetch_openml(data_id=source.data_id, as_frame=False, parser="liac-arff", cache=False)
    title = bunch.details["name"]
    if title.lower() != source.title.lower():
        raise ValueError(
            f"fetch: OpenML's data set {source.data_id} should be {source.title!r}; its name is {title!r}. "
            "Download the files yourself and set VARIEGRAD_DATA to their folder."
        )
    try:
        files = source.files(bunch.data, bunch.target)
    except ValueError as error:
        raise ValueError(
            f"fetch: OpenML's data set {source.data_id} is not the published {name}: {error} Nothing was written."
        ) from error
    folder = root_folder(root)
    for path, content in files.items():
        _write(folder / path, content)
    return [folder / path for path in files]


def _mnist_files(features: Any, target: np.ndarray) -> Files:
    files = _idx_files("mnist", features, target)
    for content, (name, published) in zip(files.values(), MNIST_SHA256.items(), strict=True):
        if (found := hashlib.sha256(gzip.decompress(content)).hexdigest()) != published:
            raise ValueError(f"the SHA-256 of {name} would be {found}, it should be {published}.")
    return files


def _fashion_mnist_files(features: Any, target: np.ndarray) -> Files:
    labels = _whole_numbers(target)
    _check_counts(labels[:60_000], dict.fromkeys(range(10), 6000))
    _check_counts(labels[60_000:], dict.fromkeys(range(10), 1000))
    return _idx_files("fashion-mnist", features, target)


def _idx_files(folder: str, features: Any, target: np.ndarray) -> Files:
    images, labels = _bytes(features, 28 * 28), _bytes(_whole_numbers(target)[:, None], 1)
    parts = [images[:60_000], labels[:60_000], images[60_000:], labels[60_000:]]
    shapes = [(28, 28), (), (28, 28), ()]
    return {
        f"{folder}/{name}.gz": gzip.compress(_idx(part.reshape(-1, *shape)), compresslevel=6, mtime=0)
        for name, part, shape in zip(MNIST_SHA256, parts, shapes, strict=True)
    }


def _idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def _cifar10_files(features: Any, target: np.ndarray) -> Files:
    pixels, labels = _bytes(features, 3 * 32 * 32), _bytes(_whole_numbers(target)[:, None], 1)
    _check_counts(labels[:50_000, 0], dict.fromkeys(range(10), 5000))
    _check_counts(labels[50_000:, 0], dict.fromkeys(range(10), 1000))
    means = pixels[:50_000].reshape(-1, 3, 1024).mean((0, 2)) / 255
    # The known means of red, green and blue: rows stored pixel by pixel instead would have three equal ones.
    if not np.allclose(means, [0.4914, 0.4822, 0.4465], atol=0.002):
        raise ValueError(f"its channels have the means {means.round(4).tolist()}, not [0.4914, 0.4822, 0.4465].")
    records = np.concatenate([labels, pixels], axis=1)
    folder = "cifar-10-batches-bin"
    files = {
        f"{folder}/{name}": records[start : start + cifar10.RECORDS].tobytes()
        for name, start in zip(cifar10.FILES, range(0, 60_000, cifar10.RECORDS), strict=True)
    }
    return {f"{folder}/batches.meta.txt": "".join(f"{name}\n" for name in cifar10.CLASSES).encode(), **files}


def _a9a_files(features: Any, target: np.ndarray) -> Files:
    train = 32_561  # the 16,281 that follow are its test set
    labels = _whole_numbers(target)[:train]
    _check_counts(labels, {-1: 24_720, 1: 7_841})
    text = io.BytesIO()
    sklearn.datasets.dump_svmlight_file(csr_matrix(features)[:train], labels, text, zero_based=False)
    return {"a9a.svm.gz": gzip.compress(text.getvalue(), compresslevel=6, mtime=0)}


def _whole_numbers(values: Any) -> np.ndarray:
    numbers = np.asarray(values, dtype=np.float64)
    if not np.array_equal(numbers, np.round(numbers)):
        raise ValueError("some values are not whole numbers.")
    return numbers.astype(np.int64)


def _bytes(values: Any, columns: int) -> np.ndarray:
    numbers = np.asarray(values)
    with np.errstate(invalid="ignore"):  # what does not fit is found by the comparison
        rounded = numbers.astype(np.uint8)
    if numbers.shape[1] != columns or not np.array_equal(rounded, numbers):
        raise ValueError(f"it must have {columns} columns of whole numbers in 0 … 255; its shape is {numbers.shape}.")
    return rounded


def _check_counts(labels: np.ndarray, published: dict[int, int]) -> None:
    found = dict(zip(*(column.tolist() for column in np.unique(labels, return_counts=True)), strict=True))
    if found != published:
        raise ValueError(f"it has {found} examples per class; the published data has {published}.")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


SOURCES = {
    "mnist": Source(data_id=554, title="mnist_784", files=_mnist_files),
    "fashion-mnist": Source(data_id=40996, title="Fashion-MNIST", files=_fashion_mnist_files),
    "cifar10": Source(data_id=40927, title="CIFAR_10", files=_cifar10_files),
    "a9a": Source(data_id=1430, title="a9a", files=_a9a_files),
}
