"""`Monitor`: B_D inside anybody's training loop, from the loop's own backward passes, by one line between the two.

On one step in sixteen (more often at first) a subset of the batch's examples gives M̂² and the gradients that arrive
give ‖Σg‖²; where examples cannot be told apart, micro-batches or workers do, and at last a sign probe. The pairs
(Û, M̂²) are pooled over a window of such steps as a ratio of sums, with a jackknife interval.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from variegrad.monitor.examples import Examples, Refused
from variegrad.monitor.history import History
from variegrad.monitor.listening import Check, Listening, Unusable
from variegrad.monitor.pending import Pending
from variegrad.monitor.pool import Window
from variegrad.monitor.probe import probed_sq_norm, sq_norm
from variegrad.monitor.reading import Reading
from variegrad.monitor.schedule import Schedule
from variegrad.monitor.separation import Separation
from variegrad.monitor.step_sums import StepSums
from variegrad.monitor.watched import Watched, watched
from variegrad.per_example.evaluate import trained_parameters, unwrap
from variegrad.per_example.graph import awaits_first_pass

if TYPE_CHECKING:
    from variegrad.monitor.fsdp import ShardedNorms, ShardedPass
    from variegrad.monitor.worker_norms import WorkerNorms

Hook = Callable[[Any, Any], Any]


class Monitor:
    """Reads the batch-size bound B_D from a training loop while it runs.

    Example:
        ```python
        monitor = vg.Monitor(model, every=16, population=len(dataset))
        per_example = losses(model, batch)
        monitor.watch(per_example)
        per_example.mean().backward()
        optimizer.step()
        ```

    Args:
        model: the model that is trained; a DistributedDataParallel or a fully sharded model is attached to, as by
            `attach`.
        every: one optimiser step in so many is looked at.
        population: size n of the data set, where a step's examples are distinct members of it; None for fresh or
            augmented data.
        examples: how many examples of a batch to look at; None for 16, and no more than half of the batch.
        warm_up: so many first steps are looked at eight times as often.
        window: how many of the latest readings are pooled, at least 8.
        accumulate: micro-batches of one optimiser step; `watch` is called for each.
        log: file to stream readings to, as lines of JSON.
        confidence: nominal level of the interval.

    Raises:
        TypeError: if the model is no module.
        ValueError: if a number is out of its range, or the model has nothing to train.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 16,
        population: int | None = None,
        examples: int | None = None,
        warm_up: int = 32,
        window: int = 64,
        accumulate: int = 1,
        log: str | os.PathLike[str] | None = None,
        confidence: float = 0.95,
    ) -> None:
        for name, value, least in (("examples", examples, 2), ("accumulate", accumulate, 1)):
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}; got {value}.")
        if population is not None and population < 2:
            raise ValueError(f"population must be the size of the data set, at least 2, or None; got {population}.")
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must lie strictly between 0 and 1; got {confidence}. Use 0.95, for example.")
        self.history = History(log)
        self._model = unwrap(model)
        self._parameters = trained_parameters(self._model)
        self._schedule = Schedule(every=every, warm_up=warm_up)
        self._population, self._confidence = population, confidence
        self._accumulate = accumulate
        self._window = Window(window)
        self._examples = Examples(self._model, self._parameters, examples)
        self._separation = Separation()
        self._workers: WorkerNorms | None = None
        self._sharded: ShardedNorms | None = None
        self._skipped = 0
        self._calls = 0
        self._due_call = 0
        self._cells: list[StepSums] = []
        self._step = -1
        self._listening: Listening | None = None
        self._pass: ShardedPass | None = None
        self._kind = ""
        self._reached: dict[int, frozenset[str]] = {}
        self._said: set[str] = set()
        self._out_of_step = 0
        if isinstance(model, DistributedDataParallel) or _is_sharded(model):
            self.attach(model)

    @property
    def latest(self) -> Reading | None:
        """The last reading; None before the first."""
        return self.history[-1] if len(self.history) else None

    def watch(self, loss: Tensor, *, output: Tensor | Sequence[Tensor] | None = None) -> None:
        """Tells the monitor of a step's losses, between forward and backward; most calls only count.

        Args:
            loss: one loss per example, shape (b,), which the loop then averages or sums; or, with `output`, the scalar.
            output: if there is only a scalar loss: what it was computed from, first dimension the examples; several
                outputs, such as policy and value or the heads of a detector, as a tuple.

        Returns:
            Nothing; see `latest` after the backward pass.

        Raises:
            TypeError: if an argument is no floating-point tensor.
            ValueError: if shapes do not fit, there is no graph, or examples cannot be told apart; naming the way on.
        """
        if self._calls < self._due_call:
            self._calls += 1
            return
        self._look(loss, output)

    def attach(self, model: nn.Module, *, inner: Hook | None = None, state: object = None) -> None:
        """Makes readings those of all workers, equal on each.

        Under DistributedDataParallel by numbers that ride on the all-reduce of the gradients; of a fully sharded model
        by one small all-reduce on watched steps.

        Args:
            model: the DistributedDataParallel around the monitor's model, without a communication hook of its own; or
                the monitor's model itself after `fully_shard`.
            inner: the hook to compose with: torch's fp16_compress_hook or bf16_compress_hook; None for the plain mean.
            state: of the inner hook.

        Returns:
            Nothing.

        Raises:
            ValueError: if the wrapper has a hook already, wraps another model, or the inner hook is not known to treat
                the entries of a bucket one by one; if a sharded model cannot be listened to.
        """
        if unwrap(model) is not self._model:
            raise ValueError("attach: the model must be the one that the Monitor was made with, or wrap it.")
        if isinstance(model, DistributedDataParallel):
            from variegrad.monitor.worker_norms import WorkerNorms, register  # noqa: PLC0415 - torch may be built without it

            norms = WorkerNorms(inner)
            register(norms, model, state)
            self._workers = norms
            return
        if not _is_sharded(model):
            raise ValueError(
                f"attach takes a DistributedDataParallel or a model after fully_shard; got {type(model).__name__}. "
                "The older FullyShardedDataParallel does not show local gradients."
            )
        if inner is not None or self._accumulate > 1:
            raise ValueError(
                "attach: fully sharded models have no communication hook to compose with, and are read at one "
                "micro-batch a step only. Leave inner and accumulate out; watch the last micro-batch of a step."
            )
        from variegrad.monitor.fsdp import ShardedNorms  # noqa: PLC0415 - as above

        self._sharded = ShardedNorms(model)

    def compose(self, inner: Hook | None = None) -> Hook:
        """The hook of `attach`, for a framework that registers hooks itself.

        Args:
            inner: as for `attach`.

        Returns:
            A communication hook, `hook(state, bucket)`, to be registered with the inner hook's state.

        Raises:
            ValueError: as `attach`.
        """
        from variegrad.monitor.worker_norms import WorkerNorms, communication_hook  # noqa: PLC0415 - torch may be built without it

        self._workers = WorkerNorms(inner)
        return communication_hook(self._workers)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and text that survive a checkpoint, about two for each pooled reading.

        Returns:
            What `load_state_dict` takes.
        """
        return {
            "calls": self._calls,
            "skipped": self._skipped,
            "window": self._window.state(),
            "history": self.history.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint.

        Args:
            state: of `state_dict`.

        Returns:
            Nothing.

        Raises:
            ValueError: if the state is not one of `state_dict`.
        """
        if state.keys() != {"calls", "skipped", "window", "history"}:
            raise ValueError(f"state must be what Monitor.state_dict() returned; got the keys {sorted(state)}.")
        self._drop()
        self._window.load(state["window"])
        self.history.load_state_dict(state["history"])
        self._calls, self._skipped, self._due_call = int(state["calls"]), int(state["skipped"]), 0

    def close(self) -> None:
        """Takes away what may still wait for a backward pass, and lets go of the log."""
        self._drop()
        self.history.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _look(self, loss: Tensor, output: Tensor | Sequence[Tensor] | None) -> None:
        call = self._calls
        self._calls += 1
        if self._listening is not None or self._pass is not None:  # its backward pass never came
            self._drop()
        step, micro = divmod(call, self._accumulate)
        if micro == 0:
            self._cells = []
            if (due := self._schedule.due(step)) > step:
                self._due_call = due * self._accumulate
                return
            self._step = step
        elif step != self._step or len(self._cells) != micro:  # an earlier micro-batch was lost
            self._due_call = self._schedule.due(step + 1) * self._accumulate
            return
        self._refuse_workers_without_exchange()
        if self._sharded is not None:
            self._pass = self._sharded.listen(loss, output, self._separation, self._sharded_ended)
            return
        found = watched(loss, output, self._parameters, self._separation)
        if found is not None and awaits_first_pass(found.graph):
            self._due_call = self._schedule.due(step + 1) * self._accumulate
        elif found is not None:
            self._listen(found, step, micro)

    def _listen(self, found: Watched, step: int, micro: int) -> None:
        capture, probe = None, None
        try:
            if found.count > 1:
                capture = self._examples.capture(found, self._examples.known(found))
        except Refused as reason:
            if found.graph.hides_parameters:
                raise ValueError(
                    "a re-entrant activation checkpoint hides parameters from the graph, so that nothing can be read "
                    "from it. Call torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
                ) from reason
            if self._accumulate * self._count_workers() == 1:
                probe = probed_sq_norm(found, self._model, self._parameters, step, micro)
        to_compare = self._examples.to_check(found)
        check = None if to_compare is None else Check(
            model=self._model, per_example=found.per_example(), to_compare=to_compare, alone=capture is not None
        )  # fmt: skip
        self._listening = Listening(
            found, self._parameters, capture=capture, probe=probe, check=check,
            reached=self._reached.get(found.graph.signature), begin=lambda: self._begin(micro), end=self._ended,
        )  # fmt: skip

    def _begin(self, micro: int) -> None:
        """The backward pass begins: are we where we think we are in the step?"""
        if self._accumulate > 1 or self._workers is not None:
            dirty = any(p.grad is not None and _any(p.grad) for p in self._parameters.values())
            if micro == 0 and dirty:
                self._calls -= 1
                self._out_of_step += 1
                raise Unusable(
                    "gradients of earlier backward passes were still in .grad when a step began. Are they accumulated "
                    "over more micro-batches than Monitor(accumulate=…) says, or not zeroed between steps?"
                    if self._out_of_step > 2 * self._accumulate
                    else ""
                )
            if micro > 0 and not dirty and sum(cell.sq_norms_of_sums for cell in self._cells) > 0:
                # The loop stepped early, as at the end of an epoch: this is the first micro-batch of a new step.
                self._calls, self._cells = self._step * self._accumulate + 1, []
            self._out_of_step = 0
        if self._workers is not None and len(self._cells) == self._accumulate - 1:
            self._workers.send = self._local_sums

    def _local_sums(self) -> StepSums:
        assert self._listening is not None
        return sum(self._cells, start=self._listening.cell())

    def _ended(self, error: Exception | None) -> None:
        listening, self._listening = self._listening, None
        assert listening is not None
        if isinstance(error, Unusable) and (not str(error) or listening.never_began):
            self._say(str(error))
            self._drop()
            return
        if error is not None:
            self._say(f"{error}" if isinstance(error, Unusable) else f"{type(error).__name__}: {error}")
        if error is not None or not listening.checked:
            self._examples.not_checked(listening.watched)
        else:
            self._reached.setdefault(listening.watched.graph.signature, listening.reached_now)
        self._cells.append(listening.cell())
        if len(self._cells) == self._accumulate:
            self._due_call = self._schedule.due(self._step + 1) * self._accumulate
            self._complete(probed=listening.probe is not None)

    def _complete(self, *, probed: bool) -> None:
        workers, alone = self._count_workers(), self._workers is None and self._accumulate == 1
        sums: StepSums | None = self._cells[0] if len(self._cells) == 1 else sum(self._cells, start=StepSums())
        if self._workers is not None:
            sums = self._workers.take()
            if sums is None:
                self._say("no gradients were averaged over the workers in the last backward pass of the step")
                return
        assert sums is not None
        total = sums.sq_norms_of_sums if alone else workers**2 * self._sq_norm_of_gradients()
        self._pool(sums, total, workers, probed=probed)

    def _sharded_ended(self, sums: StepSums, total: float, error: Exception | None) -> None:
        assert self._sharded is not None
        self._pass = None
        self._due_call = self._schedule.due(self._step + 1)
        if error is not None:
            self._say(f"{error}" if isinstance(error, Unusable) else f"{type(error).__name__}: {error}")
        self._pool(sums, total, self._sharded.workers, probed=False)

    def _pool(self, sums: StepSums, total: float, workers: int, *, probed: bool) -> None:
        cells = self._accumulate * workers
        moments = sums.moments(total, cells) if sums.finite else ""
        if isinstance(moments, str) or not all(map(math.isfinite, moments)):
            self._skipped += 1
            self._say(moments if isinstance(moments, str) else "")
            return
        if sums.unscaled and self._window.outweighs(sums.pairs):
            return  # a short last batch of a loss that may be a mean: how much it says cannot be known
        self._window.add(moments, sums.pairs)
        self.history.append(
            Pending(
                moments=self._window.snapshot(),
                step=self._step + 1,
                examples=round(sums.used),
                batch_size=round(sums.examples),
                source=_source(sums, workers, self._accumulate, probed=probed),
                skipped=self._skipped,
                population=self._population,
                confidence=self._confidence,
            )
        )

    def _sq_norm_of_gradients(self) -> float:
        """Of what the step will use, before clipping; in the order of the parameters, so that all workers agree."""
        with torch.no_grad():
            found = [sq_norm(p.grad) for p in self._parameters.values() if p.grad is not None]
            return float(torch.stack(found).sum()) if found else 0.0

    def _count_workers(self) -> int:
        return 1 if self._workers is None else self._workers.workers

    def _refuse_workers_without_exchange(self) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        attached = self._workers is not None or self._sharded is not None
        if not attached and distributed and torch.distributed.get_world_size() > 1:
            raise ValueError(
                "several workers train this model, and the monitor sees only one of them. Call "
                "monitor.attach(ddp) with the DistributedDataParallel (or the model after fully_shard) once, on every "
                "worker, before training."
            )

    def _drop(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
        if self._pass is not None:
            self._pass.cancel()
        self._listening, self._pass, self._cells, self._step = None, None, [], -1
        self._due_call = 0
        if self._workers is not None:
            self._workers.send = None

    def _say(self, reason: str) -> None:
        if reason and reason not in self._said:
            self._said.add(reason)
            warnings.warn(f"Monitor: no reading at step {self._step + 1}: {reason}.", RuntimeWarning, stacklevel=2)


def _is_sharded(model: nn.Module) -> bool:
    # By name: the import is slow, and torch may be built without it.
    return any(kind.__name__ == "FSDPModule" for kind in type(model).__mro__)


def _any(gradient: Tensor) -> bool:
    return gradient._nnz() > 0 if gradient.is_sparse else bool(gradient.any())


def _source(sums: StepSums, workers: int, micro_batches: int, *, probed: bool) -> str:
    if probed:
        return "sign probe"
    parts = [f"{workers} workers"] * (workers > 1) + [f"{micro_batches} micro-batches"] * (micro_batches > 1)
    if sums.without_norms:
        return " × ".join(parts)
    return f"{round(sums.used)} of {round(sums.examples)} examples" + "".join(f", {part}" for part in parts)
