"""Which call of `watch` is which micro-batch of which optimizer step, alone or in lockstep with other workers."""

from __future__ import annotations

from typing import Any

import torch

from variegrad.monitor.backward_pass import BackwardPass
from variegrad.monitor.exchange.lockstep import Lockstep
from variegrad.monitor.schedule import Schedule

FOR_EVER = 1 << 62


class Loop:
    """The place in the user's loop.

    Args:
        schedule: which steps are due.
        accumulate: micro-batches of a step.
    """

    def __init__(self, schedule: Schedule, accumulate: int) -> None:
        self.schedule, self.accumulate = schedule, accumulate
        self.exchange: Lockstep | None = None
        self.sharded = False
        self.calls = 0
        """Of `watch`."""
        self.asleep = 0
        """How many calls need not be measured."""
        self.step = -1
        """That is measured, from 0."""
        self.passes: list[Any] = []
        """Of this step's micro-batches, those that have ended."""
        self.waiting: BackwardPass | None = None
        """That has not."""
        self.out_of_step = 0
        """Consecutive steps that began with gradients of earlier passes."""
        self._resumed_at = 0  # steps before this process that an exchange does not count

    @property
    def number(self) -> int:
        """Of the step, from 1 on and over all processes of a resumed run."""
        return self.step + 1 + self._resumed_at

    @property
    def workers(self) -> int:
        """Processes that exchange sums."""
        return 1 if self.exchange is None else self.exchange.workers

    @property
    def cells(self) -> int:
        """Micro-batches of a step, over all workers."""
        return self.workers * self.accumulate

    @property
    def rank(self) -> int:
        """Of this process."""
        return 0 if self.exchange is None else torch.distributed.get_rank()

    @property
    def due(self) -> bool:
        """Whether the next call looks."""
        if self.exchange is not None:
            return self.exchange.watched
        return self.calls >= self.asleep

    def begins(self) -> bool:
        """Whether the present call is measured."""
        if self.waiting is not None:  # its backward pass never came
            self.drop()
        return self._due_alone() if self.exchange is None else self._due_together(self.exchange)

    def ends(self) -> None:
        """A step is complete: sleep until the next that is due."""
        self.asleep = self.schedule.due(self.step + 1) * self.accumulate

    def begin_at(self, kept: int) -> None:
        """The loop stepped early, or began before: the last `kept` passes are the first of the step."""
        self.passes = self.passes[len(self.passes) - kept :]
        self.calls, self.asleep = self.step * self.accumulate + kept, 0

    def drop(self) -> None:
        """Forget what may still wait."""
        if self.waiting is not None:
            self.waiting.cancel()
        self.waiting, self.passes, self.step, self.asleep = None, [], -1, 0
        if self.exchange is not None:
            self.exchange.offer = None

    def state(self) -> int:
        """Calls so far."""
        if self.exchange is None:
            return self.calls
        return (self.exchange.step + self._resumed_at) * self.accumulate

    def load(self, calls: int) -> None:
        """Continue after this many calls; workers that are under way keep their own count of reductions."""
        self.drop()
        self.calls, step = calls, calls // self.accumulate
        if self.exchange is not None and not self.exchange.resume(step):
            self._resumed_at = step - self.exchange.step

    def _due_alone(self) -> bool:
        step, micro = divmod(self.calls - 1, self.accumulate)
        if micro == 0:
            self.passes = []
            if (due := self.schedule.due(step)) > step:
                self.asleep = due * self.accumulate
                return False
            self.step = step
        elif step != self.step or len(self.passes) != micro:  # an earlier micro-batch was lost
            self.asleep = self.schedule.due(step + 1) * self.accumulate
            return False
        return True

    def refuse_unseen_workers(self) -> None:
        """ValueError if several workers train the model and only one is seen."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if self.exchange is None and distributed and torch.distributed.get_world_size() > 1:
            raise ValueError(
                "several workers train this model, but the Monitor sees only one of them. Call "
                "monitor.attach(ddp) with the DistributedDataParallel (or the model after fully_shard) once, on every "
                "worker, before training."
            )

    def _due_together(self, exchange: Lockstep) -> bool:
        if not exchange.watched:
            return False
        if exchange.step != self.step:
            self.passes, self.step = [], exchange.step
        return True
