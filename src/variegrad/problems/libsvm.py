"""Classification data in LIBSVM's text format: `label index:value …` a line, plain, gzipped or bzip2-compressed.

Features are used as they stand in the file. Indices may start at 0 or 1. Two label values become 0 and 1 in ascending
order (−1, +1 → 0, 1), more become 0 … K−1. Source: https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/.
"""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from scipy.sparse import csr_matrix
from sklearn.datasets import load_svmlight_file
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from variegrad.problems.data_root import find
from variegrad.problems.sparse_rows import SparseRows

DENSE_BYTES = 2**28
"""Features that take no more than this as dense float32 are kept dense, which is faster; others stay sparse."""


def find_a9a(root: Path) -> Path:
    """The training file of a9a: 32,561 people of the Adult census data, 123 binary features.

    Args:
        root: the data root; `sparse`, `a9a`, `libsvm` in it and the root itself are searched.

    Returns:
        Its path.

    Raises:
        DataNotFound: if it is not there.

    Source: Platt 1998, from the UCI Adult data; LIBSVM's collection.
    """
    names = [stem + packed for stem in ("a9a.svm", "a9a", "a9a.txt", "a9a.libsvm") for packed in (".gz", "", ".bz2")]
    return find("a9a", root, ["sparse", "a9a", "libsvm", ""], [names])[0]


def read_libsvm(path: Path) -> tuple[csr_matrix, Int[Tensor, " n"]]:
    """The features and classes of a LIBSVM file.

    Args:
        path: of the file; `.gz` and `.bz2` are unpacked.

    Returns:
        An n × d float32 matrix and labels 0 … K−1.

    Raises:
        ValueError: if the file is empty, damaged or malformed (the line is named), a feature is not finite, labels are
            not whole numbers, or there are fewer than two classes.
    """
    try:
        features, values = load_svmlight_file(str(path))
    except (EOFError, gzip.BadGzipFile, zlib.error, OSError) as error:
        raise ValueError(f"{path}: cannot be read to its end ({error}). Is it truncated? Get it again.") from error
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {_first_bad_line(path, error)}") from error
    with np.errstate(over="ignore"):  # what does not fit into float32 becomes infinite and is refused below
        features = features.astype(np.float32)
    rows, _ = features.shape
    if rows == 0:
        raise ValueError(f"{path}: holds no examples. A line is a label and then index:value pairs.")
    if not np.isfinite(features.data).all():
        entry = int(np.flatnonzero(~np.isfinite(features.data))[0])
        row = int(np.searchsorted(features.indptr, entry, side="right"))
        raise ValueError(
            f"{path}: features must be finite in float32; example {row} of {rows} has "
            f"{features.data[entry]} in column {int(features.indices[entry])} (columns counted from 0)."
        )
    whole = np.isfinite(values) & (values == np.round(values))
    if not whole.all():
        odd = int(np.argmin(whole))
        raise ValueError(
            f"{path}: labels must be whole numbers, one for each class; example {odd + 1} of {rows} has {values[odd]}. "
            "Is it a regression problem? Offer it by a function of your own (package.module:function)."
        )
    found, labels = np.unique(values, return_inverse=True)
    if len(found) < 2:
        raise ValueError(f"{path}: logistic regression needs two classes or more; all labels are {found[0]:g}.")
    return features, torch.from_numpy(labels.astype(np.int64))


def as_dataset(features: csr_matrix, labels: Int[Tensor, " n"], *, dense_bytes: int = DENSE_BYTES) -> Dataset[Any]:
    """A data set of dense float32 rows, whatever lies in memory.

    Args:
        features: n × d.
        labels: n of them.
        dense_bytes: the size up to which features are stored dense.

    Returns:
        A `TensorDataset`, or `SparseRows` where that would be larger.
    """
    rows, columns = features.shape
    if 4 * rows * columns <= dense_bytes:
        return TensorDataset(torch.from_numpy(features.toarray()), labels)
    return SparseRows(features, labels)


def stable_step_size(features: csr_matrix, classes: int, *, batch_size: int = 64) -> float:
    """A step size at which gradient descent on any batch cannot diverge: γ = 1/(batch_size·β), sum-normalised.

    β = c·max_i(‖x_i‖² + 1) bounds the curvature of one example's loss, the 1 being the intercept's; c = ¼ for the
    logistic loss and ½ for softmax. It is a safe beginning, not a tuned choice.

    Args:
        features: n × d.
        classes: K.
        batch_size: of the training that it is meant for.

    Returns:
        γ.
    """
    sq_norms = np.asarray(features.multiply(features).sum(1))
    return 1 / (batch_size * (0.25 if classes == 2 else 0.5) * (float(sq_norms.max()) + 1))


def _first_bad_line(path: Path, error: Exception) -> str:
    """Which line scikit-learn stumbled over; it does not say, so lines are parsed one at a time until one fails."""
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open}
    with openers.get(path.suffix, open)(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                load_svmlight_file(io.BytesIO(line))
            except (ValueError, OverflowError) as reason:
                return f"line {number} is malformed: {reason} (the line begins {line[:60]!r})."
    return f"malformed: {error}."
