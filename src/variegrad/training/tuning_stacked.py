"""Several step sizes and seeds at once: the weights of small models stacked, and differentiated together by torch.func.

All runs begin at the same weights; those of one seed see the same batches. The updates are those of `train` without a
mechanism, one by one, up to the order in which a product sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import Dataset, default_collate

from variegrad.batches import Batch, passes_over, to_device
from variegrad.measurement import BATCH_SIZE
from variegrad.per_example.evaluate import Losses, left_as_found, trained_parameters
from variegrad.problems.subset import size
from variegrad.shapes import Float
from variegrad.training.config import TrainConfig
from variegrad.training.reading import reader

SMALL = 100_000  # trained numbers of a model, beyond which the arms gain nothing from being stacked


class _Losses(nn.Module):
    """`losses(model, batch)` as a module, so that its weights can be given from outside."""

    def __init__(self, model: nn.Module, losses: Losses) -> None:
        super().__init__()
        self.model, self.losses = model, losses

    def forward(self, batch: Batch) -> Float[Tensor, " b"]:
        return self.losses(self.model, batch)


def can_be_stacked(model: nn.Module, config: TrainConfig) -> bool:
    """Whether a run is one of those that `stacked_losses` makes.

    Args:
        model: the model.
        config: the settings.

    Returns:
        True for small models without a mechanism, a projection or draws of their own.
    """
    plain = config.mechanism is None and config.projection is None
    return plain and sum(p.numel() for p in trained_parameters(model).values()) <= SMALL


def stacked_losses(
    model: nn.Module,
    losses: Losses,
    dataset: Dataset[Any],
    config: TrainConfig,
    step_sizes: Sequence[float],
    seeds: Sequence[int],
) -> list[list[float]]:
    """The mean training loss after `config.passes`, for each seed and step size; the model is not changed.

    Args:
        model: at its starting weights.
        losses: `losses(model, batch) → (b,)`.
        dataset: the training set.
        config: of the runs; its own step size and seed are not used.
        step_sizes: γ of each arm.
        seeds: of the order of the data.

    Returns:
        For each seed, one loss for each step size; NaN or inf if the run diverged.

    Raises:
        RuntimeError: if torch.func cannot stack this model (dropout, batch statistics, control flow on values).
    """
    wrapped, count = _Losses(model, losses), size(dataset)
    weights = trained_parameters(model)
    device = next(iter(weights.values())).device
    shape = (len(seeds), len(step_sizes))
    stacked = {f"model.{name}": p.detach().expand(*shape, *p.shape).clone() for name, p in weights.items()}

    def total(one: dict[str, Tensor], batch: Batch) -> Tensor:
        per_example: Tensor = functional_call(wrapped, one, (batch,))
        return per_example.sum()

    gradients = vmap(vmap(grad(total), in_dims=(0, None)))  # over seeds, each with its batch, and step sizes
    values = vmap(vmap(total, in_dims=(0, None)), in_dims=(0, None))
    rates = {n: torch.tensor(step_sizes, dtype=w.dtype, device=device).view(-1, *[1] * (w.dim() - 2))
             for n, w in stacked.items()}  # fmt: skip
    read = {seed: reader(dataset, seed) for seed in seeds}
    position, end = 0, config.passes * count * (1 - 1e-12)
    with left_as_found(model):
        while position < end:
            drawn = {seed: config.sampling.batch(seed, position, config.batch_size, count) for seed in seeds}
            batches = default_collate([read[seed](indices, position) for seed, indices in drawn.items()])
            found = gradients(stacked, to_device(batches, device))
            stacked = {name: w - rates[name] * found[name] for name, w in stacked.items()}
            position += len(drawn[seeds[0]])
        model.eval()
        sums = torch.zeros(shape, dtype=torch.float64, device=device)
        with torch.no_grad():
            for batch in passes_over(dataset, BATCH_SIZE):
                sums += values(stacked, to_device(batch, device)).double()
    means: list[list[float]] = (sums / count).tolist()
    return means
