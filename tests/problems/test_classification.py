"""Losses and accuracies are one number per example, and the numbers that their formulas say."""

from __future__ import annotations

import math

import torch
from torch import nn

from variegrad.problems.classification import logistic_accuracy, logistic_losses, softmax_accuracy, softmax_losses

IDENTITY = nn.Identity()


def test_softmax_loss_and_accuracy_of_each_example() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 5.0], [4.0, 1.0, 1.0]]).double()
    labels = torch.tensor([2, 0, 0])
    losses = softmax_losses(IDENTITY, (logits, labels))
    expected = [
        math.log(sum(math.exp(z) for z in row)) - row[y] for row, y in zip(logits.tolist(), [2, 0, 0], strict=True)
    ]
    torch.testing.assert_close(losses, torch.tensor(expected).double())
    assert softmax_accuracy(IDENTITY, (logits, labels)).tolist() == [1, 0, 1]


def test_logistic_loss_and_accuracy_of_each_example() -> None:
    logits = torch.tensor([[2.0], [2.0], [-3.0], [0.0]]).double()
    labels = torch.tensor([1, 0, 0, 1])
    losses = logistic_losses(IDENTITY, (logits, labels))
    expected = [math.log1p(math.exp(-s)) for s in (2.0, -2.0, 3.0, 0.0)]
    torch.testing.assert_close(losses, torch.tensor(expected).double())
    assert logistic_accuracy(IDENTITY, (logits, labels)).tolist() == [1, 0, 1, 0]


def test_one_logit_is_a_two_class_softmax_over_its_difference() -> None:
    logits = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    difference = logits[:, 1:] - logits[:, :1]
    torch.testing.assert_close(
        softmax_losses(IDENTITY, (logits, labels)), logistic_losses(IDENTITY, (difference, labels))
    )
