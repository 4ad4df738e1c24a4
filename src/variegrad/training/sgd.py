"""Mini-batch SGD with a sum-normalised step: w ← w − γ·Σ_{i in batch} ∇f_i(w) (equation 2, one worker, no projection).

The order of the data and the model's own draws (dropout masks) are pure functions of the seed and the number of the
update, so that a run can be continued anywhere; the global random state is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset, default_collate

from variegrad.batches import Batch, to_device
from variegrad.keys import epoch_order, torch_draws
from variegrad.per_example.evaluate import Losses, evaluate, trained_parameters, unwrap


@dataclass(frozen=True, kw_only=True)
class Update:
    """One update that has been made.

    Attributes:
        updates: how many so far.
        examples: examples used so far.
        mean_loss: the batch's mean loss before the update.
    """

    updates: int
    examples: int
    mean_loss: float


def descend(
    model: nn.Module,
    losses: Losses,
    dataset: Dataset[Any],
    *,
    batch_size: int,
    step_size: float,
    seed: int = 0,
    first_update: int = 0,
) -> Iterator[Update]:
    """Run plain mini-batch SGD, epochs of shuffled data without end; the caller's loop decides when to stop.

    Args:
        model: the model, trained in place.
        losses: `losses(model, batch) → (b,)`.
        dataset: the training set.
        batch_size: B, examples an update; the last batch of an epoch may be short.
        step_size: γ of the summed gradient (for a mean-normalised learning rate η, γ = η/B).
        seed: of the order of the data and of the model's own draws.
        first_update: where to start, so that a run can be continued.

    Yields:
        A record after each update.

    Raises:
        ValueError: if a setting is out of range, the data is empty, or the loss stops being finite.
    """
    count = len(dataset)  # type: ignore[arg-type]
    if count == 0:
        raise ValueError("the training set holds no examples.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 example; got {batch_size}.")
    if not step_size > 0:
        raise ValueError(f"step_size must be positive; got {step_size}.")
    model = unwrap(model)
    parameters = list(trained_parameters(model).values())
    device = parameters[0].device
    fetch = examples_of(dataset)
    in_epoch = -(-count // batch_size)
    update = first_update
    while True:
        epoch, place = divmod(update, in_epoch)
        order = epoch_order(seed, epoch, count)
        for start in range(place * batch_size, count, batch_size):
            batch = to_device(fetch(order[start : start + batch_size]), device)
            with torch_draws(seed, "update", update):
                per_example = evaluate(model, losses, batch)
                gradients = torch.autograd.grad(per_example.sum(), parameters, allow_unused=True)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        parameter.sub_(gradient, alpha=step_size)
            update += 1
            examples = epoch * count + min(start + batch_size, count)
            yield Update(updates=update, examples=examples, mean_loss=float(per_example.detach().mean()))


def examples_of(dataset: Dataset[Any]) -> Callable[[Tensor], Batch]:
    """How to read a batch of examples by their indices: by slicing where the data set is tensors.

    Args:
        dataset: any map-style data set.

    Returns:
        Indices → batch.
    """
    if type(dataset) is TensorDataset:  # not its subclasses, which may transform what they return
        return lambda indices: tuple(column[indices] for column in dataset.tensors)
    return lambda indices: default_collate([dataset[i] for i in indices.tolist()])
