"""MNIST and Fashion-MNIST from their published IDX files, which are verified."""

from __future__ import annotations

from pathlib import Path

from variegrad.data_root import find
from variegrad.problems.idx import read_images, sha256
from variegrad.problems.images import Split

CLASSES = 10

# Of the uncompressed files as LeCun, Cortes and Burges published them.
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def read_mnist(root: Path) -> tuple[Split, Split]:
    """MNIST: 60,000 training and 10,000 test images of 28 × 28 pixels, digits 0 to 9.

    Args:
        root: the data root; `mnist`, `MNIST`, `MNIST/raw` in it and the root itself are searched.

    Returns:
        Training and test split.

    Raises:
        DataNotFound: if the files are not there.
        ValueError: if a file is malformed, or is not the published one by its SHA-256.

    Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits".
    """
    paths = _find("mnist", root, ["mnist", "MNIST", "MNIST/raw", ""])
    splits = _read(paths)
    for path, (name, published) in zip(paths, MNIST_SHA256.items(), strict=True):
        if (found := sha256(path)) != published:
            raise ValueError(
                f"{path}: not the published {name}: its uncompressed SHA-256 is {found}, it should be {published}. "
                "Download the file again, or use your own data through a function (package.module:function)."
            )
    return splits


def read_fashion_mnist(root: Path) -> tuple[Split, Split]:
    """Fashion-MNIST: 60,000 training and 10,000 test images of 28 × 28 pixels, ten kinds of clothing.

    Args:
        root: the data root; `fashion-mnist`, `fashion_mnist`, `FashionMNIST`, `FashionMNIST/raw` in it and the root
            itself are searched.

    Returns:
        Training and test split.

    Raises:
        DataNotFound: if the files are not there.
        ValueError: if a file is malformed, or is one of MNIST's, whose names are the same.

    Source: Xiao, Rasul, Vollgraf 2017, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning".
    """
    paths = _find("fashion-mnist", root, ["fashion-mnist", "fashion_mnist", "FashionMNIST", "FashionMNIST/raw", ""])
    splits = _read(paths)
    for path in paths:
        if sha256(path) in MNIST_SHA256.values():
            raise ValueError(
                f"{path}: this file is from MNIST, not from Fashion-MNIST; the files have the same names. Put "
                "Fashion-MNIST into a folder fashion-mnist in the data root."
            )
    return splits


def _find(problem: str, root: Path, folders: list[str]) -> list[Path]:
    # Some copies have a dot before "idx": the name under which old archives unpacked.
    names = [[f"{name}.gz", name, name.replace("-idx", ".idx")] for name in MNIST_SHA256]
    return find(problem, root, folders, names)


def _read(paths: list[Path]) -> tuple[Split, Split]:
    train_images, train_labels, test_images, test_labels = paths
    train = read_images(train_images, train_labels, classes=CLASSES)
    test = read_images(test_images, test_labels, classes=CLASSES)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise ValueError(
            f"{test_images}: its images have the shape {tuple(test.images.shape[1:])}, "
            f"those of {train_images} {tuple(train.images.shape[1:])}; they must agree."
        )
    return train, test
