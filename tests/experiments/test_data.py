"""What an experiment says of its data: how many of how many examples, and copies that are known not to be exact."""

from dataclasses import replace

import torch
from torch.utils.data import TensorDataset

from variegrad.experiments import data
from variegrad.problems import load


def test_the_sentence_counts_what_is_used():
    said = data.describe("digits", 100)
    assert said.startswith("digits: 100 of 1,437 training examples and 360 test examples of 64 features; digest ")
    assert "1,437 training examples and 360 test examples" in data.describe("digits")


def test_a_recompressed_copy_is_called_so_whatever_part_of_it_is_used(monkeypatch):
    images = torch.rand(200, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    digits = load("digits")

    def problem(name, max_examples=None):
        assert name == "cifar10"
        part = TensorDataset(images[:max_examples], torch.arange(200)[:max_examples] % 10)
        return replace(digits, train=part, test=part)

    monkeypatch.setattr(data, "problem", problem)
    data.digest.cache_clear()
    assert "images as found under the data root; 150 of 200 training examples" in data.describe("cifar10", 150)
    monkeypatch.setattr(data, "JPEG_RECOMPRESSED", frozenset({data.digest("cifar10", first=data.FIRST)}))
    for count in (None, 50, 150):
        assert "CIFAR-10, JPEG-recompressed images; " in data.describe("cifar10", count)
    data.digest.cache_clear()
