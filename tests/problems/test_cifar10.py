"""CIFAR-10's binary version is read exactly, or refused by name with what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from problems.files import write_cifar10
from variegrad.problems import DataNotFound, load
from variegrad.problems.cifar10 import FILES, pair, read_cifar10, read_records
from variegrad.problems.images import Split


def test_a_record_is_a_label_and_red_green_blue_rows(tmp_path: Path) -> None:
    rows = np.zeros((2, 3073), np.uint8)
    rows[1, 0], rows[1, 1 + 1024 + 32] = 7, 200  # the second image's first green pixel of the second row
    rows.tofile(tmp_path / "batch.bin")
    images, labels = read_records(tmp_path / "batch.bin", records=2)
    assert labels.tolist() == [0, 7]
    assert images[1, 1, 1, 0] == 200
    assert images.sum() == 200


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "must have 2 records of 3073 bytes, 6,146 bytes in total; it has 0"),
        (bytes(6145), "it has 6,145"),
        (bytes(6147), "it has 6,147"),
        (bytes(3073) + b"\x0a" + bytes(3072), "labels must lie in 0 … 9; example 1 has label 10"),
    ],
)
def test_malformed_file_is_named_with_what_is_wrong(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=complaint) as refusal:
        read_records(path, records=2)
    assert str(refusal.value).startswith(f"{path}: ")


def test_official_files_hold_ten_thousand_records(tmp_path: Path) -> None:
    write_cifar10(tmp_path, records=10)
    with pytest.raises(ValueError, match=r"data_batch_1\.bin: must have 10,000 records .* 30,730,000 bytes in total"):
        read_cifar10(tmp_path)


def test_all_six_files_must_be_there(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-bin", records=1)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_4.bin").unlink()
    with pytest.raises(DataNotFound, match=r"cifar-10-batches-bin lacks data_batch_4\.bin"):
        read_cifar10(tmp_path)


def test_pair_keeps_two_classes_in_order() -> None:
    images = torch.arange(6).byte().reshape(6, 1, 1, 1).expand(6, 3, 32, 32)
    kept, labels = pair(Split(images, torch.tensor([3, 1, 0, 9, 0, 1]).byte()), "airplane", "automobile")
    assert kept[:, 0, 0, 0].tolist() == [1, 2, 4, 5]
    assert labels.tolist() == [1, 0, 0, 1]
    with pytest.raises(ValueError, match="must contain images of both airplane and truck; found 2 and 0"):
        pair(Split(images, torch.tensor([3, 1, 0, 2, 0, 1]).byte()), "airplane", "truck")


def test_problems_from_full_size_files(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar10" / "cifar-10-batches-bin", records=10_000)
    problem = load("cifar10", data_root=tmp_path, max_examples=64)
    assert isinstance(problem.train, TensorDataset)
    images, labels = problem.train.tensors
    assert images.shape == (64, 3, 32, 32)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert problem.losses(problem.model, (images[:3], labels[:3])).shape == (3,)

    twins = load("cifar10-pair", data_root=tmp_path)
    assert isinstance(twins.train, TensorDataset)
    images, labels = twins.train.tensors
    assert torch.bincount(labels).tolist() == [5000, 5000]
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    assert twins.losses(twins.model, (images[:3], labels[:3])).shape == (3,)


def test_blank_images_are_refused(tmp_path: Path) -> None:
    for name in FILES:  # what an interrupted copy may leave: the right size, nothing in it
        with (tmp_path / name).open("wb") as file:
            file.truncate(30_730_000)
    with pytest.raises(ValueError, match="the training images are blank: channel 0 has one value everywhere"):
        load("cifar10", data_root=tmp_path)


def test_real_files(real_data: Path) -> None:
    try:
        (images, labels), (_, test_labels) = read_cifar10(real_data)
    except DataNotFound:
        pytest.skip("needs the binary version of CIFAR-10 below VARIEGRAD_DATA")
    assert torch.bincount(labels.int()).tolist() == [5000] * 10
    assert torch.bincount(test_labels.int()).tolist() == [1000] * 10
    means = images.numpy().mean((0, 2, 3)) / 255
    assert np.allclose(means, [0.4914, 0.4822, 0.4465], atol=2e-3)
