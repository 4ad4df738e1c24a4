"""`Monitor`: B_D during training, from the loop's own backward passes.

On one step in sixteen (more often at first) a random subset of the batch's examples gives M̂² and the gradients that
arrive give ‖Σg‖²; if examples cannot be separated, micro-batches or workers do, and finally a sign probe. The pairs
(Û, M̂²) are pooled over a window of such steps as a ratio of sums, with a jackknife interval.

A Monitor must never harm the training: after its first step it raises no errors, and all workers make the same calls
whatever one of them lacks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from variegrad.monitor.backward_pass import BackwardPass, Unusable
from variegrad.monitor.dependence import Dependence
from variegrad.monitor.exchange.lockstep import Lockstep
from variegrad.monitor.exchange.sums import (
    CELLS_WITHOUT_NORMS,
    MEASURED,
    NUMBERS,
    TOTAL,
    StepSums,
    failed,
    of_process,
    of_worker,
)
from variegrad.monitor.geometry import dual_norms, norm_of
from variegrad.monitor.history import History
from variegrad.monitor.listener import Listener
from variegrad.monitor.loop import FOR_EVER, Loop
from variegrad.monitor.loss import Watched, watched
from variegrad.monitor.norms import Euclidean
from variegrad.monitor.pool import Pool
from variegrad.monitor.reading import Reading
from variegrad.monitor.schedule import Schedule
from variegrad.monitor.sources.folds import Folds
from variegrad.monitor.summary import Summary, summarize
from variegrad.per_example.evaluate import trained_parameters, unwrap
from variegrad.per_example.graph import awaits_first_pass

Hook = Callable[[Any, Any], Any]


class Monitor:
    """Estimates the batch-size bound B_D during training, from your own backward passes.

    Example:
        ```python
        monitor = vg.Monitor(model, every=16, population=len(dataset))
        per_example = losses(model, batch)
        monitor.watch(per_example)
        per_example.mean().backward()
        optimizer.step()
        ```

    Args:
        model: the model that is trained; for a DistributedDataParallel or a fully sharded model, `attach` is called.
        every: k: one optimizer step in k is measured.
        population: size n of the data set (in groups, if there are groups) if a step's examples are distinct members of
            it; None for fresh or augmented data.
        examples: how many randomly drawn examples of each micro-batch to measure; None for 16 per step, at most half of
            it, or more if their norms differ a lot (`estimators.norms_needed`).
        warm_up: during this many first steps, steps are measured eight times as often.
        window: the number of latest measured steps that are pooled, at least 8 (the default); with a longer window, the
            interval is for an average over the past rather than for the current weights.
        accumulate: micro-batches of one optimizer step; `watch` is called for each.
        groups: k, if k consecutive examples of a batch belong together (copies of an image, completions of a prompt,
            chunks of a document) and only groups are drawn independently; B_D is then in groups.
        unit: the name of the unit that is counted; "examples" or "groups" by default.
        optimizer: measure in the norm in which it descends: the preconditioned norm for Adam and its relatives, from
            micro-batches, workers or a sign probe; the dual norm for sign methods and Muon, as a bracket from 8 folds
            of a step (8 more backward passes per measured step); the Euclidean norm for SGD, as without this argument.
        per: parameter name → part of the model, such as `vg.estimators.by_layer`: `Reading.parts` then has the bound
            of each part, from the same pass.
        on_reading: called with each reading, after the backward pass of its step.
        log: file to stream readings to, as lines of JSON.
        confidence: nominal level of the interval.

    Raises:
        TypeError: if the model is not a module, or the optimizer's norm is not known.
        ValueError: if a number is out of range, or the model has no trainable parameters.
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
        per: Callable[[str], str] | None = None,
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
        self._model, self._groups = unwrap(model), groups
        self._loop = Loop(Schedule(every=every, warm_up=warm_up), accumulate)
        self._pool = Pool(
            self.history, window, population=population, confidence=confidence, unit=unit, on_reading=on_reading
        )
        self._started = False
        self._most, self._per = examples, per
        parameters = trained_parameters(self._model)
        duals = dual_norms(optimizer, parameters)
        norm = Euclidean() if duals else norm_of(optimizer, self._model, parameters)
        self._listener = Listener(self._model, parameters, norm, examples, per)
        self._folds = None
        if duals:
            if groups is not None or per is not None:
                raise ValueError("optimizer: groups= and per= are not supported for sign methods and Muon.")
            self._folds = Folds(self._model, duals, parameters, accumulate, self._pool.window.size)
        if isinstance(model, DistributedDataParallel) or _is_sharded(model):
            self.attach(model)

    @property
    def latest(self) -> Reading | None:
        """The last reading; None before the first."""
        return self.history[-1] if len(self.history) else None

    @property
    def due(self) -> bool:
        """Whether the next call of `watch` measures; other steps can skip preparing its arguments."""
        return self._loop.due

    def watch(
        self,
        loss: Tensor,
        *,
        output: Tensor | Sequence[Tensor] | None = None,
        groups: Sequence[int] | Tensor | None = None,
    ) -> None:
        """Passes a step's losses to the Monitor, between forward and backward; most calls only count.

        Args:
            loss: one loss per example, shape (b,), which the loop then averages or sums; or, with `output`, the scalar.
            output: with a scalar loss, the model output it was computed from, whose first dimension is the examples;
                several outputs, such as policy and value or the heads of a detector, as a tuple.
            groups: the group that each example belongs to, shape (b,), if groups are uneven or not consecutive.

        Returns:
            Nothing; see `latest` after the backward pass.

        Raises:
            TypeError: in the first measured call, if an argument is not a floating-point tensor.
            ValueError: in the first measured call, if shapes do not match, there is no graph, or examples cannot be
                separated. Later calls only warn, once per kind of problem.
        """
        loop = self._loop
        loop.calls += 1
        if loop.calls <= loop.asleep:
            return
        try:
            self._look(loss, output, groups)
        except Exception as raised:  # noqa: BLE001 - raised below, or told and left out
            error = _named(raised)
            first, self._started = not self._started, True
            if first and isinstance(error, ValueError | TypeError):
                raise error from (None if error is raised else raised)
            self._pool.leave_out(loop.step + 1, _text(error))
            loop.drop()

    def attach(self, model: nn.Module, *, inner: Hook | None = None, state: object = None) -> None:
        """Makes readings cover all workers, equal on each of them. Call it on every worker.

        Measured steps need one more all-reduce, of 144 bytes. A count of reductions, equal on all workers, decides
        which steps these are.

        Args:
            model: the DistributedDataParallel around the monitor's model, without a communication hook of its own; or
                the monitor's model itself after `fully_shard`.
            inner: the hook to compose with, such as torch's fp16_compress_hook or a `MechanismHook`; None for the plain
                mean. If it is not known to average, the plain gradients are averaged as well on measured steps.
            state: of the inner hook.

        Returns:
            Nothing.

        Raises:
            ValueError: if the wrapper already has a hook or wraps another model; if a sharded model is not supported;
                if parts or another norm than the Euclidean one are requested together with such a hook.
        """
        if self._folds is not None:
            raise ValueError(
                "attach: for sign methods and Muon, several workers are not supported. Leave out optimizer= to get "
                "the Euclidean bound, or estimate the bound from one batch: variegrad.estimate(model, losses, batch, "
                "geometry=Sign()) or Spectral()."
            )
        if unwrap(model) is not self._model:
            raise ValueError("attach: the model must be the one that was passed to the Monitor, or wrap it.")
        if isinstance(model, DistributedDataParallel):
            from variegrad.monitor.exchange import ddp  # noqa: PLC0415 - torch may be built without it

            lockstep = self._lockstep(model.process_group, inner)
            ddp.register(lockstep, inner, model, state)
            self._loop.exchange = lockstep
            return
        if not _is_sharded(model):
            raise ValueError(
                f"attach takes a DistributedDataParallel or a model after fully_shard; got {type(model).__name__}. "
                "The older FullyShardedDataParallel does not show local gradients."
            )
        if not self._listener.norm.exact_for_examples or self._per is not None:
            raise ValueError(
                "attach: for fully sharded models, only the Euclidean bound of the whole model is supported. Leave "
                "out optimizer= and per=."
            )
        if inner is not None:
            raise ValueError(
                "attach: fully sharded models have no communication hook to compose with. Leave out inner=."
            )
        from variegrad.monitor.exchange.fsdp import ShardedLockstep  # noqa: PLC0415 - as above

        loop = self._loop
        loop.exchange, loop.sharded = ShardedLockstep(loop.schedule, loop.accumulate, model), True

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

        world = torch.distributed.group.WORLD
        assert world is not None
        self._loop.exchange = self._lockstep(world, inner)
        return ddp.communication_hook(self._loop.exchange, inner)

    def summary(self) -> Summary:
        """A summary of the readings so far, for the end of a run: `print(monitor.summary())`.

        Returns:
            Counts, the typical and the lowest bound, the efficiency of the usual batch size, and why steps gave no
            reading.
        """
        return summarize(self.history, self.average())

    def average(self) -> Reading | None:
        """B_D on average over the steps of the latest 64 readings: a narrower interval, of another quantity.

        During training, B_D at the last step may be outside this interval. `latest` is for the last step; because of
        its short window, its interval often has no upper limit.

        Returns:
            A reading that names the steps it averages; None before the first one, and right after a resume.
        """
        return self._pool.average()

    def state_dict(self) -> dict[str, Any]:
        """The state as plain numbers and text, for a checkpoint; five numbers per pooled reading.

        Returns:
            What `load_state_dict` takes.
        """
        return {
            "calls": self._loop.state(),
            "skipped": self._pool.skipped,
            "spread": self._listener.examples.spread,
            "window": self._pool.window.state() if self._folds is None else self._folds.state(),
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
        if state.keys() - {"spread"} != {"calls", "skipped", "window", "history"}:
            raise ValueError(f"state must be what Monitor.state_dict() returned; got the keys {sorted(state)}.")
        (self._pool.window if self._folds is None else self._folds).load(state["window"])
        self.history.load_state_dict(state["history"])
        self._pool.skipped = int(state["skipped"])
        self._listener.examples.spread = float(state.get("spread", 1.0))
        self._loop.load(int(state["calls"]))

    def close(self) -> None:
        """Removes hooks that still wait for a backward pass, and closes the log."""
        self._loop.drop()
        self.history.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- from losses to a pass

    def _look(self, loss: Tensor, output: object, groups: object) -> None:
        loop = self._loop
        if loop.exchange is not None and loop.exchange.disagreement:
            self._pool.leave_out(loop.number, loop.exchange.disagreement)
            loop.asleep = FOR_EVER
            return
        if not loop.begins():
            return
        if not self._started:
            loop.refuse_unseen_workers()
        found = self._found(loss, output, groups)
        if found is None:
            return
        if loop.exchange is not None and awaits_first_pass(found.graph):
            return
        if self._folds is not None:
            self._fold(self._folds, found)
        else:
            loop.waiting = self._listener.listen(found, loop, self._ended)
        if loop.waiting is not None and loop.exchange is not None:
            loop.exchange.offer = self._offer
        self._started = True

    def _fold(self, folds: Folds, found: Watched) -> None:
        loop, pool = self._loop, self._pool
        if found.coupled:
            raise ValueError(found.coupled)
        folds.add(found, len(loop.passes))
        loop.passes.append(found)
        if len(loop.passes) == loop.accumulate:
            loop.ends()
            loop.passes = []
            reading = folds.reading(loop, unit=pool.unit or "examples", **pool.common)
            if reading is None:
                pool.skipped += 1
                pool.leave_out(loop.number, "", quiet="gradients were not finite")
            else:
                pool.tell(reading)

    def _found(self, loss: Tensor, output: object, groups: object) -> Watched | None:
        """What is watched, of the parameters that are trained now; None if they are not known."""
        groups, listener = self._groups if groups is None else groups, self._listener
        parameters = {} if self._loop.sharded else listener.parameters
        try:
            found = watched(loss, output, groups, parameters, listener.independence)
            if self._loop.sharded or (not found.graph.strays and all(p.requires_grad for p in listener.trained)):
                return found
        except ValueError:
            if self._loop.sharded or not self._same_parameters() or self._listener is listener:
                raise
        if not self._same_parameters():
            return None
        return watched(loss, output, groups, self._listener.parameters, self._listener.independence)

    def _offer(self) -> Tensor:
        """This worker's sums at a reduction; NaN if they would be wrong."""
        loop, parameters = self._loop, self._listener.parameters
        assert loop.exchange is not None
        passes = [*loop.passes] if loop.waiting is None else [*loop.passes, loop.waiting]
        device = next(iter(parameters.values())).device
        length = NUMBERS + 2 * len(self._listener.parts)
        try:
            if not all(one.begun for one in passes):
                return failed(device, length)
            if loop.sharded:
                known = all(one.watched.scale_known for one in passes)
                weights = [one.weights for one in passes]
                sums = of_worker([loop.exchange.cell(weights, passes=len(passes), scale_known=known)])  # type: ignore[attr-defined]
            else:
                sums = of_worker([one.sums() for one in passes])
            return torch.where(torch.as_tensor(passes[0].dirty, device=device), math.nan, sums)
        except Exception as error:  # noqa: BLE001 - within the user's backward pass
            passes[-1].problem = error
            return failed(device, length)

    # ---- from a pass to a reading

    def _ended(self, done: BackwardPass) -> None:
        loop = self._loop
        if loop.exchange is not None and loop.exchange.open:
            torch.autograd.Variable._execution_engine.queue_callback(lambda: self._ended(done))
            return
        try:
            loop.waiting = None
            if done.problem is not None and not str(done.problem):  # torch.autograd.grad: not a step's pass
                loop.drop()
                return
            if done.problem is not None:
                self._complain(done, _text(done.problem))
            loop.passes.append(done)
            if loop.exchange is not None:
                message = loop.exchange.take()
                if message is not None:
                    self._complete(message)
            elif len(loop.passes) == loop.accumulate:
                loop.ends()
                self._complete(None)
        except Exception as error:  # noqa: BLE001 - within the user's backward pass
            self._pool.leave_out(loop.step + 1, _text(error))
            loop.drop()

    def _complete(self, message: Tensor | None) -> None:
        """Everything that the step said is read here, at once: each read waits for the device."""
        loop, pool, listener = self._loop, self._pool, self._listener
        passes = loop.passes
        alone = message is None
        beside = loop.exchange is not None and bool(loop.exchange.beside)  # .grad holds what another hook made
        measured, totals, dirty, errors, doubts, sketch = _read(
            [one.numbers() for one in passes] if message is None else [message],
            [] if loop.sharded or (alone and loop.cells == 1) else [self._sq_norms_of_total()],
            [torch.as_tensor(one.dirty) for one in passes if one.dirty is not False],
            [one.errors for one in passes if one.errors is not None],
            [one.doubts for one in passes if one.doubts is not None],
            []
            if pool.dependence.done or loop.sharded or beside
            else [pool.dependence.numbers(listener.parameters, passes[-1].watched.losses)],
        )
        held, wrong, broken = iter(dirty), iter(errors), iter(doubts)
        began_with = [next(held)[0] if one.dirty is not False else 0.0 for one in passes]
        errors = [next(wrong) if one.errors is not None else [] for one in passes]
        if alone:
            numbers = of_process([one.fields(mine) for one, mine in zip(passes, measured, strict=True)])
            whole = totals[0] if totals else [measured[0][3], *measured[0][MEASURED::3]]
            if any(error > 1 for mine in errors for error in mine):
                numbers = [math.nan] * len(numbers)
        else:
            numbers = measured[0]
            whole = totals[0] if totals else [numbers[TOTAL]]
            if self._is_partial(StepSums(*numbers[:NUMBERS])):
                return
        listener.all_sums = listener.all_sums or numbers[CELLS_WITHOUT_NORMS] > 0
        spoke = [alone and any(mine[3] > 0 or mine[5] > 0 for mine in measured[:k]) for k in range(len(passes))]
        if loop.cells > 1 and self._is_out_of_step(began_with, spoke):
            return
        for one, mine in zip(passes, errors, strict=True):
            if (complaint := listener.learn(one, mine)) is not None:
                self._complain(one, complaint)
        loop.passes = []
        settled = [one.settle(next(broken)) for one in passes if one.doubts is not None]
        if any(settled):
            pool.leave_out(
                loop.number,
                "",
                quiet="this batch contradicted what was learned about the model, which has been updated",
            )
            return
        sums = pool.add(numbers, whole, passes[-1], loop, [] if any(began_with) or not sketch else sketch[0])
        if sums is not None:
            listener.examples.adapt(sums.cv2)

    def _is_partial(self, sums: StepSums) -> bool:
        loop = self._loop
        if sums.passes >= loop.accumulate * sums.watchers:  # or NaN is among them, which ends elsewhere
            return False
        if loop.sharded:
            self._pool.leave_out(
                loop.step + 1,
                f"a step of fewer than {loop.accumulate} micro-batches was reduced. Call "
                "model.set_requires_gradient_sync(False) for all micro-batches of a step but the last",
            )
        return sums.passes < loop.accumulate * sums.watchers  # each is reduced, or the loop stepped early

    def _sq_norms_of_total(self) -> Tensor:
        """V of the model and its parts: of what the step will use, before clipping; equal on all workers."""
        loop, parameters, norm = self._loop, self._listener.parameters, self._listener.norm
        zero = torch.zeros((), dtype=torch.float64, device=next(iter(parameters.values())).device)
        with torch.no_grad():
            if loop.exchange is not None and loop.exchange.beside:
                return loop.workers**2 * loop.exchange.sq_norm_of_beside().view(1)
            for name in frozenset().union(*(one.reached for one in loop.passes)):
                if parameters[name].grad is None:
                    raise Unusable(
                        f"the gradient of parameter {name!r} was no longer available at the end of the backward pass"
                    )
            found = {name: norm.sq_norm(name, p.grad) for name, p in parameters.items() if p.grad is not None}
            sums = [torch.stack([*found.values(), zero]).sum()]
            for names in self._listener.parts.values():
                part = [found[name] for name in names if name in found]
                sums += [torch.stack([*part, zero]).sum()]
            return loop.workers**2 * torch.stack(sums)

    def _is_out_of_step(self, dirty: list[float], spoke: list[bool]) -> bool:
        """Whether the passes are not the micro-batches of one step, by what `.grad` held when each began."""
        loop = self._loop
        clean = [k for k, held in enumerate(dirty) if not held and spoke[k]]
        if clean:
            # The loop stepped early, as at the end of an epoch, or began before: a step begins where .grad was empty.
            loop.begin_at(len(loop.passes) - clean[-1])
            return True
        loop.out_of_step = loop.out_of_step + 1 if dirty[0] else 0
        if loop.out_of_step > 1:
            self._pool.leave_out(
                loop.step + 1,
                "gradients of earlier backward passes were still in .grad when a step began. Are they accumulated "
                "over more micro-batches than Monitor(accumulate=…) states, or not zeroed between steps?",
            )
        if dirty[0]:
            loop.passes = []
        return bool(dirty[0])

    def _complain(self, one: BackwardPass, said: str) -> None:
        self._pool.leave_out(self._loop.step + 1, said)
        self._listener.complain(one, said)

    # ---- state

    def _lockstep(self, group: torch.distributed.ProcessGroup, inner: Hook | None) -> Lockstep:
        from variegrad.monitor.exchange import ddp  # noqa: PLC0415 - torch may be built without it

        if not ddp.averages(inner) and not (self._listener.norm.exact_for_examples and self._per is None):
            raise ValueError(
                "attach: with a hook that does not average gradients, only the Euclidean bound of the whole model is "
                "supported. Leave out optimizer= and per=."
            )
        length = NUMBERS + 2 * len(self._listener.parts)
        return Lockstep(self._loop.schedule, self._loop.accumulate, group, length)

    def _same_parameters(self) -> bool:
        """Follow layers that are frozen, unfrozen or replaced: B_D of other parameters is another quantity."""
        known = self._listener.parameters
        if [id(p) for p in self._model.parameters() if p.requires_grad] == [id(p) for p in known.values()]:
            return True
        parameters = trained_parameters(self._model)
        if self._loop.exchange is not None and not set(map(id, parameters.values())) <= set(map(id, known.values())):
            self._pool.leave_out(
                self._loop.step + 1,
                "DistributedDataParallel does not average some trained parameters, because they were frozen or "
                "replaced after it was created. Wrap the model again, and create a new Monitor",
            )
            return False
        self._listener = Listener(self._model, parameters, self._listener.norm, self._most, self._per)
        self._pool.dependence = Dependence()
        self._pool.window.clear()
        self.history.leave_out(self._loop.step + 1, "the set of trained parameters has changed: a new window starts")
        return True


def _read(*groups: Sequence[Tensor]) -> list[list[list[float]]]:
    """All vectors of all groups, read by the host in one go."""
    pieces = [one.view(-1).double() for group in groups for one in group]
    read = (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).tolist()
    found: list[list[list[float]]] = []
    start = 0
    for group in groups:
        found.append([])
        for one in group:
            found[-1].append(read[start : start + one.numel()])
            start += one.numel()
    return found


def _is_sharded(model: nn.Module) -> bool:
    # By name: the import is slow, and torch may be built without it.
    return any(kind.__name__ == "FSDPModule" for kind in type(model).__mro__)


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, Unusable | ValueError) else f"{type(error).__name__}: {error}"


def _named(error: Exception) -> Exception:
    """The commonest mistake of a loop by its name; any other error as it is."""
    if isinstance(error, RuntimeError) and "backward through the graph a second time" in str(error):
        return ValueError(
            "watch: the graph of the loss has been freed. Call watch between forward and backward, not after backward."
        )
    return error
