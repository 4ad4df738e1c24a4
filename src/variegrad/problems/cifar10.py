"""CIFAR-10 from its *binary* version: records of one label byte and 3072 pixel bytes, red, green, blue, row by row.

The official files hold 10,000 records each and have no published digest; sizes and labels are checked. The Python
version is not read: it is a pickle, which can run code. Source: https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from variegrad.data_root import find
from variegrad.problems.idx import check_labels
from variegrad.problems.images import Split

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)
RECORDS = 10_000
FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")


def read_cifar10(root: Path) -> tuple[Split, Split]:
    """CIFAR-10: 50,000 training and 10,000 test colour images of 32 × 32 pixels in ten classes.

    Args:
        root: the data root; `cifar-10-batches-bin` and `cifar10` in it, the one in the other, and the root itself are
            searched.

    Returns:
        Training and test split.

    Raises:
        DataNotFound: if the six files are not there.
        ValueError: if a file has another size or a label is out of range.

    Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
    """
    folders = ["cifar-10-batches-bin", "cifar10/cifar-10-batches-bin", "cifar10", ""]
    batches = [read_records(path) for path in find("cifar10", root, folders, [[name] for name in FILES])]
    images, labels = zip(*batches[:-1], strict=True)
    return Split(torch.cat(images), torch.cat(labels)), batches[-1]


def read_records(path: Path, records: int = RECORDS) -> Split:
    """The images and labels of one file.

    Args:
        path: of the file.
        records: how many it must hold.

    Returns:
        Images of shape (records, 3, 32, 32) and labels of shape (records,).

    Raises:
        ValueError: if it has another size or a label is out of range.
    """
    pixels = SHAPE[0] * SHAPE[1] * SHAPE[2]
    size = path.stat().st_size
    if size != records * (1 + pixels):
        raise ValueError(
            f"{path}: must have {records:,} records of {1 + pixels} bytes, {records * (1 + pixels):,} bytes in total; "
            f"it has {size:,}. Get the binary version of CIFAR-10 again (not the Python or Matlab version)."
        )
    rows = torch.from_numpy(np.fromfile(path, np.uint8)).reshape(records, 1 + pixels)
    labels = rows[:, 0].clone()
    check_labels(path, labels, classes=len(CLASSES))
    return Split(rows[:, 1:].reshape(records, *SHAPE), labels)


def pair(split: Split, first: str, second: str) -> Split:
    """The images of two classes, labelled 0 and 1, in their order.

    Args:
        split: of CIFAR-10.
        first: class that becomes 0.
        second: class that becomes 1.

    Returns:
        Those images with their new labels.

    Raises:
        ValueError: if the split has no image of one of them.
    """
    images, labels = split
    kept = (labels == CLASSES.index(first)) | (labels == CLASSES.index(second))
    chosen = (labels[kept] == CLASSES.index(second)).byte()
    ones = int(chosen.sum())
    if not 0 < ones < len(chosen):
        raise ValueError(
            f"the CIFAR-10 files must contain images of both {first} and {second}; found {len(chosen) - ones} and "
            f"{ones}. "
            "Get the binary version of CIFAR-10 again."
        )
    return Split(images[kept], chosen)
