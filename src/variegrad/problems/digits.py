"""The digits that come with scikit-learn: 1,797 grey images of 8 × 8 pixels, so that everything runs without a file."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from variegrad.problems.subset import permutation

TEST_SIZE = 360
SPLIT_SEED = 0


def read_digits() -> tuple[TensorDataset, TensorDataset]:
    """1,437 training and 360 test images as 64 features in [0, 1]; the split is always the same.

    Returns:
        The training set and the test set: float32 features, int64 labels.

    Source: Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI (its test part).
    """
    features, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(features / 16).float(), torch.from_numpy(labels).long()
    order = permutation(len(y), seed=SPLIT_SEED)
    test, train = order[:TEST_SIZE], order[TEST_SIZE:]
    return TensorDataset(x[train], y[train]), TensorDataset(x[test], y[test])
