"""A problem: a model, a loss for each example, and data. Everything the commands run on is one of these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from variegrad.shapes import Float

Losses = Callable[[nn.Module, Any], Float[Tensor, " b"]]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A model to train, a loss for each example, and the data.

    Attributes:
        name: what to call it in tables and reports.
        model: the model at its initial weights.
        losses: `losses(model, batch) → (b,)`, one unreduced loss per example.
        train: the training set; `train[i]` is one example, any nesting of tensors.
        test: a test set, if there is one.
        accuracy: `accuracy(model, batch) → (b,)`, 1 if an example is answered right, if that means something.
        step_size: γ of the update w − γ·Σ∇f_i with a summed gradient; it should train the model well at batch size 64.
        description: one line: data, model, sizes.
    """

    name: str
    model: nn.Module
    losses: Losses
    train: Dataset[Any]
    test: Dataset[Any] | None = None
    accuracy: Losses | None = None
    step_size: float = 1e-3
    description: str = ""
