"""Mini-batch SGD, equation (2): w ← Π_W(w − γ·Σ_{ℓ=1..B} m(∇f_{s_ℓ}(w))), on one worker or shared among P.

The sum convention of the paper: γ multiplies the summed gradient, so that a learning rate η of the mean is γ = η/B.
Each worker differentiates its share of the batch; the sums are added up over workers; all make the same update. Without
a mechanism the gradients are ordinary autograd's, and are sent while the backward pass is still running.

Which examples, the mechanism's draws and the data set's own are functions of the seed and the number of the sample,
never of the update or of B: B may change at any update. With any number of workers the weights are the same up to the
order of summation. Only what a model draws in its forward pass (dropout masks) depends on the number of workers, since
one draw serves a whole share; it is the same in law.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from variegrad.distributed.world import World
from variegrad.per_example.evaluate import Losses
from variegrad.training.cadence import Cadence
from variegrad.training.config import Phases, TrainConfig
from variegrad.training.evaluation import Evaluation
from variegrad.training.reading import Collate
from variegrad.training.shared_update import Weights
from variegrad.training.update import Position, Update
from variegrad.training.updates import Updates


def train(
    model: nn.Module,
    losses: Losses,
    dataset: Dataset[Any],
    config: TrainConfig | Phases,
    world: World | None = None,
    *,
    evaluation: Evaluation | None = None,
    bound_every: Cadence | None = None,
    start: int | Position = 0,
    readers: int = 0,
    collate_fn: Collate | None = None,
    skipped: int | None = None,
) -> Iterator[Update]:
    """Train by mini-batch SGD, equation (2): w ← Π_W(w − γ·Σ_{ℓ=1..B} m(∇f_{s_ℓ}(w))), one record per update.

    The caller's loop logs and decides; it may end the run at any record, on all workers alike. The model is trained in
    place, in the mode it is in; its `.grad` fields are left empty. Settings, model, starting weights and data that
    differ between workers are refused before the first update.

    Args:
        model: at its starting weights, on `world.device`; not wrapped in DistributedDataParallel.
        losses: `losses(model, batch) → (b,)`, one loss per example, not averaged.
        dataset: a map-style training set of n examples, the same on every worker; with `Stream()`, data without end.
        config: B, γ, passes, m, sampling, projection, seed; or `Phases`, in which they change along the run.
        world: the workers, from `vg.workers()`; None for the process group that exists, or this process alone.
        evaluation: an accuracy to follow, and a target to stop at.
        bound_every: how often B_D is estimated, from at most 256 examples of the batch.
        start: where the run stands, to resume from weights that were kept: the `position` of its last update, or the
            number of samples seen alone (then updates are counted from 0). The run is the same as if it had not
            stopped, also with another B from here on.
        readers: processes of each worker that read examples ahead; 0 to read when they are needed. What is read does
            not depend on it, also of data that augments itself.
        collate_fn: makes a batch of a list of examples; torch's `default_collate` by default.
        skipped: deprecated: updates left out before; a `Position` holds it.

    Yields:
        An `Update` after each update.

    Raises:
        TypeError: if the model is wrapped, or the data set has no length and the sampling is not `Stream`.
        ValueError: if workers differ, B < P, B > n without replacement, the data is empty, batch statistics would
            differ between workers, or a loss or gradient is not finite.
        RuntimeError: if a worker fails or does not answer: on all workers, at the same update.

    Source: equation (2) and Section 3 of the paper.
    """
    if skipped is not None:
        warnings.warn("train(skipped=) is now train(start=Position(left_out=)).", DeprecationWarning, stacklevel=2)
        start = start if isinstance(start, Position) else Position(examples=start, left_out=skipped)
    updates = Updates(
        model=model, losses=losses, dataset=dataset, config=config, apply=_descend, world=world, start=start,
        readers=readers, collate_fn=collate_fn, evaluation=evaluation, bound_every=bound_every,
    )  # fmt: skip
    _warn_of_few_bits(updates.model)
    return updates.make()


def shared_gradient(
    model: nn.Module,
    losses: Losses,
    dataset: Dataset[Any],
    config: TrainConfig | Phases,
    world: World | None = None,
    *,
    start: int | Position = 0,
    readers: int = 0,
    collate_fn: Collate | None = None,
) -> Iterator[Update]:
    """The gradient of each update of equation (2), in `.grad` on every worker, for an optimizer of your own.

    After each record `.grad` of every trained parameter holds Σ_{ℓ=1..B} m(∇f_{s_ℓ}(w)) over the whole batch, the same
    on all workers: a sum; divide by `update.batch_size` for the gradient of the mean. Take the optimizer's step in the
    body of the loop; clip, schedule and scale as you like. After an update that was left out every `.grad` is None,
    which optimizers pass over. `train` is this loop with w ← Π_W(w − γ·Σ); here γ and W of `config` are not used.

        for update in vg.shared_gradient(model, losses, data, config, world):
            optimizer.step()

    Args:
        model: as for `train`.
        losses: as for `train`.
        dataset: as for `train`.
        config: as for `train`; `step_size` and `projection` are not used.
        world: as for `train`.
        start: as for `train`; the optimizer's own state is yours to keep.
        readers: as for `train`.
        collate_fn: as for `train`.

    Yields:
        An `Update` for each gradient; its loss is that of the weights at which the gradient was taken.

    Raises:
        TypeError: as for `train`.
        ValueError: as for `train`.
        RuntimeError: as for `train`.

    Source: equation (2); with momentum or Adam the statements about B_D are no longer about that step.
    """
    return Updates(
        model=model, losses=losses, dataset=dataset, config=config, apply=_leave, world=world, start=start,
        readers=readers, collate_fn=collate_fn,
    ).make()  # fmt: skip


def _descend(config: TrainConfig, weights: Weights, sums: Sequence[Tensor | None]) -> None:
    """W ← Π_W(w − γ·Σ)."""
    moved = [(w, g.to(w.dtype)) for w, g in zip(weights.values(), sums, strict=True) if g is not None]
    with torch.no_grad():
        if any(gradient.is_sparse for _, gradient in moved):
            for weight, gradient in moved:
                weight.sub_(gradient, alpha=config.step_size)
        elif moved:
            torch._foreach_sub_(*map(list, zip(*moved, strict=True)), alpha=config.step_size)  # as torch.optim does
        if config.projection is not None:
            config.projection.project({name: weight.data for name, weight in weights.items()})


def _leave(_config: TrainConfig, weights: Weights, sums: Sequence[Tensor | None]) -> None:
    """Into `.grad`; the next update takes it away."""
    for weight, gradient in zip(weights.values(), sums, strict=True):
        weight.grad = None if gradient is None else gradient.to(weight.dtype)


def _warn_of_few_bits(model: nn.Module) -> None:
    few = [n for n, p in model.named_parameters() if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16)]
    if few:
        warnings.warn(
            f"weights such as {few[0]!r} have 16 bits: an update below 1/256 (bfloat16) or 1/2048 (float16) of a "
            "weight is rounded away. Keep weights in float32 and use torch.autocast in losses, or take "
            "vg.shared_gradient with an optimizer that keeps float32 copies.",
            stacklevel=3,
        )
