"""`Monitor`: B_D inside anybody's training loop, from the loop's own backward passes, by one line between the two.

On one step in sixteen (more often at first) a random subset of the batch's examples gives M̂² and the gradients that
arrive give ‖Σg‖²; if examples cannot be separated, micro-batches or workers do, and at last a sign probe. The pairs
(Û, M̂²) are pooled over a window of such steps as a ratio of sums, with a jackknife interval.

A monitor is a guest: after its first step it raises nothing, and every worker does the same whatever one of them lacks.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from variegrad.monitor.backward_pass import BackwardPass, Unusable
from variegrad.monitor.dependence import SIZE, Dependence, warning
from variegrad.monitor.exchange.lockstep import Lockstep
from variegrad.monitor.exchange.sums import NUMBERS, SQ_NORMS_OF_SUMS, StepSums, failed, of_worker
from variegrad.monitor.geometry import norm_of
from variegrad.monitor.history import History
from variegrad.monitor.loss import Watched, watched
from variegrad.monitor.reading import Reading
from variegrad.monitor.row_independence import RowIndependence
from variegrad.monitor.schedule import Schedule
from variegrad.monitor.sources.examples import Examples, Refused
from variegrad.monitor.sources.self_check import SelfCheck, to_compare
from variegrad.monitor.sources.sign_probe import probed_sq_norm
from variegrad.monitor.summary import Summary, summarize
from variegrad.monitor.window import Window
from variegrad.per_example.check import Schedule as CheckSchedule
from variegrad.per_example.evaluate import trained_parameters, unwrap
from variegrad.per_example.graph import awaits_first_pass

Hook = Callable[[Any, Any], Any]
# After so many complaints about one structure, the next source serves it, or it is left alone for a while.
PATIENCE = 3


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
        every: one optimizer step in so many is looked at.
        population: size n of the data set (in groups, if there are groups) if a step's examples are distinct members of
            it; None for fresh or augmented data.
        examples: how many examples of a batch to look at, drawn at random; None for 16 and no more than half of the
            batch, and more if their norms differ much.
        warm_up: so many first steps are looked at eight times as often.
        window: how many of the latest readings are pooled, at least 8, which is the default: while training moves, a
            longer window gives an interval of an average over the past.
        accumulate: micro-batches of one optimizer step; `watch` is called for each.
        groups: k, if k consecutive examples of a batch belong together (copies of an image, completions of a prompt,
            chunks of a document) and groups are what is drawn independently; B_D is then in groups.
        unit: what to call the unit that is counted; by default "examples", or "groups".
        optimizer: measure in the norm in which it descends: of Adam and its relatives the preconditioned one, from
            micro-batches, workers or a sign probe; of SGD the Euclidean one, as without it.
        on_reading: called with each reading, after the backward pass of its step.
        log: file to stream readings to, as lines of JSON.
        confidence: nominal level of the interval.

    Raises:
        TypeError: if the model is no module, or the optimizer's norm is no inner product's (signs, Muon).
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
        window: int | None = None,
        accumulate: int = 1,
        groups: int | None = None,
        unit: str | None = None,
        optimizer: Optimizer | None = None,
        on_reading: Callable[[Reading], object] | None = None,
        log: str | os.PathLike[str] | None = None,
        confidence: float = 0.95,
    ) -> None:
        for name, value, least in (("examples", examples, 2), ("accumulate", accumulate, 1), ("groups", groups, 1)):
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}; got {value}.")
        if population is not None and population < 2:
            raise ValueError(f"population must be the size of the data set, at least 2, or None; got {population}.")
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must lie strictly between 0 and 1; got {confidence}. Use 0.95, for example.")
        self.history = History(log)
        self._model = unwrap(model)
        self._schedule = Schedule(every=every, warm_up=warm_up)
        self._population, self._confidence, self._unit = population, confidence, unit
        self._accumulate, self._most, self._groups, self._on_reading = accumulate, examples, groups, on_reading
        self._window = Window(window)
        self._exchange: Lockstep | None = None
        self._sharded = False
        self._skipped = 0
        self._calls = 0  # of watch
        self._asleep = 0  # so many calls need no look
        self._resumed_at = 0  # steps before this process, under an exchange
        self._step = -1
        self._passes: list[BackwardPass] = []  # of this step's micro-batches
        self._waiting: BackwardPass | None = None
        self._started = False
        self._out_of_step = 0
        self._looks = 0
        self._trouble: dict[int, tuple[int, int]] = {}  # structure → consecutive complaints, and the look to wait for
        self._trained(trained_parameters(self._model))
        self._norm = norm_of(optimizer, self._model, self._parameters)
        if isinstance(model, DistributedDataParallel) or _is_sharded(model):
            self.attach(model)

    @property
    def latest(self) -> Reading | None:
        """The last reading; None before the first."""
        return self.history[-1] if len(self.history) else None

    @property
    def due(self) -> bool:
        """Whether the next call of `watch` looks; what is only needed then need not be made at other steps."""
        if self._exchange is not None:
            return self._exchange.watched and not self._exchange.disagreement
        return self._calls >= self._asleep

    def watch(
        self,
        loss: Tensor,
        *,
        output: Tensor | Sequence[Tensor] | None = None,
        groups: Sequence[int] | Tensor | None = None,
    ) -> None:
        """Tells the monitor of a step's losses, between forward and backward; most calls only count.

        Args:
            loss: one loss per example, shape (b,), which the loop then averages or sums; or, with `output`, the scalar.
            output: if there is only a scalar loss: what it was computed from, first dimension the examples; several
                outputs, such as policy and value or the heads of a detector, as a tuple.
            groups: the group that each example belongs to, shape (b,), if groups are uneven or not consecutive.

        Returns:
            Nothing; see `latest` after the backward pass.

        Raises:
            TypeError: in the first call that is looked at, if an argument is no floating-point tensor.
            ValueError: in the first call that is looked at, if shapes do not fit, there is no graph, or examples cannot
                be separated. Later calls warn once per kind of problem, and training goes on.
        """
        self._calls += 1
        if self._calls <= self._asleep:
            return
        try:
            self._look(loss, output, self._groups if groups is None else groups)
        except Exception as raised:  # noqa: BLE001 - raised below, or told and left out
            error = _named(raised)
            first, self._started = not self._started, True
            if first and isinstance(error, ValueError | TypeError):
                raise error from (None if error is raised else raised)
            self._leave_out(_text(error))
            self._drop()

    def attach(self, model: nn.Module, *, inner: Hook | None = None, state: object = None) -> None:
        """Makes readings those of all workers, equal on each; to be called on every worker.

        On watched steps the workers add up 144 bytes in one more all-reduce, decided by a count of reductions
        that is equal on all of them.

        Args:
            model: the DistributedDataParallel around the monitor's model, without a communication hook of its own; or
                the monitor's model itself after `fully_shard`.
            inner: the hook to compose with: torch's fp16_compress_hook or bf16_compress_hook; None for the plain mean.
            state: of the inner hook.

        Returns:
            Nothing.

        Raises:
            ValueError: if the wrapper has a hook already, wraps another model, or the inner hook is not known to
                average; if a sharded model cannot be listened to.
        """
        if unwrap(model) is not self._model:
            raise ValueError("attach: the model must be the one that the Monitor was made with, or wrap it.")
        if isinstance(model, DistributedDataParallel):
            from variegrad.monitor.exchange import ddp  # noqa: PLC0415 - torch may be built without it

            ddp.check_averages(inner)
            lockstep = Lockstep(self._schedule, self._accumulate, model.process_group)
            ddp.register(lockstep, inner, model, state)
            self._exchange = lockstep
            return
        if not _is_sharded(model):
            raise ValueError(
                f"attach takes a DistributedDataParallel or a model after fully_shard; got {type(model).__name__}. "
                "The older FullyShardedDataParallel does not show local gradients."
            )
        if not self._norm.exact_for_examples:
            raise ValueError(
                f"attach: the second moments of {self._norm.name} are not read of fully sharded models. Leave "
                "optimizer= out for the Euclidean bound."
            )
        if inner is not None:
            raise ValueError(
                "attach: fully sharded models have no communication hook to compose with. Leave inner out."
            )
        from variegrad.monitor.exchange.fsdp import ShardedLockstep  # noqa: PLC0415 - as above

        self._exchange, self._sharded = ShardedLockstep(self._schedule, self._accumulate, model), True

    def compose(self, inner: Hook | None = None) -> Hook:
        """The hook of `attach`, for a framework that registers hooks itself.

        Args:
            inner: as for `attach`.

        Returns:
            A communication hook, `hook(state, bucket)`, to be registered with the inner hook's state.

        Raises:
            ValueError: as `attach`.
        """
        from variegrad.monitor.exchange import ddp  # noqa: PLC0415 - torch may be built without it

        ddp.check_averages(inner)
        world = torch.distributed.group.WORLD
        assert world is not None
        self._exchange = Lockstep(self._schedule, self._accumulate, world)
        return ddp.communication_hook(self._exchange, inner)

    def summary(self) -> Summary:
        """What the readings so far come to, for the end of a run: `print(monitor.summary())`.

        Returns:
            Counts, the typical and the least bound, the efficiency of the usual batch, and what gave no reading.
        """
        return summarize(self.history)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and text that survive a checkpoint, five for each pooled reading.

        Returns:
            What `load_state_dict` takes.
        """
        calls = self._calls
        if self._exchange is not None:
            calls = (self._exchange.step + self._resumed_at) * self._accumulate
        return {
            "calls": calls,
            "skipped": self._skipped,
            "window": self._window.state(),
            "history": self.history.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes from a checkpoint.

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
        self._calls, self._skipped, self._asleep = int(state["calls"]), int(state["skipped"]), 0
        if self._exchange is not None:  # workers stay in lockstep: their count of reductions is not touched
            self._resumed_at = self._calls // self._accumulate - self._exchange.step

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

    # ---- the place of a call in its step

    def _look(self, loss: Tensor, output: object, groups: object) -> None:
        if self._waiting is not None:  # its backward pass never came
            self._drop()
        if not (self._due_alone() if self._exchange is None else self._due_together()):
            return
        self._looks += 1
        if not self._sharded and not self._same_parameters():
            return
        found = watched(loss, output, groups, {} if self._sharded else self._parameters, self._independence)
        if awaits_first_pass(found.graph):
            return
        self._listen(found)
        self._started = True

    def _due_alone(self) -> bool:
        step, micro = divmod(self._calls - 1, self._accumulate)
        if micro == 0:
            self._passes = []
            if (due := self._schedule.due(step)) > step:
                self._asleep = due * self._accumulate
                return False
            self._step = step
        elif step != self._step or len(self._passes) != micro:  # an earlier micro-batch was lost
            self._asleep = self._schedule.due(step + 1) * self._accumulate
            return False
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if distributed and torch.distributed.get_world_size() > 1:
            raise ValueError(
                "several workers train this model, and the monitor sees only one of them. Call "
                "monitor.attach(ddp) with the DistributedDataParallel (or the model after fully_shard) once, on every "
                "worker, before training."
            )
        return True

    def _due_together(self) -> bool:
        assert self._exchange is not None
        if self._exchange.disagreement:
            self._leave_out(self._exchange.disagreement)
            self._asleep = 1 << 62
            return False
        if not self._exchange.watched:
            return False
        if self._exchange.step != self._step:
            self._passes, self._step = [], self._exchange.step
        return True

    # ---- from losses to a pass

    def _listen(self, found: Watched) -> None:
        structure = found.graph.signature
        if self._looks < self._trouble.get(structure, (0, 0))[1]:
            return
        if found.graph.hides_parameters:
            raise ValueError(
                "a re-entrant activation checkpoint hides parameters from the graph, so that nothing can be read "
                "from it. Call torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
            )
        micro = len(self._passes)
        rows: list[int] = []
        capture = probe = check = None
        hooked = any(self._parameters[name]._backward_hooks for name in found.graph.leaves)
        if found.count > 1 and not self._sharded:
            try:
                if found.coupled or not self._norm.exact_for_examples:
                    raise Refused(found.coupled)
                capture, rows = self._examples.capture(found, self._step, micro, self._rank())
            except Refused as reason:
                if self._accumulate * self._workers() == 1:
                    if found.coupled:
                        raise ValueError(str(reason)) from reason
                    if hooked:
                        raise Unusable(f"{reason}, and there are no micro-batches to compare") from reason
                    probe = probed_sq_norm(found, self._model, self._parameters, self._norm, self._step, micro)
        # An extra backward pass would run the user's hooks on parameters once more.
        silent = hooked or found.coupled or self._sharded
        if found.count and not silent and self._checks.due(structure):
            number = self._checked[structure] = self._checked.get(structure, 0) + 1
            check = SelfCheck(found, self._model, to_compare(found, self._parameters, number), rows)
        self._waiting = BackwardPass(
            found, self._parameters, self._norm, capture=capture, rows=rows, probe=probe, check=check,
            reached=self._reached.get(structure), sharded=self._sharded, ended=self._ended,
        )  # fmt: skip
        if self._exchange is not None:
            self._exchange.offer = self._offer

    def _offer(self) -> Tensor:
        """This worker's sums at a reduction; NaN if they would be wrong."""
        assert self._exchange is not None
        passes = [*self._passes] if self._waiting is None else [*self._passes, self._waiting]
        device = next(iter(self._parameters.values())).device
        try:
            if not all(one.begun for one in passes):
                return failed(device)
            if self._sharded:
                known = all(one.watched.scale_known for one in passes)
                weights = [one.weights for one in passes]
                sums = of_worker([self._exchange.cell(weights, passes=len(passes), scale_known=known)])  # type: ignore[attr-defined]
            else:
                sums = of_worker([one.cell() for one in passes])
            return torch.where(torch.as_tensor(passes[0].dirty, device=device), math.nan, sums)
        except Exception as error:  # noqa: BLE001 - within the user's backward pass
            passes[-1].problem = error
            return failed(device)

    # ---- from a pass to a reading

    def _ended(self, done: BackwardPass) -> None:
        if self._exchange is not None and self._exchange.open:
            torch.autograd.Variable._execution_engine.queue_callback(lambda: self._ended(done))
            return
        try:
            self._waiting = None
            if done.problem is not None and not str(done.problem):  # torch.autograd.grad: not a step's pass
                self._drop()
                return
            if done.problem is not None:
                self._complain(done, _text(done.problem))
            self._passes.append(done)
            if self._exchange is not None:
                message = self._exchange.take()
                if message is not None:
                    self._complete(message)
            elif len(self._passes) == self._accumulate:
                self._asleep = self._schedule.due(self._step + 1) * self._accumulate
                self._complete(of_worker([one.cell() for one in self._passes]))
        except Exception as error:  # noqa: BLE001 - within the user's backward pass
            self._leave_out(_text(error))
            self._drop()

    def _complete(self, sums: Tensor) -> None:
        """Everything that the step said is read here, at once: each read waits for the device."""
        passes = self._passes
        total = sums[-1] if self._sharded else self._sq_norm_of_total(sums)
        dirty = [torch.as_tensor(one.dirty, device=sums.device).double().view(1) for one in passes]
        arrived = [one.cell()[SQ_NORMS_OF_SUMS].view(1) for one in passes if self._exchange is None]
        errors = [one.errors for one in passes if one.errors is not None]
        test = not (self._dependence.done or self._sharded)
        sketch = [self._dependence.sketch(self._parameters)] if test else []
        numbers = torch.cat([*sketch, sums, total.view(1), *dirty, *arrived, *errors]).tolist()
        sketched, numbers = numbers[: SIZE * test], numbers[SIZE * test :]
        step_sums, sq_norm_of_total = StepSums(*numbers[:NUMBERS]), numbers[NUMBERS]
        rest = numbers[NUMBERS + 1 :]
        if self._exchange is not None and step_sums.passes < self._accumulate * step_sums.watchers:
            if self._sharded:
                self._leave_out(
                    f"a step of fewer than {self._accumulate} micro-batches was reduced. Call "
                    "model.set_requires_gradient_sync(False) for all micro-batches of a step but the last"
                )
            return  # each micro-batch is reduced, and this was not the last; or the loop stepped early
        held, norms = rest[: len(dirty)], rest[len(dirty) : len(dirty) + len(arrived)]
        if self._is_out_of_step(held, norms):
            return
        self._compare(passes, rest[len(dirty) + len(arrived) :])
        self._passes = []
        self._pool(step_sums, sq_norm_of_total, passes[-1], [] if any(held) else sketched)

    def _sq_norm_of_total(self, sums: Tensor) -> Tensor:
        """V: of what the step will use, before clipping; in the order of the parameters, equal on all workers."""
        if self._exchange is None and self._accumulate == 1:
            return sums[SQ_NORMS_OF_SUMS]
        with torch.no_grad():
            for name in frozenset().union(*(one.reached for one in self._passes)):
                if self._parameters[name].grad is None:
                    raise Unusable(f"the gradient of parameter {name!r} was gone when the backward pass ended")
            found = [self._norm.sq_norm(name, p.grad) for name, p in self._parameters.items() if p.grad is not None]
            return self._workers() ** 2 * torch.stack([*found, sums.new_zeros(())]).sum()

    def _is_out_of_step(self, dirty: list[float], norms: list[float]) -> bool:
        """Whether the passes are not the micro-batches of one step, by what `.grad` held when each began."""
        if self._accumulate == 1 and self._exchange is None:
            return False
        clean = [k for k, held in enumerate(dirty) if not held and any(norms[:k])]
        if clean:
            # The loop stepped early, as at the end of an epoch, or began before: a step begins where .grad was empty.
            self._passes = self._passes[clean[-1] :]
            self._calls, self._asleep = self._step * self._accumulate + len(self._passes), 0
            return True
        self._out_of_step = self._out_of_step + 1 if dirty[0] else 0
        if self._out_of_step > 1:
            self._leave_out(
                "gradients of earlier backward passes were still in .grad when a step began. Are they accumulated over "
                "more micro-batches than Monitor(accumulate=…) says, or not zeroed between steps?"
            )
        if dirty[0]:
            self._passes = []
        return bool(dirty[0])

    def _compare(self, passes: Sequence[BackwardPass], errors: list[float]) -> None:
        for one in passes:
            structure = one.watched.graph.signature
            if one.errors is None:
                if one.problem is None and one.check is None:
                    self._reached.setdefault(structure, one.reached)
                continue
            mine, errors = errors[: len(one.errors)], errors[len(one.errors) :]
            assert one.check is not None
            if not all(map(math.isfinite, mine)):
                self._check_again(structure)
            elif (said := one.check.complaint(mine)) is not None:
                self._complain(one, said)
            else:
                self._reached.setdefault(structure, one.reached)
                self._trouble.pop(structure, None)

    def _complain(self, one: BackwardPass, said: str) -> None:
        """One more complaint about a structure: ever longer waits, so that nothing is tried again for ever."""
        structure = one.watched.graph.signature
        self._leave_out(said)
        self._check_again(structure)
        times = self._trouble.get(structure, (0, 0))[0] + 1
        if times == PATIENCE and one.capturing:
            self._examples.refuse(one.watched, said)
        wait = 0 if times < PATIENCE else 2 ** min(times, 20)
        self._trouble[structure] = times, self._looks + 1 + wait

    def _check_again(self, structure: int) -> None:
        self._checks.again(structure)
        self._checked.pop(structure, None)

    def _pool(self, sums: StepSums, sq_norm_of_total: float, last: BackwardPass, sketched: list[float]) -> None:
        if sums.unwatched > 0:
            missing = self._workers() - round(sums.watchers)
            self._leave_out(f"{missing} of {self._workers()} workers did not call watch at this step")
            return
        moments = sums.moments(sq_norm_of_total) if sums.finite else ""
        if isinstance(moments, str) or not all(map(math.isfinite, moments)):
            self._skipped += 1
            self._leave_out(
                moments if isinstance(moments, str) else "",
                quiet="gradients were not finite, or a worker had nothing to send",
            )
            return
        if sums.cells_of_unknown_scale and self._window.outweighs(sums.pairs):
            self._leave_out("", quiet="short batches of a loss that may be a mean: how much they say is not known")
            return
        if sketched and sums.weight:
            factor = self._workers() / sums.weight  # of the mean gradient
            ratio = self._dependence.add(moments.mean_product, [factor * value for value in sketched])
            if ratio > 1:
                warnings.warn(f"Monitor: {warning(ratio)}.", RuntimeWarning, stacklevel=2)
        step = self._step + 1 + self._resumed_at
        self._window.add(step, round(sums.examples), moments, sums.pairs)
        self._examples.adapt(sums.cv2)
        reading = Reading.from_estimate(
            self._window.estimate(population=self._population, confidence=self._confidence),
            step=step,
            first_step=self._window.first_step,
            examples=round(sums.used),
            batch_size=round(sums.examples),
            usual_batch_size=self._window.usual_batch_size,
            source=_source(sums, self._workers(), 1 if self._sharded else self._accumulate, last),
            pooled_steps=len(self._window),
            skipped=self._skipped,
            unit=self._unit or ("examples" if last.watched.groups is None else "groups"),
            group_size=last.watched.examples / last.watched.count if last.watched.count else 1.0,
            missing=self._workers() - round(sums.workers),
            geometry=self._norm.name,
        )
        self.history.append(reading)
        if self._on_reading is not None:
            try:
                self._on_reading(reading)
            except Exception as error:  # noqa: BLE001 - within the user's backward pass
                self._leave_out(f"on_reading failed: {type(error).__name__}: {error}")

    # ---- state

    def _trained(self, parameters: dict[str, nn.Parameter]) -> None:
        """What is learned of a model's graphs belongs to one set of parameters."""
        self._parameters = parameters
        self._identities = [id(p) for p in parameters.values()]
        self._examples = Examples(self._model, parameters, self._most)
        self._dependence = Dependence()
        self._independence, self._checks = RowIndependence(), CheckSchedule(every=32)
        self._checked: dict[int, int] = {}  # structure → checks made
        self._reached: dict[int, frozenset[str]] = {}

    def _same_parameters(self) -> bool:
        """Follow layers that are frozen, unfrozen or replaced: B_D of other parameters is another quantity."""
        if [id(p) for p in self._model.parameters() if p.requires_grad] == self._identities:
            return True
        known = set(self._identities)
        parameters = trained_parameters(self._model)
        if self._exchange is not None and not {id(p) for p in parameters.values()} <= known:
            self._leave_out(
                "parameters are trained that DistributedDataParallel does not average, since they were frozen or "
                "another module when it was made. Wrap the model again, and make another Monitor"
            )
            return False
        self._trained(parameters)
        self._window.clear()
        self.history.leave_out(self._step + 1, "other parameters are trained than before: the window begins again")
        return True

    def _workers(self) -> int:
        return 1 if self._exchange is None else self._exchange.workers

    def _rank(self) -> int:
        return 0 if self._exchange is None else torch.distributed.get_rank()

    def _drop(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting, self._passes, self._step, self._asleep = None, [], -1, 0
        if self._exchange is not None:
            self._exchange.offer = None

    def _leave_out(self, reason: str, quiet: str = "") -> None:
        """No reading at this step: a reason in the history, and one warning per kind."""
        reason = reason.rstrip(".")
        new = self.history.leave_out(self._step + 1, reason or quiet)
        if new and reason:
            warnings.warn(f"Monitor: no reading at step {self._step + 1}: {reason}.", RuntimeWarning, stacklevel=2)


def _is_sharded(model: nn.Module) -> bool:
    # By name: the import is slow, and torch may be built without it.
    return any(kind.__name__ == "FSDPModule" for kind in type(model).__mro__)


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, Unusable | ValueError) else f"{type(error).__name__}: {error}"


def _source(sums: StepSums, workers: int, micro_batches: int, last: BackwardPass) -> str:
    if last.probed:
        return "sign probe"
    present = round(sums.workers)
    of_workers = f"{workers} workers" if present == workers else f"{present} of {workers} workers"
    parts = [of_workers] * (workers > 1) + [f"{micro_batches} micro-batches"] * (micro_batches > 1)
    if sums.cells_without_norms:
        return " × ".join(parts)
    unit = "examples" if last.watched.groups is None else "groups"
    return f"{round(sums.used)} of {round(sums.examples)} {unit}" + "".join(f", {part}" for part in parts)


def _named(error: Exception) -> Exception:
    """The commonest mistake of a loop by its name; any other error as it is."""
    if isinstance(error, RuntimeError) and "backward through the graph a second time" in str(error):
        return ValueError(
            "watch: the loss has no graph any more. Call watch between forward and backward, not after it."
        )
    return error
