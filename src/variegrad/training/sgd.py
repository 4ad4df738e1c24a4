"""Mini-batch SGD, equation (2): w ← Π_W(w − γ·Σ_{ℓ=1..B} m(∇f_{s_ℓ}(w))), on one worker or shared among P.

The sum convention of the paper: γ multiplies the summed gradient, so that a learning rate η of the mean is γ = η/B.
Each worker differentiates its share of the batch; the sums are added up over workers; all make the same update. Without
a mechanism the gradients are ordinary autograd's, and leave while the backward pass still goes on.

Which examples, the mechanism's draws and the data set's own are functions of the seed and the place in the run: with
any number of workers the weights are the same up to the order of summation. Only what a model draws in its forward pass
(dropout masks) depends on the number of workers, since one draw serves a whole share; it is the same in law.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from variegrad.batches import to_device
from variegrad.distributed.agreement import agree
from variegrad.distributed.workers import World, present
from variegrad.estimators import estimate
from variegrad.keys import torch_draws
from variegrad.per_example.evaluate import Losses, unwrap
from variegrad.problems.subset import size
from variegrad.training.config import TrainConfig
from variegrad.training.evaluation import Evaluation, mean_of
from variegrad.training.every import Every
from variegrad.training.examples import reader
from variegrad.training.facts import facts
from variegrad.training.sampling import Epochs
from variegrad.training.shared_update import SharedUpdate
from variegrad.training.step import Step

BOUND_EXAMPLES = 256  # of a batch, at most, for an estimate of B_D


def train(
    model: nn.Module,
    losses: Losses,
    dataset: Dataset[Any],
    config: TrainConfig,
    world: World | None = None,
    *,
    evaluation: Evaluation | None = None,
    bound_every: Every | None = None,
    start: int = 0,
    skipped: int = 0,
) -> Iterator[Step]:
    """Train by mini-batch SGD, equation (2): w ← Π_W(w − γ·Σ_{ℓ=1..B} m(∇f_{s_ℓ}(w))), one record an update.

    The caller's loop logs and decides; it may end the run at any record, on all workers alike. The model is trained in
    place, in the mode it is in; its `.grad` fields are left empty. Settings, model, starting weights and data that
    differ between workers are refused before the first update.

    Args:
        model: at its starting weights, on `world.device`; not wrapped in DistributedDataParallel.
        losses: `losses(model, batch) → (b,)`, one loss per example, not averaged.
        dataset: a map-style training set of n examples, the same on every worker.
        config: B, γ, passes, m, sampling, projection, seed.
        world: the workers, from `vg.workers()`; None for the process group that exists, or this process alone.
        evaluation: an accuracy to follow, and a target to stop at.
        bound_every: how often B_D is estimated, from at most 256 examples of the batch.
        start: samples seen before, to go on from weights that were kept: the run is the same as if it had not stopped.
        skipped: updates left out before, which `Skip` counts on from.

    Yields:
        A `Step` after each update.

    Raises:
        TypeError: if the model is wrapped, or the data set has no length.
        ValueError: if workers differ, B < P, B > n without replacement, the data is empty, batch statistics would
            differ between workers, or a loss or gradient is not finite.
        RuntimeError: if a worker fails or does not answer: on all workers, at the same update.

    Source: equation (2) and Section 3 of the paper.
    """
    if isinstance(model, DistributedDataParallel):
        raise TypeError("model must not be wrapped in DistributedDataParallel: train adds up the gradients itself.")
    world = present() if world is None else world
    model, count = unwrap(model), size(dataset)
    if world.size > 1:
        agree(world, {**dict(facts(model, losses, dataset, config, start)), "skipped": str(skipped)})
        _refuse_statistics_of_a_share(model)
    if count == 0:
        raise ValueError("the training set holds no examples.")
    if config.batch_size < world.size:
        raise ValueError(
            f"batch_size must be at least the number of workers, which share each batch; got {config.batch_size} "
            f"for {world.size} workers."
        )
    if isinstance(config.sampling, Epochs) and config.batch_size > count:
        raise ValueError(
            "batch_size must be at most the number of examples, each of which Epochs() draws once a pass; "
            f"got {config.batch_size} for {count:,} examples. Take at most {count:,}, or sampling=WithReplacement()."
        )
    if start < 0:
        raise ValueError(f"start must be a number of samples seen, not negative; got {start}.")
    if skipped < 0:
        raise ValueError(f"skipped must be a number of updates left out before, not negative; got {skipped}.")
    return _updates(model, losses, dataset, config, world, evaluation, bound_every, start, skipped)


def _updates(
    model: nn.Module,
    losses: Losses,
    dataset: Dataset[Any],
    config: TrainConfig,
    world: World,
    evaluation: Evaluation | None,
    bound_every: Every | None,
    start: int,
    skipped: int,
) -> Iterator[Step]:
    count, sampling, seed = size(dataset), config.sampling, config.seed
    read = reader(dataset, seed)
    shared = SharedUpdate(model, losses, config, world, read)
    end = config.passes * count * (1 - 1e-12)  # 0.1 passes of 60 examples are 6, not 6.000000000000001
    population = count if isinstance(sampling, Epochs) else None
    position, update = start, sampling.updates(start, config.batch_size, count)
    while position < end:
        indices = sampling.batch(seed, position, config.batch_size, count)
        before, after = position / count, (position + len(indices)) / count
        bound = None
        if bound_every is not None and bound_every.due(update + 1, before, after):
            with torch_draws(seed, "bound", update):
                sample = to_device(read(indices[:BOUND_EXAMPLES], position), shared.device)
                bound = estimate(model, losses, sample, population=population)
        made = shared.make(indices, position, update, skipped)
        position, update, skipped = position + len(indices), update + 1, skipped + made.skipped
        accuracy = None
        if evaluation is not None and (position >= end or evaluation.every.due(update, before, after)):
            with torch_draws(seed, "evaluation", update):
                accuracy = mean_of(evaluation.accuracy, model, evaluation.data, world)
        yield Step(
            updates=update, examples=position, passes=after, accuracy=accuracy, bound=bound, skipped=skipped,
            mean_loss=float("nan") if made.skipped else made.loss_sum / len(indices), seconds=made.seconds,
        )  # fmt: skip
        target = None if evaluation is None else evaluation.target
        if made.stop or (accuracy is not None and target is not None and accuracy >= target):
            return


def _refuse_statistics_of_a_share(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise ValueError(
                f"{type(module).__name__} {name!r} is in training mode: its statistics would be those of each worker's "
                "share, and the result would depend on the number of workers. Use a norm per example such as "
                "GroupNorm, or module.eval()."
            )
