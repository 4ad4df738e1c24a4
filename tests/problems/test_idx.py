"""IDX files are read exactly, or refused by name with what is wrong."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from problems.files import idx, write_grey_images
from variegrad.problems import DataNotFound
from variegrad.problems.idx import read_idx, read_images
from variegrad.problems.mnist import MNIST_SHA256, read_fashion_mnist, read_mnist

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 3))
GOOD = idx(PIXELS)


@pytest.mark.parametrize("content", [GOOD, gzip.compress(GOOD)], ids=["plain", "gzip"])
def test_round_trip(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "images"  # the content decides, not the name
    path.write_bytes(content)
    assert torch.equal(read_idx(path, dimensions=3), torch.from_numpy(PIXELS).byte())


MALFORMED = [
    ("empty", b"", "magic number 0x00000803; found 0x in 0 bytes"),
    ("labels for images", idx(PIXELS[:, 0, 0]), "found 0x00000801"),
    ("floats", idx(PIXELS, magic=bytes([0, 0, 13, 3])), "found 0x00000d03"),
    ("text", b"not an IDX file", "found 0x6e6f7420"),
    ("short header", GOOD[:9], "ends inside its header, after 9 bytes"),
    ("a byte short", GOOD[:-1], "its header states 5 × 4 × 3 = 60 bytes; found 59"),
    ("a byte long", GOOD + b"\0", "= 60 bytes; found 61"),
    ("huge", GOOD[:4] + b"\xff" * 12, r"4294967295 × 4294967295 × 4294967295 = \d+ bytes; found 0"),
    ("truncated gzip", gzip.compress(GOOD)[:-12], "damaged or truncated gzip"),
    ("gzip without its check sum", gzip.compress(GOOD)[:-8], "damaged or truncated gzip"),
    ("gzip with a wrong check sum", gzip.compress(GOOD)[:-8] + b"\0" * 8, "damaged or truncated gzip"),
    ("gzip with damaged data", gzip.compress(GOOD)[:12] + b"\xff" * 20, "damaged or truncated gzip"),
]


@pytest.mark.parametrize(
    ("content", "complaint"), [case[1:] for case in MALFORMED], ids=[case[0] for case in MALFORMED]
)
def test_malformed_file_is_named_with_what_is_wrong(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "odd-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=complaint) as refusal:
        read_idx(path, dimensions=3)
    assert str(refusal.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("images", "labels", "complaint"),
    [
        (PIXELS, np.arange(4), "holds 5 images but .*labels holds 4 labels"),
        (PIXELS, np.array([0, 1, 10, 3, 4]), "labels must lie in 0 … 9; example 2 has label 10"),
        (PIXELS[:0], np.arange(0), r"has no images \(its header says 0 × 4 × 3\)"),
    ],
)
def test_images_and_labels_must_belong_together(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray, complaint: str
) -> None:
    paths = tmp_path / "images", tmp_path / "labels"
    for path, array in zip(paths, (images, labels), strict=True):
        path.write_bytes(idx(array))
    with pytest.raises(ValueError, match=complaint):
        read_images(*paths, classes=10)


@pytest.mark.parametrize("folder", ["fashion-mnist", "fashion_mnist", "FashionMNIST/raw", ""])
def test_fashion_mnist_is_found_in_its_usual_folders(tmp_path: Path, folder: str) -> None:
    write_grey_images(tmp_path / folder)
    (images, labels), (test_images, _) = read_fashion_mnist(tmp_path)
    assert images.shape == (30, 1, 28, 28)
    assert labels.shape == (30,)
    assert len(test_images) == 12


def test_images_of_both_splits_have_one_shape(tmp_path: Path) -> None:
    write_grey_images(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(idx(np.zeros((12, 27, 28))))
    with pytest.raises(ValueError, match=r"its images have the shape \(1, 27, 28\).*they must agree"):
        read_fashion_mnist(tmp_path)


def test_other_data_under_the_names_of_mnist_is_refused_as_mnist(tmp_path: Path) -> None:
    write_grey_images(tmp_path / "mnist")
    published = MNIST_SHA256["train-images-idx3-ubyte"]
    with pytest.raises(ValueError, match=f"not the published train-images-idx3-ubyte: .* should be {published}"):
        read_mnist(tmp_path)


def test_a_missing_file_among_the_four_is_named(tmp_path: Path) -> None:
    write_grey_images(tmp_path / "mnist")
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataNotFound, match=r"mnist lacks t10k-labels-idx1-ubyte\.gz"):
        read_mnist(tmp_path)


def test_mnist_is_the_published_one(real_data: Path) -> None:
    (images, labels), (test_images, test_labels) = read_mnist(real_data)
    assert images.shape == (60_000, 1, 28, 28)
    assert test_images.shape == (10_000, 1, 28, 28)
    assert labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert torch.bincount(test_labels.int()).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_mnist_is_not_taken_for_fashion_mnist(real_data: Path) -> None:
    with pytest.raises(ValueError, match="this file is from MNIST, not from Fashion-MNIST"):
        read_fashion_mnist(real_data / "mnist")
