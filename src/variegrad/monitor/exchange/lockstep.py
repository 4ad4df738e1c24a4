"""Workers in lockstep: which reductions carry a message is decided by a count that is equal on all of them.

Every reduction of gradients is counted where all workers take part in it: in the communication hook, also in the
shadow passes of `Join`. The schedule is a function of that count alone. At a due reduction each worker sends one
vector: its sums, or zeros if it has nothing to say. No collective depends on what one worker watched.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from variegrad.monitor.exchange.sums import NUMBERS, StepSums, of_a_worker_that_did_not_watch
from variegrad.monitor.norms import sq_norm
from variegrad.monitor.schedule import Schedule

# How long the first reduction waits for workers that have not attached a monitor.
PATIENCE = timedelta(seconds=60)
_attached = itertools.count()


class Lockstep:
    """The count of reductions, and one all-reduce of the sums of a step at each that is due.

    Args:
        schedule: which steps are due.
        accumulate: micro-batches of a step.
        group: the workers.
        length: numbers of a message.
    """

    def __init__(self, schedule: Schedule, accumulate: int, group: dist.ProcessGroup, length: int = NUMBERS) -> None:
        self.group, self.workers = group, dist.get_world_size(group)
        self.offer: Callable[[], Tensor] | None = None
        """This worker's sums at the next reduction; None if it does not watch."""
        self.disagreement = ""
        """Why no message is sent at all."""
        self.open = False
        """Whether a message of the pass that has just ended is still to come."""
        self.beside: list[tuple[Tensor, dist.Work]] = []
        """Averages of plain gradients, if another hook makes something else of them."""
        self._beside_of = -1
        self._schedule, self._accumulate, self._length = schedule, accumulate, length
        self._count = 0
        # Reductions of a step: one under no_sync, `accumulate` without; the first message tells which.
        self._period = 1
        self._period_known = accumulate == 1
        self._sent: tuple[Tensor, dist.Work] | None = None
        self._unwatched: list[Tensor] = []
        self._key = f"variegrad/monitor/{next(_attached)}"
        self._met = False
        self._settings = f"every={schedule.every}, warm_up={schedule.warm_up}, accumulate={accumulate}"
        self._settings += f", {length} numbers"
        self._before = 0  # steps of the run before this process, if all workers say the same
        self._store = _store()
        self._announce(0)

    @property
    def step(self) -> int:
        """The optimizer step that the next reduction belongs to, from 0."""
        if self._count and not self._period_known:
            self._learn_period()
        return self._before + self._count // self._period

    def resume(self, step: int) -> bool:
        """Continue at a step, if all workers do before their first reduction; whether it is not too late."""
        if not self._met:
            self._announce(step)
        return not self._met

    def _announce(self, before: int) -> None:
        if self._store is not None:
            self._store.set(f"{self._key}/{dist.get_rank()}", f"{self._settings}/{before}")

    @property
    def watched(self) -> bool:
        """Whether that step is measured."""
        return not self.disagreement and self._schedule.due(self.step) == self.step

    @property
    def due(self) -> bool:
        """Whether the next reduction carries a message."""
        return self.watched and self._count % self._period == self._period - 1

    def note(self, local: Tensor) -> None:
        """Part of the local gradient of a due reduction."""
        if self.offer is None:
            self._unwatched.append(sq_norm(local))

    def average_beside(self, local: Tensor) -> None:
        """Average plain gradients of a due reduction, of which an inner hook makes something else."""
        if self._beside_of != self._count:
            self.beside, self._beside_of = [], self._count
        copy = (local.to_dense() if local.is_sparse else local).detach() * (1 / self.workers)
        self.beside.append((copy, dist.all_reduce(copy, group=self.group, async_op=True)))

    def sq_norm_of_beside(self) -> Tensor:
        """‖·‖² of that average."""
        averaged, self.beside = self.beside, []
        for _, work in averaged:
            work.wait()
        return torch.stack([sq_norm(one) for one, _ in averaged]).sum()

    def send(self, device: torch.device) -> None:
        """Start the all-reduce of this worker's sums, or of zeros."""
        offer, self.offer = self.offer, None
        local = of_a_worker_that_did_not_watch(self._unwatched, device, self._length) if offer is None else offer()
        self._unwatched = []
        self._sent = local, dist.all_reduce(local, group=self.group, async_op=True)

    def advance(self) -> None:
        """One reduction more."""
        self._count += 1
        self._unwatched = []

    def take(self) -> Tensor | None:
        """The sums over all workers; None if no message was sent since the last call."""
        if self._sent is None:
            return None
        message, work = self._sent
        work.wait()
        if self._period_known or self._count > 1:
            self._sent = None
        return message

    def meet(self) -> None:
        """Before the first reduction: have all workers attached a monitor, with the same settings?"""
        if self._met:
            return
        self._met = True
        if self._store is None:
            return
        keys = [f"{self._key}/{rank}" for rank in dist.get_process_group_ranks(self.group)]
        off = f"{self._key}/off"
        try:
            self._store.wait(keys, PATIENCE)
            if self._store.check([off]):
                raise RuntimeError
        except RuntimeError:  # DistStoreError, its subclass, after the wait
            self._store.set(off, "1")
            self.disagreement = (
                "not all workers have attached a Monitor. Create one on every worker, and call attach on each of them"
            )
            return
        found = {tuple(self._store.get(key).decode().split("/")) for key in keys}
        settings = {one for one, _ in found}
        if len(settings) > 1:
            self.disagreement = f"the workers' monitors have different settings: {'; '.join(sorted(settings))}"
        elif len(found) == 1:
            self._before = int(next(iter(found))[1])

    def _learn_period(self) -> None:
        self._period_known = True
        if (message := self.take()) is None:
            return
        sums = StepSums(*message[:NUMBERS].tolist())
        if sums.watchers and sums.passes == sums.watchers:  # one micro-batch each: every one of them is reduced
            self._period = self._accumulate


def _store() -> Any:
    find = getattr(dist.distributed_c10d, "_get_default_store", None)
    return None if find is None else find()
