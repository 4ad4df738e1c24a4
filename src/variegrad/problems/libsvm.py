"""Classification data in LIBSVM's text format: `label index:value …` per line, plain or compressed.

Features are used as they are in the file. Indices may start at 0 or 1. Two label values become 0 and 1 in ascending
order (−1, +1 → 0, 1), more become 0 … K−1. Source: https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from variegrad.problems.sparse_rows import SparseRows
from variegrad.shapes import Int
from variegrad.theory.libsvm import LibsvmReader
from variegrad.theory.unpacked import DAMAGED, unpacked

DENSE_BYTES = 2**28
"""Features that take no more than this as dense float32 are kept dense, which is faster; others stay sparse."""


def read_libsvm(path: Path) -> tuple[csr_matrix, Int[Tensor, " n"]]:
    """The features and classes of a LIBSVM file.

    Args:
        path: of the file, which may be compressed (`variegrad.theory.unpacked`).

    Returns:
        An n × d float32 matrix and labels 0 … K−1.

    Raises:
        ValueError: if the file is empty, damaged or malformed (the line is named), a feature is not finite, labels are
            not whole numbers, one per example, or there are fewer than two classes.
    """
    try:
        with unpacked(path) as stream:
            reader = LibsvmReader(stream, path)
            parts = list(reader)
    except DAMAGED as error:
        raise ValueError(
            f"{path}: cannot be read to its end ({error}). It may be truncated: download it again."
        ) from error
    rows = reader.rows
    written, columns = (np.concatenate([getattr(p.features, name) for p in parts]) for name in ("data", "indices"))
    lengths = np.concatenate([np.diff(part.features.indptr) for part in parts])
    with np.errstate(over="ignore"):  # what does not fit into float32 becomes infinite and is refused below
        entries = (written.astype(np.float32), columns - reader.base, np.concatenate([[0], np.cumsum(lengths)]))
    features = csr_matrix(entries, shape=(rows, reader.columns))
    if not np.isfinite(features.data).all():
        entry = int(np.flatnonzero(~np.isfinite(features.data))[0])
        row = int(np.searchsorted(features.indptr, entry, side="right"))
        raise ValueError(
            f"{path}: features must be finite in float32; example {row} of {rows} has "
            f"{written[entry]:g} at index {int(columns[entry])} of the file."
        )
    labels = _one_label_each([label for part in parts for label in part.labels], path)
    whole = np.isfinite(labels) & (labels == np.round(labels))
    if not whole.all():
        odd = int(np.argmin(whole))
        raise ValueError(
            f"{path}: labels must be whole numbers, one per class; example {odd + 1} of {rows} has {labels[odd]}. "
            "For a regression problem, write your own function (mine.py:problem)."
        )
    found, classes = np.unique(labels, return_inverse=True)
    if len(found) < 2:
        raise ValueError(f"{path}: logistic regression needs at least two classes; all labels are {found[0]:g}.")
    return features, torch.from_numpy(classes.astype(np.int64))


def _one_label_each(labels: list[Any], path: Path) -> np.ndarray:
    for number, label in enumerate(labels, start=1):
        if isinstance(label, tuple) and len(label) != 1:
            raise ValueError(
                f"{path}: a classifier needs one label per example; example {number} has {len(label)}. "
                "`variegrad bound` accepts such files, because its bounds need no labels."
            )
    return np.array([label[0] if isinstance(label, tuple) else label for label in labels], dtype=np.float64)


def as_dataset(features: csr_matrix, labels: Int[Tensor, " n"], *, dense_bytes: int = DENSE_BYTES) -> Dataset[Any]:
    """A data set of dense float32 rows, whatever lies in memory.

    Args:
        features: n × d.
        labels: n of them.
        dense_bytes: the size up to which features are stored dense.

    Returns:
        A `TensorDataset`, or `SparseRows` if that would be larger.
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
