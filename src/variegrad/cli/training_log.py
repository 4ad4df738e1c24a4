"""What a person sees of a training run: loss, accuracy, speed, B_D; on worker 0 only. And what its record says."""

from __future__ import annotations

import copy
import math
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

from variegrad.cli.terminal import progress_bar
from variegrad.distributed.world import World
from variegrad.problems import Problem
from variegrad.problems.subset import size
from variegrad.training import Cadence, TrainConfig
from variegrad.training.update import Update

EMPTY: dict[str, Any] = {
    "history": [],
    "losses": {"updates": 0, "sum": 0.0, "finite": 0},  # since the last row
    "seconds": {
        "data": 0.0,
        "compute": 0.0,
        "communication": 0.0,
        "evaluation": 0.0,
        "checkpoints": 0.0,
        "start-up": 0.0,
    },
    "took": 0.0,
}
WINDOW = 50  # updates over which loss and speed are averaged


class TrainingLog:
    """Follows a run: a bar on a terminal, elsewhere a line at each evaluation; and the history of the whole run.

    Args:
        problem: what is trained.
        config: how.
        world: the workers.
        console: standard error.
        cadence: how often a line of history is kept.
        tensorboard: folder for TensorBoard events.
        kept: what an earlier part of the run left here, changed in place: plain values, kept with each checkpoint.

    Attributes:
        last: the last update of this part of the run.

    Raises:
        ValueError: if TensorBoard is asked for and not installed.
    """

    def __init__(
        self,
        problem: Problem,
        config: TrainConfig,
        world: World,
        console: Console,
        cadence: Cadence,
        tensorboard: Path | None = None,
        kept: dict[str, Any] | None = None,
    ) -> None:
        self.name, self.count, self.console, self.shown = problem.name, size(problem.train), console, world.is_first
        self.kept = {} if kept is None else kept
        for name, value in EMPTY.items():
            self.kept.setdefault(name, copy.deepcopy(value))
        self.last: Update | None = None
        self._cadence = cadence
        self._recent: deque[tuple[float, int, float]] = deque(maxlen=WINDOW)
        self._bound: str | None = None
        self._clock, self._waited = time.perf_counter(), 0.0
        self._events = None if tensorboard is None else _writer(tensorboard)
        self._bar = progress_bar(
            TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(), console=console, shown=self.shown,
        )  # fmt: skip
        total = config.passes * self.count
        self._task = self._bar.add_task(f"{self.name}: starting", total=total if math.isfinite(total) else None)

    def __enter__(self) -> TrainingLog:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()
        if self._events is not None:
            self._events.close()

    @property
    def accuracy(self) -> float | None:
        """The last one that was evaluated."""
        return next((row["accuracy"] for row in reversed(self.kept["history"]) if row["accuracy"] is not None), None)

    @property
    def history(self) -> list[dict[str, Any]]:
        """A row per evaluation or estimate of the whole run, and one for what came after the last."""
        rows: list[dict[str, Any]] = self.kept["history"]
        pending = self.kept["losses"]["updates"] and self.last is not None
        return [*rows, self._row(self.last)] if pending and self.last is not None else rows

    def note(self, update: Update, waited_for_checkpoints: float = 0.0) -> None:
        """Take an update in.

        Args:
            update: its record.
            waited_for_checkpoints: seconds of this part of the run so far.
        """
        now = time.perf_counter()
        took, self._clock = now - self._clock, now
        seconds, losses = self.kept["seconds"], self.kept["losses"]
        parts = {part: getattr(update.seconds, part) for part in ("data", "compute", "communication")}
        parts["checkpoints"], self._waited = waited_for_checkpoints - self._waited, waited_for_checkpoints
        parts["start-up" if self.last is None else "evaluation"] = max(0.0, took - sum(parts.values()))
        for part, spent in parts.items():
            seconds[part] += spent
        self.kept["took"] += took
        self.last = update
        losses["updates"] += 1
        if math.isfinite(update.mean_loss):
            losses["sum"] += update.mean_loss
            losses["finite"] += 1
        self._recent.append((now, update.examples, update.mean_loss))
        if update.bound is not None:
            self._bound = f"B_D {update.bound.batch_size_bound:.3g} [{update.bound.low:.3g}, {update.bound.high:.3g}]"
        due = self._cadence.due(update.updates, (update.examples - update.batch_size) / self.count, update.passes)
        if update.accuracy is not None or update.bound is not None or due:
            self.kept["history"].append(self._row(update))
            losses.update(EMPTY["losses"])
        if self._events is not None:
            self._write(update)
        if self.shown:
            self._bar.update(self._task, completed=update.examples, description=self._line(update))
            if (update.accuracy is not None or due) and not self.console.is_terminal:
                self.console.print(self._line(update))

    def _row(self, update: Update) -> dict[str, Any]:
        losses = self.kept["losses"]
        return {
            "updates": update.updates,
            "examples": update.examples,
            "passes": update.passes,
            "batch_size": update.batch_size,
            "mean_loss": losses["sum"] / losses["finite"] if losses["finite"] else None,
            "accuracy": update.accuracy,
            "batch_size_bound": None if update.bound is None else _number(update.bound.batch_size_bound),
            "low": None if update.bound is None else _number(update.bound.low),
            "high": None if update.bound is None else _number(update.bound.high),
            "seconds": round(self.kept["took"], 3),
        }

    def _line(self, update: Update) -> str:
        (first, at_first, _), (last, at_last, _) = self._recent[0], self._recent[-1]
        losses = [loss for _, _, loss in self._recent if math.isfinite(loss)]
        said = [
            f"{self.name}: pass {update.passes:.2f}",
            f"loss {sum(losses) / len(losses):.4g}" if losses else "no loss",
        ]
        said += [] if self.accuracy is None else [f"accuracy {100 * self.accuracy:.2f} %"]
        said += [f"{(at_last - at_first) / (last - first):,.0f} examples/s"] if last > first else []
        said += [self._bound] if self._bound else []
        return ", ".join(said + ([f"{update.left_out} skipped updates"] if update.left_out else []))

    def _write(self, update: Update) -> None:
        scalars = {"loss": update.mean_loss, "accuracy": update.accuracy}
        scalars["B_D"] = None if update.bound is None else update.bound.batch_size_bound
        for name, value in scalars.items():
            if value is not None:
                assert self._events is not None
                self._events.add_scalar(name, value, update.updates)

    def summary(self, ended: str) -> str:
        """The run in one line.

        Args:
            ended: why it ended.

        Returns:
            Text.
        """
        if self.last is None:
            return f"{self.name}: {ended} before the first update"
        took = self.kept["took"]
        spent = {part: 100 * self.kept["seconds"][part] / took for part in EMPTY["seconds"]}
        parts = ", ".join(f"{share:.0f} % {part}" for part, share in spent.items() if share >= 0.5)
        return f"{self._line(self.last)}; {self.last.updates:,} updates in {took:.1f} s ({parts}); {ended}"


def _number(value: float) -> float | str | None:
    """JSON has neither infinity nor NaN: the one is the text "inf", the other null."""
    return None if math.isnan(value) else ("inf" if value > 0 else "-inf") if math.isinf(value) else value


def _writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ValueError("--tensorboard needs TensorBoard: pip install 'variegrad[tensorboard]'.") from error
    return SummaryWriter(str(folder))
