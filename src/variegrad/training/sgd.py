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

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from variegrad.batches import Batch, to_device
from variegrad.distributed.agreement import agree, failing_together
from variegrad.distributed.workers import World, present
from variegrad.estimators import BatchSizeEstimate, estimate
from variegrad.keys import torch_draws
from variegrad.per_example.evaluate import Losses, NotFinite, unwrap
from variegrad.problems.subset import size
from variegrad.training.config import Phases, TrainConfig
from variegrad.training.evaluation import Evaluation, mean_of
from variegrad.training.every import Every
from variegrad.training.reading import Collate, Part
from variegrad.training.reading import readers as reader_processes
from variegrad.training.sampling import Epochs, Stream
from variegrad.training.shared_update import Apply, SharedUpdate, Weights
from variegrad.training.update import Position, Update
from variegrad.training.what_must_agree import refuse_drift, what_must_agree

ENDLESS = 2**63
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
    return _begun(model, losses, dataset, config, world, evaluation, bound_every, start, readers, collate_fn, _descend)


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
    return _begun(model, losses, dataset, config, world, None, None, start, readers, collate_fn, _leave)


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


def _begun(
    model: nn.Module,
    losses: Losses,
    dataset: Dataset[Any],
    config: TrainConfig | Phases,
    world: World | None,
    evaluation: Evaluation | None,
    bound_every: Every | None,
    start: int | Position,
    readers: int,
    collate_fn: Collate | None,
    apply: Apply,
) -> Iterator[Update]:
    if isinstance(model, DistributedDataParallel):
        raise TypeError("model must not be wrapped in DistributedDataParallel: the gradients are added up here.")
    if not isinstance(start, Position):
        start = Position(examples=start)
    world = present() if world is None else world
    model, count = unwrap(model), _count(dataset, config)
    if readers < 0:
        raise ValueError(f"readers must be a number of processes, not negative; got {readers}.")
    if apply is _descend:
        _warn_of_few_bits(model)
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
    return _updates(model, losses, dataset, config, world, evaluation, bound_every, start, readers, collate_fn, apply)


def _count(dataset: Dataset[Any], config: TrainConfig | Phases) -> int:
    """The examples of a pass: n; of a stream what it says, or more than there can ever be."""
    if not isinstance(config.sampling, Stream):
        return size(dataset)
    if config.sampling.per_pass is None and math.isfinite(config.passes):
        raise ValueError(f"a stream has no passes: take passes=inf, or Stream(per_pass=n); got {config.passes} passes.")
    return config.sampling.per_pass or ENDLESS


def _updates(
    model: nn.Module,
    losses: Losses,
    dataset: Dataset[Any],
    config: TrainConfig | Phases,
    world: World,
    evaluation: Evaluation | None,
    bound_every: Every | None,
    start: Position,
    readers: int,
    collate_fn: Collate | None,
    apply: Apply,
) -> Iterator[Update]:
    count, seed = _count(dataset, config), config.seed
    end = config.passes * count * (1 - 1e-12)  # 0.1 passes of 60 examples are 6, not 6.000000000000001
    plan = partial(_planned, config, count, end, bound_every, start)
    parts = _parts(plan(), config, count, world)
    device = next(model.parameters()).device
    with (
        reader_processes(dataset, seed, parts, readers, collate_fn, pin_memory=device.type == "cuda") as read,
        closing(SharedUpdate(model, losses, world, read, config.sampling, count, apply)) as shared,
    ):
        left_out = start.left_out
        for number, position, total, bound_is_due in plan():
            bound = None
            if bound_is_due:
                with failing_together(world), torch_draws(seed, "bound", position):
                    few = config.sampling.samples(seed, range(position, position + min(total, BOUND_EXAMPLES)), count)
                    bound = _bound(model, losses, to_device(read(few, position), device), config, count)
            made = shared.make(config.at(position), position, total, number - 1, left_out)
            seen = position + total
            before, after = position / count, seen / count
            left_out += made.left_out
            accuracy = None
            if number == start.updates + 1:
                refuse_drift(world, model, "after the first update")
            if evaluation is not None and (seen >= end or evaluation.every.due(number, before, after)):
                refuse_drift(world, model, f"after update {number:,}")
                with torch_draws(seed, "evaluation", seen):
                    accuracy = mean_of(
                        evaluation.accuracy, model, evaluation.data, world, readers=readers, collate_fn=collate_fn
                    )
            if made.stop:
                world.stop_requested = False  # it is obeyed: a later run is another matter
            yield Update(
                updates=number, examples=seen, batch_size=total, passes=after, accuracy=accuracy, bound=bound,
                left_out=left_out, mean_loss=float("nan") if made.left_out else made.loss_sum / total,
                seconds=made.seconds,
            )  # fmt: skip
            target = None if evaluation is None else evaluation.target
            if made.stop or (accuracy is not None and target is not None and accuracy >= target):
                return


def _planned(
    config: TrainConfig | Phases, count: int, end: float, bound_every: Every | None, start: Position
) -> Iterator[tuple[int, int, int, bool]]:
    """The updates of a run: number, position, examples, and whether B_D is estimated before it."""
    position, number = start.examples, start.updates
    while position < end:
        total = config.sampling.length(position, config.at(position).batch_size, count)
        number += 1
        due = bound_every is not None and bound_every.due(number, position / count, (position + total) / count)
        yield number, position, total, due
        position += total


def _parts(
    plan: Iterator[tuple[int, int, int, bool]], config: TrainConfig | Phases, count: int, world: World
) -> Iterator[Part]:
    """What this worker will ask its readers for, in that order."""
    for _, position, total, bound_is_due in plan:
        share = world.share(total)
        wanted = [range(position, position + min(total, BOUND_EXAMPLES))] if bound_is_due else []
        wanted += [range(position + share.start, position + share.stop)] if share else []
        for places in wanted:
            yield config.sampling.samples(config.seed, places, count), places.start


def _bound(
    model: nn.Module, losses: Losses, batch: Batch, config: TrainConfig | Phases, count: int
) -> BatchSizeEstimate | None:
    """B_D from examples of the batch; None if one is not finite, which the update itself deals with."""
    try:
        return estimate(model, losses, batch, population=count if isinstance(config.sampling, Epochs) else None)
    except NotFinite:
        return None


def _warn_of_few_bits(model: nn.Module) -> None:
    few = [n for n, p in model.named_parameters() if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16)]
    if few:
        warnings.warn(
            f"weights such as {few[0]!r} have 16 bits: an update below 1/256 (bfloat16) or 1/2048 (float16) of a "
            "weight is rounded away. Keep weights in float32 and use torch.autocast in losses, or take "
            "vg.shared_gradient with an optimizer that keeps float32 copies.",
            stacklevel=4,
        )


def _refuse_statistics_of_a_share(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise ValueError(
                f"{type(module).__name__} {name!r} is in training mode: its statistics would be those of each worker's "
                "share, and the result would depend on the number of workers. Use a norm per example such as "
                "GroupNorm, or module.eval()."
            )
