"""The updates of a run: what is refused before the first, then each update, evaluated and estimated as asked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from variegrad.batches import Batch, to_device
from variegrad.distributed.agreement import agree, failing_together
from variegrad.distributed.workers import present
from variegrad.distributed.world import World
from variegrad.estimators import BatchSizeEstimate, estimate
from variegrad.keys import torch_draws
from variegrad.per_example.evaluate import Losses, NotFinite, unwrap
from variegrad.problems.subset import size
from variegrad.training.cadence import Cadence
from variegrad.training.config import Phases, TrainConfig
from variegrad.training.evaluation import Evaluation, mean_of
from variegrad.training.reading import Collate, Part
from variegrad.training.reading import readers as reader_processes
from variegrad.training.sampling import Epochs, Stream
from variegrad.training.shared_update import Apply, SharedUpdate
from variegrad.training.update import Position, Update
from variegrad.training.what_must_agree import refuse_drift, what_must_agree

ENDLESS = 2**63
BOUND_EXAMPLES = 256  # of a batch, at most, for an estimate of B_D


@dataclass(eq=False, kw_only=True)
class Updates:
    """A run that is to be made; the arguments of `train`, and what is done with the sums of each update.

    Raises:
        TypeError: as for `train`.
        ValueError: as for `train`.
    """

    model: nn.Module
    losses: Losses
    dataset: Dataset[Any]
    config: TrainConfig | Phases
    apply: Apply
    world: World | None
    start: int | Position
    readers: int
    collate_fn: Collate | None
    evaluation: Evaluation | None = None
    bound_every: Cadence | None = None

    def __post_init__(self) -> None:
        if isinstance(self.model, DistributedDataParallel):
            raise TypeError("model must not be wrapped in DistributedDataParallel: the gradients are added up here.")
        self.model = unwrap(self.model)
        self._start = self.start if isinstance(self.start, Position) else Position(examples=self.start)
        self._world = present() if self.world is None else self.world
        self._count = self._examples()
        self._end = self.config.passes * self._count * (1 - 1e-12)  # 0.1 passes of 60 are 6, not 6.000000000000001
        if self.readers < 0:
            raise ValueError(f"readers must be a number of processes, not negative; got {self.readers}.")
        if self._world.size > 1:
            agree(
                self._world,
                dict(what_must_agree(self.model, self.losses, self.dataset, self.config, self._start)),
            )
            _refuse_statistics_of_a_share(self.model)
        if self._count == 0:
            raise ValueError("the training set has no examples.")
        for each in self.config.configs.values() if isinstance(self.config, Phases) else [self.config]:
            self._refuse_batch_size(each)

    def _examples(self) -> int:
        """The examples of a pass: n; of a stream what it says, or more than there can ever be."""
        sampling, passes = self.config.sampling, self.config.passes
        if not isinstance(sampling, Stream):
            return size(self.dataset)
        if sampling.per_pass is None and math.isfinite(passes):
            raise ValueError(f"a stream has no passes: take passes=inf, or Stream(per_pass=n); got {passes} passes.")
        return sampling.per_pass or ENDLESS

    def _refuse_batch_size(self, config: TrainConfig) -> None:
        if config.batch_size < self._world.size:
            raise ValueError(
                f"batch_size must be at least the number of workers, which share each batch; got {config.batch_size} "
                f"for {self._world.size} workers."
            )
        if isinstance(config.sampling, Epochs) and config.batch_size > self._count:
            raise ValueError(
                "batch_size must be at most the number of examples, each of which Epochs() draws once per pass; "
                f"got {config.batch_size} for {self._count:,} examples. Take at most {self._count:,}, or "
                "sampling=WithReplacement()."
            )

    def make(self) -> Iterator[Update]:
        """Make them.

        Yields:
            As `train`.
        """
        config, world, evaluation, count, start = self.config, self._world, self.evaluation, self._count, self._start
        device, left_out = next(self.model.parameters()).device, start.left_out
        pinned = device.type == "cuda"
        with (
            reader_processes(
                self.dataset, config.seed, self._parts(), self.readers, self.collate_fn, pin_memory=pinned
            ) as read,
            closing(SharedUpdate(self.model, self.losses, world, read, config.sampling, count, self.apply)) as shared,
        ):
            for number, position, total, bound_is_due in self._plan():
                bound = None
                if bound_is_due:
                    with failing_together(world), torch_draws(config.seed, "bound", position):
                        places = _few(position, total)
                        few = read(config.sampling.samples(config.seed, places, count), position)
                        bound = self._bound(to_device(few, device))
                made = shared.make(config.at(position), position, total, number - 1, left_out)
                seen = position + total
                before, after = position / count, seen / count
                left_out += made.left_out
                accuracy = None
                if number == start.updates + 1:
                    refuse_drift(world, self.model, "after the first update")
                if evaluation is not None and (seen >= self._end or evaluation.every.due(number, before, after)):
                    refuse_drift(world, self.model, f"after update {number:,}")
                    accuracy = self._accuracy(evaluation, seen)
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

    def _plan(self) -> Iterator[tuple[int, int, int, bool]]:
        """The updates of a run: number, position, examples, and whether B_D is estimated before it."""
        position, number, count, cadence = self._start.examples, self._start.updates, self._count, self.bound_every
        while position < self._end:
            total = self.config.sampling.length(position, self.config.at(position).batch_size, count)
            number += 1
            due = cadence is not None and cadence.due(number, position / count, (position + total) / count)
            yield number, position, total, due
            position += total

    def _parts(self) -> Iterator[Part]:
        """What this worker will ask its readers for, in that order."""
        for _, position, total, bound_is_due in self._plan():
            share = self._world.share(total)
            wanted = [_few(position, total)] if bound_is_due else []
            wanted += [range(position + share.start, position + share.stop)] if share else []
            for places in wanted:
                yield self.config.sampling.samples(self.config.seed, places, self._count), places.start

    def _bound(self, batch: Batch) -> BatchSizeEstimate | None:
        """B_D from examples of the batch; None if one is not finite, which the update itself deals with."""
        population = self._count if isinstance(self.config.sampling, Epochs) else None
        try:
            return estimate(self.model, self.losses, batch, population=population)
        except NotFinite:
            return None

    def _accuracy(self, evaluation: Evaluation, seen: int) -> float:
        with torch_draws(self.config.seed, "evaluation", seen):
            return mean_of(
                evaluation.accuracy, self.model, evaluation.data, self._world,
                readers=self.readers, collate_fn=self.collate_fn,
            )  # fmt: skip


def _few(position: int, total: int) -> range:
    return range(position, position + min(total, BOUND_EXAMPLES))


def _refuse_statistics_of_a_share(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise ValueError(
                f"{type(module).__name__} {name!r} is in training mode: its statistics would be those of each worker's "
                "share, and the result would depend on the number of workers. Use a norm per example such as "
                "GroupNorm, or module.eval()."
            )
