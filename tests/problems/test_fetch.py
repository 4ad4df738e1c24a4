"""`fetch` with OpenML's answer replaced by arrays: what is written can be read, and wrong data are refused.

The download itself is scikit-learn's and is not exercised here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix, random
from sklearn.utils import Bunch

from variegrad.problems import fetch, load
from variegrad.problems.cifar10 import read_cifar10
from variegrad.problems.mnist import read_fashion_mnist, read_mnist


def answers(monkeypatch: pytest.MonkeyPatch, title: str, data: Any, target: np.ndarray) -> list[int]:
    """OpenML answers with these arrays, labels as text; the numbers asked for are collected."""
    asked: list[int] = []

    def openml(*, data_id: int, as_frame: bool, parser: str, cache: bool) -> Bunch:
        assert (as_frame, parser, cache) == (False, "liac-arff", False)  # no pandas
        asked.append(data_id)
        return Bunch(data=data, target=target.astype(str).astype(object), details={"name": title})

    monkeypatch.setattr("sklearn.datasets.fetch_openml", openml)
    return asked


def a9a() -> tuple[csr_matrix, np.ndarray]:
    target = np.r_[-np.ones(24_720), np.ones(7_841), -np.ones(16_281)]
    data = csr_matrix(random(48_842, 123, density=0.02, random_state=0))
    data.data[:] = 1
    return data, target


def balanced(train: int, test: int) -> np.ndarray:
    return np.r_[np.arange(train) % 10, np.arange(test) % 10]


def test_a9a(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data, target = a9a()
    assert answers(monkeypatch, "a9a", data, target) == []
    written = fetch("a9a", tmp_path)
    assert written == [tmp_path / "a9a.svm.gz"]
    features, labels = load("a9a", data_root=tmp_path).train[torch.arange(32_561)]
    assert torch.equal(features, torch.from_numpy(data[:32_561].toarray()).float())
    assert torch.bincount(labels).tolist() == [24_720, 7_841]


def test_cifar10(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pixels = np.repeat(np.array([125, 123, 114], np.uint8), 1024)[None].repeat(60_000, 0)
    pixels[:, 0] = np.random.default_rng(0).integers(0, 256, 60_000)
    target = balanced(50_000, 10_000)
    asked = answers(monkeypatch, "CIFAR_10", pixels, target)
    fetch("cifar10", tmp_path)
    assert asked == [40927]
    (images, labels), (test_images, test_labels) = read_cifar10(tmp_path)
    assert np.array_equal(np.r_[images.numpy(), test_images.numpy()].reshape(60_000, 3072), pixels)
    assert np.array_equal(np.r_[labels.numpy(), test_labels.numpy()], target)

    answers(monkeypatch, "CIFAR_10", pixels, np.sort(target))
    with pytest.raises(ValueError, match=r"not the published cifar10: it has .* examples per class; the published"):
        fetch("cifar10", tmp_path)
    answers(monkeypatch, "CIFAR_10", np.ascontiguousarray(pixels[:, ::-1]), target)
    with pytest.raises(ValueError, match="its channels have the means"):
        fetch("cifar10", tmp_path)


def test_fashion_mnist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pixels, target = np.random.default_rng(0).integers(0, 256, (70_000, 784)).astype(np.uint8), balanced(60_000, 10_000)
    pixels[:, 20:] = 0  # packs faster
    asked = answers(monkeypatch, "Fashion-MNIST", pixels, target)
    fetch("fashion-mnist", tmp_path)
    assert asked == [40996]
    (images, labels), (test_images, _) = read_fashion_mnist(tmp_path)
    assert np.array_equal(np.r_[images.numpy(), test_images.numpy()].reshape(70_000, 784), pixels)
    assert np.array_equal(labels.numpy(), target[:60_000])


def test_mnist_is_written_as_published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, real_data: Path) -> None:
    (images, labels), (test_images, test_labels) = read_mnist(real_data)
    pixels = torch.cat([images, test_images]).reshape(70_000, 784).numpy()
    asked = answers(monkeypatch, "mnist_784", pixels, torch.cat([labels, test_labels]).numpy())
    assert len(fetch("mnist", tmp_path)) == 4
    assert asked == [554]
    assert torch.equal(read_mnist(tmp_path)[1][0], test_images)  # its SHA-256 are checked on reading


def test_other_data_is_refused_and_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pixels, target = np.zeros((70_000, 784), np.uint8), balanced(60_000, 10_000)
    answers(monkeypatch, "mnist_784", pixels, target)
    with pytest.raises(ValueError, match="data set 554 is not the published mnist: the SHA-256 of train-images"):
        fetch("mnist", tmp_path)
    answers(monkeypatch, "Fashion-MNIST", pixels.astype(float) + 0.5, target)
    with pytest.raises(
        ValueError, match=r"must have 784 columns of whole numbers in 0 … 255; its shape is \(70000, 784\)"
    ):
        fetch("fashion-mnist", tmp_path)
    answers(monkeypatch, "Fashion-MNIST", pixels, target + 0.5)
    with pytest.raises(ValueError, match="some values are not whole numbers"):
        fetch("fashion-mnist", tmp_path)
    data, labels = a9a()
    answers(monkeypatch, "a9a", data, -labels)
    with pytest.raises(ValueError, match="is not the published a9a: it has"):
        fetch("a9a", tmp_path)
    answers(monkeypatch, "iris", data, labels)
    with pytest.raises(ValueError, match="data set 1430 should be 'a9a'; its name is 'iris'"):
        fetch("a9a", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers(monkeypatch, "a9a", *a9a())

    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        fetch("a9a", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unknown_name_and_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name must be one of mnist, fashion-mnist, cifar10, a9a; got 'imagenet'"):
        fetch("imagenet", tmp_path)

    def offline(**_: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", offline)
    with pytest.raises(OSError, match="no route to host"):
        fetch("a9a", tmp_path)
