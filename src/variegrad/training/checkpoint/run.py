"""A run in a folder: continued from its newest checkpoint, kept now and then and at its end, whatever ends it.

One program serves the first start and every restart after it. Worker 0 writes, in a thread, from a copy of the weights,
while the others train on; the next save waits for it and shares its failure. Worker 0 also reads, and the others get
the weights from it: they need not see the folder.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from variegrad.distributed.agreement import failing_together
from variegrad.distributed.workers import present
from variegrad.distributed.world import World
from variegrad.files import UNFINISHED, remove
from variegrad.per_example.evaluate import unwrap
from variegrad.training.cadence import Cadence
from variegrad.training.checkpoint.load import Checkpoint, empty, load, steps
from variegrad.training.checkpoint.lock import lock
from variegrad.training.checkpoint.manifest import Progress
from variegrad.training.checkpoint.save import save
from variegrad.training.checkpoint.settings import check_settings, differences
from variegrad.training.checkpoint.tensors import snapshot
from variegrad.training.config import Phases, TrainConfig
from variegrad.training.update import Position, Update
from variegrad.training.what_must_agree import refuse_drift
from variegrad.versions import versions

CHECKPOINTS = "checkpoints"
MAY_CHANGE = ("passes", "when_not_finite")
WITH_BATCH_SIZE = ("batch_size", "step_size", "phases")  # a step size goes with a batch size


class Run:
    """A resumable run: a context in which its updates are made.

        with vg.workers() as world, Run("runs/a", model, config, world, every=Cadence(updates=100)) as run:
            for update in run.of(vg.train(model, losses, data, config, world, start=run.start)):
                ...

    Entering takes the folder's lock and loads the newest checkpoint that verifies into the model. At the end of the
    block, also at an error, a last checkpoint is kept; if no update was made, nothing is written.

    Args:
        folder: of the run; checkpoints are in its folder `checkpoints`.
        model: takes the weights and buffers.
        config: of the run: settings of a checkpoint that differ are refused by name, but for those that may change:
            `passes`, `when_not_finite`, the number of workers (unless a mechanism acts on each worker's sum), and
            the batch size, with which the step size may change too.
        world: the workers; None for the process group that exists, or this process alone.
        every: how often a checkpoint is kept besides the last; None for never.
        keep: how many checkpoints are kept.
        settings: what else must be the same on resuming, as plain values.
        resume: whether to continue a run; if not, a folder that holds one is refused.

    Attributes:
        start: where the run stands, for `train`.
        state: yours, JSON: kept with each checkpoint and found again.
        notes: what happened on entering, a sentence each.
        starts: when the run was started, resumed and changed: time, update, samples seen, versions, settings.
        seconds: that training has waited for checkpoints.
        took: seconds that the last one took until it was on the disk.

    Raises:
        ValueError: if the folder holds a run that is not to be resumed, no checkpoint in it verifies, or it is of other
            settings or another model.
        FolderInUse: if another run holds the folder.
    """

    def __init__(
        self,
        folder: str | Path,
        model: nn.Module,
        config: TrainConfig | Phases,
        world: World | None = None,
        *,
        every: Cadence | None = None,
        keep: int = 3,
        settings: Mapping[str, Any] | None = None,
        resume: bool = True,
    ) -> None:
        self.folder, self.model, self.config, self.keep, self.every = Path(folder), unwrap(model), config, keep, every
        self.world = present() if world is None else world
        self.resume, self.settings = resume, dict(settings or {})
        self.start = Position()
        self.state: dict[str, Any] = {}
        self.notes: list[str] = []
        self.starts: list[dict[str, Any]] = []
        self.seconds = self.took = 0.0
        self.last: Update | None = None
        self._kept: Update | None = None
        self._held = ExitStack()
        self._saving: threading.Thread | None = None
        self._failure: Exception | None = None

    def __enter__(self) -> Run:
        with ExitStack() as held:
            found: Checkpoint | None = None
            with failing_together(self.world):
                if self.world.is_first:
                    if not self.resume and (kept := steps(self.folder / CHECKPOINTS)):
                        raise ValueError(holds_a_run(self.folder, f"checkpoints up to update {kept[0]:,}"))
                    held.enter_context(lock(self.folder))
                    for unfinished in self.folder.glob(f".*{UNFINISHED}"):  # of a process that was killed
                        remove(unfinished)
                    found = self._found()
            begun = self.world.tell(json.dumps(None if found is None else _told(found)))
            if (told := json.loads(begun)) is not None:
                self._continue(told, found)
            self._begin()
            self._held = held.pop_all()
        return self

    def of(self, updates: Iterable[Update]) -> Iterator[Update]:
        """Pass a run's updates on, and keep a checkpoint after each that is due, once its body has run.

        Args:
            updates: of `train`.

        Yields:
            The same.

        Raises:
            NotSaved: if a checkpoint could not be written; on the other workers a RuntimeError that says so.
        """
        before = None
        for update in updates:
            self.last = update
            self._note_settings(update)
            yield update
            passes = update.passes if before is None else before
            if self.every is not None and self.every.due(update.updates, passes, update.passes):
                began = time.perf_counter()
                self._keep_together(update)
                self.seconds += time.perf_counter() - began
            before = update.passes

    def keep_now(self) -> None:
        """Keep a checkpoint of the last update; all workers call it at the same place.

        Raises:
            NotSaved: if the one before could not be written; on the other workers a RuntimeError that says so.
        """
        if self.last is not None and self.last is not self._kept:
            self._keep_together(self.last)

    def finish(self) -> None:
        """Wait until the last checkpoint is on the disk; nothing to wait for on workers other than 0.

        Raises:
            NotSaved: if it could not be written.
        """
        if self._saving is not None:
            self._saving.join()
            self._saving = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._held:
            if error is None:
                self.keep_now()
                with failing_together(self.world):
                    self.finish()
                return
            # The others may be gone: worker 0 keeps what it has, alone.
            if isinstance(error, Exception) and self.world.is_first:
                try:
                    self.finish()
                    if self.last is not self._kept and self.last is not None:
                        self._keep(self.last)
                        self.finish()
                except Exception as second:  # noqa: BLE001 - the first error is what ended the run
                    error.add_note(str(second))

    def _found(self) -> Checkpoint | None:
        if empty(self.folder / CHECKPOINTS):
            if self.resume:
                self.notes.append(f"{self.folder}: no checkpoint yet; the run begins at update 0")
            return None
        return load(self.folder / CHECKPOINTS)

    def _continue(self, told: Mapping[str, Any], found: Checkpoint | None) -> None:
        state = told["state"]
        self.start = Position(examples=told["samples_seen"], updates=told["step"], left_out=state["left_out"])
        self.state, self.starts = state["yours"], state["starts"]
        last = self.starts[-1]
        changed = self._changed(told, state["batch_began"])
        with failing_together(self.world):
            tensors = {} if found is None else dict(found.tensors)
            for name, dtype, shape in told["tensors"]:
                tensors.setdefault(name, torch.empty(shape, dtype=getattr(torch, dtype)))
        for name, *_ in told["tensors"]:
            there = tensors[name].to(self.world.device).contiguous()
            self.world.broadcast(there)
            tensors[name] = there
        with failing_together(self.world):
            try:
                self.model.load_state_dict(tensors)
            except RuntimeError as error:
                raise ValueError(
                    f"{self.folder} holds checkpoints of another model: {' '.join(str(error).split())}"
                ) from error
        self.notes += [f"skipped checkpoint {one}" for one in told["skipped"]]
        if others := [
            f"{name} {last['versions'].get(name)} then, {now} now"
            for name, now in versions().items()
            if last["versions"].get(name) != now
        ]:
            self.notes.append(f"other versions ({'; '.join(others)}): numbers may differ in their last digits")
        left_out = f", {state['left_out']:,} skipped updates" if state["left_out"] else ""
        self.notes.append(
            f"{self.folder}: resuming from update {told['step']:,} ({told['samples_seen']:,} samples seen{left_out})"
        )
        self.notes += changed

    def _changed(self, told: Mapping[str, Any], began: int) -> list[str]:
        """Refuse settings that make another run; say which of those that may change have."""
        now, then = self._settings_at(began), told["settings"]
        may_change = {*MAY_CHANGE, "workers"}
        if now["mechanism"] is not None and now["granularity"] == "worker":
            may_change.discard("workers")
        if now["batch_size"] != then.get("batch_size"):
            may_change.update(WITH_BATCH_SIZE)
        check_settings(then, now, may_change=may_change)
        shown = [said for name, said in differences(then, now).items() if name not in MAY_CHANGE]
        return [f"from update {told['step'] + 1:,} on: {'; '.join(shown)}"] if shown else []

    def _settings_at(self, position: int) -> dict[str, Any]:
        return {**self.settings, **self.config.at(position).settings(), "workers": self.world.size}

    def _begin(self) -> None:
        self._config = self.config.at(self.start.examples)
        self.starts.append({
            "time": datetime.now(UTC).isoformat(timespec="seconds"), "update": self.start.updates,
            "examples": self.start.examples, "versions": versions(),
            "settings": self._settings_at(self.start.examples),
        })  # fmt: skip

    def _note_settings(self, update: Update) -> None:
        """A batch size that changes under way is part of the record."""
        began = update.examples - update.batch_size
        if (config := self.config.at(began)) is not self._config:
            self._config = config
            self.starts.append({
                **self.starts[-1], "update": update.updates - 1, "examples": began, "settings": self._settings_at(began)
            })  # fmt: skip

    def _keep_together(self, update: Update) -> None:
        with failing_together(self.world):
            self.finish()  # one save at a time: the disk sets the pace, and there is one copy of the weights
        refuse_drift(self.world, self.model, f"before the checkpoint of update {update.updates:,}")
        with failing_together(self.world):
            if self.world.is_first:
                self._keep(update)
        self._kept = update

    def _keep(self, update: Update) -> None:
        """Copy the weights and begin to write them."""
        first = update.examples - update.batch_size
        progress = Progress(
            samples_seen=update.examples, workers=self.world.size, batch_size=self._config.batch_size,
            seed=self._config.seed, settings=self._settings_at(first),
            # As text and back: the caller's loop continues and changes what it holds.
            state={"left_out": update.left_out, "batch_began": first, "starts": list(self.starts),
                   "yours": json.loads(json.dumps(self.state, allow_nan=False))},
        )  # fmt: skip
        copy = snapshot(self.model.state_dict())
        folder, step, keep = self.folder / CHECKPOINTS, update.updates, self.keep

        began = time.perf_counter()

        def write() -> None:
            try:
                save(folder, step, copy, progress, keep=keep)
            except Exception as error:  # noqa: BLE001 - raised where all workers hear of it
                self._failure = error
            finally:
                copy.clear()
                self.took = time.perf_counter() - began

        self._saving = threading.Thread(target=write, name="checkpoint")
        self._saving.start()
        self._kept = update


def holds_a_run(folder: Path, what: str) -> str:
    """The message about a folder that is in use already.

    Args:
        folder: of a run.
        what: it holds.

    Returns:
        A sentence.
    """
    return f"{folder} holds a run ({what}): continue it with --resume (resume=True), or choose another folder."


def _told(found: Checkpoint) -> dict[str, Any]:
    """What the other workers must know of a checkpoint."""
    return {
        **asdict(found.progress), "step": found.step, "skipped": [str(one) for one in found.unusable],
        "tensors": [
            [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
            for name, tensor in found.tensors.items()
        ],
    }  # fmt: skip
