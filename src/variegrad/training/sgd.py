"""Mini-batch SGD, equation (2): w ← Π_W(w − γ·Σ_{ℓ=1..B} m(∇f_{s_ℓ}(w))), on one worker or shared among P.

The sum convention of the paper: γ multiplies the summed gradient, so that a learning rate η of the mean is γ = η/B.
Each worker differentiates its share of the batch; the sums are added up over workers; all make the same update. Without
a mechanism the gradients are ordinary autograd's, and leave while the backward pass still goes on.

Which examples, the mechanism's draws and the data set's own are functions of the seed and the number of the sample,
never of the update or of B: B may change at any update. With any number of workers the weights are the same up to the
order of summation. Only what a model draws in its forward pass (dropout masks) depends on the number of workers, since
one draw serves a whole share; it is the same in law.
"""

from __future__ import annotations

import warnings
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
from variegrad.training.config import Phases, TrainConfig
from variegrad.training.evaluation import Evaluation, mean_of
from variegrad.training.every import Every
from variegrad.training.reading import reader
from variegrad.training.sampling import Epochs
from variegrad.training.shared_update import SharedUpdate
from variegrad.training.update import Position, Update
from variegrad.training.what_must_agree import what_must_agree

BOUND_EXAMPLES = 256  # of a batch, at most, for an estimate of B_D


def train(
    model: nn.Module,
    losses: Losses,
    dataset: Dataset[Any],
    config: TrainConfig | Phases,
    world: World | None = None,
    *,
    evaluation: Evaluation | None = None,
    bound_every: Every | None = None,
    start: int | Position = 0,
    skipped: int | None = None,
) -> Iterator[Update]:
    """Train by mini-batch SGD, equation (2): w ← Π_W(w − γ·Σ_{ℓ=1..B} m(∇f_{s_ℓ}(w))), one record per update.

    The caller's loop logs and decides; it may end the run at any record, on all workers alike. The model is trained in
    place, in the mode it is in; its `.grad` fields are left empty. Settings, model, starting weights and data that
    differ between workers are refused before the first update.

    Args:
        model: at its starting weights, on `world.device`; not wrapped in DistributedDataParallel.
        losses: `losses(model, batch) → (b,)`, one loss per example, not averaged.
        dataset: a map-style training set of n examples, the same on every worker.
        config: B, γ, passes, m, sampling, projection, seed; or `Phases`, in which they change along the run.
        world: the workers, from `vg.workers()`; None for the process group that exists, or this process alone.
        evaluation: an accuracy to follow, and a target to stop at.
        bound_every: how often B_D is estimated, from at most 256 examples of the batch.
        start: where the run stands, to resume from weights that were kept: the `position` of its last update, or the
            number of samples seen alone (then updates are counted from 0). The run is the same as if it had not
            stopped, also with another B from here on.
        skipped: deprecated: updates left out before; a `Position` holds it.

    Yields:
        An `Update` after each update.

    Raises:
        TypeError: if the model is wrapped, or the data set has no length.
        ValueError: if workers differ, B < P, B > n without replacement, the data is empty, batch statistics would
            differ between workers, or a loss or gradient is not finite.
        RuntimeError: if a worker fails or does not answer: on all workers, at the same update.

    Source: equation (2) and Section 3 of the paper.
    """
    if isinstance(model, DistributedDataParallel):
        raise TypeError("model must not be wrapped in DistributedDataParallel: train adds up the gradients itself.")
    if skipped is not None:
        warnings.warn("train(skipped=) is now train(start=Position(left_out=)).", DeprecationWarning, stacklevel=2)
    if not isinstance(start, Position):
        start = Position(examples=start, left_out=skipped or 0)
    world = present() if world is None else world
    model, count = unwrap(model), size(dataset)
    if world.size > 1:
        agree(world, dict(what_must_agree(model, losses, dataset, config, start)))
        _refuse_statistics_of_a_share(model)
    if count == 0:
        raise ValueError("the training set holds no examples.")
    for each in config.configs.values() if isinstance(config, Phases) else [config]:
        if each.batch_size < world.size:
            raise ValueError(
                f"batch_size must be at least the number of workers, which share each batch; got {each.batch_size} "
                f"for {world.size} workers."
            )
        if isinstance(each.sampling, Epochs) and each.batch_size > count:
            raise ValueError(
                "batch_size must be at most the number of examples, each of which Epochs() draws once per pass; "
                f"got {each.batch_size} for {count:,} examples. Take at most {count:,}, or sampling=WithReplacement()."
            )
    return _updates(model, losses, dataset, config, world, evaluation, bound_every, start)


def _updates(
    model: nn.Module,
    losses: Losses,
    dataset: Dataset[Any],
    config: TrainConfig | Phases,
    world: World,
    evaluation: Evaluation | None,
    bound_every: Every | None,
    start: Position,
) -> Iterator[Update]:
    count, sampling, seed = size(dataset), config.sampling, config.seed
    read = reader(dataset, seed)
    shared = SharedUpdate(model, losses, world, read, sampling, count)
    end = config.passes * count * (1 - 1e-12)  # 0.1 passes of 60 examples are 6, not 6.000000000000001
    population = count if isinstance(sampling, Epochs) else None
    position, number, left_out = start.examples, start.updates, start.left_out
    while position < end:
        settings = config.at(position)
        total = sampling.length(position, settings.batch_size, count)
        before, after = position / count, (position + total) / count
        bound = None
        if bound_every is not None and bound_every.due(number + 1, before, after):
            with torch_draws(seed, "bound", position):
                few = sampling.samples(seed, range(position, position + min(total, BOUND_EXAMPLES)), count)
                bound = estimate(model, losses, to_device(read(few, position), shared.device), population=population)
        made = shared.make(settings, position, total, number, left_out)
        position, number, left_out = position + total, number + 1, left_out + made.left_out
        accuracy = None
        if evaluation is not None and (position >= end or evaluation.every.due(number, before, after)):
            with torch_draws(seed, "evaluation", position):
                accuracy = mean_of(evaluation.accuracy, model, evaluation.data, world)
        yield Update(
            updates=number, examples=position, batch_size=total, passes=after, accuracy=accuracy, bound=bound,
            left_out=left_out, mean_loss=float("nan") if made.left_out else made.loss_sum / total, seconds=made.seconds,
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
