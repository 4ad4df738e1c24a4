"""Per-example losses and accuracies of classifiers.

Every function takes `(model, (features, labels))` and returns one number per example, shape (b,): nothing is reduced.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from variegrad.shapes import Float, Int

Batch = tuple[Float[Tensor, "b ..."], Int[Tensor, " b"]] | list[Tensor]


def softmax_losses(model: nn.Module, batch: Batch) -> Float[Tensor, " b"]:
    """−log softmax(model(x))_y of each example.

    Args:
        model: from features to (b, K) logits.
        batch: features and labels 0 … K−1.

    Returns:
        One loss per example.
    """
    features, labels = batch
    return cross_entropy(model(features), labels, reduction="none")


def softmax_accuracy(model: nn.Module, batch: Batch) -> Float[Tensor, " b"]:
    """1 if the largest logit is the label's, else 0.

    Args:
        model: from features to (b, K) logits.
        batch: features and labels 0 … K−1.

    Returns:
        1 or 0 per example.
    """
    features, labels = batch
    logits: Tensor = model(features)
    return (logits.argmax(1) == labels).float()


def logistic_losses(model: nn.Module, batch: Batch) -> Float[Tensor, " b"]:
    """log(1 + exp(−s)) of each example, s being its logit, with the sign turned if the label is 0.

    Args:
        model: from features to (b, 1) logits.
        batch: features and labels 0 or 1.

    Returns:
        One loss per example.
    """
    features, labels = batch
    logits = model(features).squeeze(1)
    return binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")


def logistic_accuracy(model: nn.Module, batch: Batch) -> Float[Tensor, " b"]:
    """1 if the logit is positive for label 1 or not positive for label 0, else 0.

    Args:
        model: from features to (b, 1) logits.
        batch: features and labels 0 or 1.

    Returns:
        1 or 0 per example.
    """
    features, labels = batch
    logits: Tensor = model(features).squeeze(1)
    return ((logits > 0) == (labels == 1)).float()
