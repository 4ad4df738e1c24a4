"""What a person sees of a training run while it goes on: loss, accuracy, speed, B_D; on worker 0 only."""

from __future__ import annotations

import math
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from variegrad.distributed.workers import World
from variegrad.problems import Problem
from variegrad.problems.subset import size
from variegrad.training import TrainConfig
from variegrad.training.update import Update

WINDOW = 50  # updates over which loss and speed are averaged


class TrainingLog:
    """Follows a run: a bar where there is a terminal, a line at each evaluation elsewhere, and the run's history.

    Args:
        problem: what is trained.
        config: how.
        world: the workers.
        console: standard error.
        tensorboard: folder for TensorBoard events.

    Raises:
        ValueError: if TensorBoard is asked for and not installed.
    """

    def __init__(
        self, problem: Problem, config: TrainConfig, world: World, console: Console, tensorboard: Path | None
    ) -> None:
        self.name, self.console, self.shown = problem.name, console, world.is_first
        self.last: Update | None = None
        self.history: list[dict[str, Any]] = []
        self.seconds = {"data": 0.0, "compute": 0.0, "communication": 0.0}
        self._losses: list[float] = []
        self._recent: deque[tuple[float, int, float]] = deque(maxlen=WINDOW)
        self._bound: str | None = None
        self._began = time.perf_counter()
        self._events = None if tensorboard is None else _writer(tensorboard)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(), console=console, transient=True,
            disable=not (self.shown and console.is_terminal),
        )  # fmt: skip
        total = config.passes * size(problem.train)
        self._task = self._bar.add_task(f"{self.name}: starting", total=total if math.isfinite(total) else None)

    def __enter__(self) -> TrainingLog:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()
        if self._events is not None:
            self._events.close()

    def note(self, step: Update) -> None:
        """Take an update in.

        Args:
            step: its record.
        """
        self.last = step
        self._losses.append(step.mean_loss)
        self._recent.append((time.perf_counter(), step.examples, step.mean_loss))
        for part in self.seconds:
            self.seconds[part] += getattr(step.seconds, part)
        if step.bound is not None:
            self._bound = f"B_D {step.bound.batch_size_bound:.3g} [{step.bound.low:.3g}, {step.bound.high:.3g}]"
        if step.accuracy is not None or step.bound is not None:
            self._keep(step)
        if self._events is not None:
            self._write(step)
        if self.shown:
            self._bar.update(self._task, completed=step.examples, description=self._line(step))
            if step.accuracy is not None and not self.console.is_terminal:
                self.console.print(self._line(step))

    def _keep(self, step: Update) -> None:
        finite = [loss for loss in self._losses if math.isfinite(loss)]
        self.history.append({
            "updates": step.updates,
            "examples": step.examples,
            "passes": step.passes,
            "mean_loss": math.fsum(finite) / len(finite) if finite else None,
            "accuracy": step.accuracy,
            "batch_size_bound": None if step.bound is None else _number(step.bound.batch_size_bound),
            "low": None if step.bound is None else _number(step.bound.low),
            "high": None if step.bound is None else _number(step.bound.high),
            "seconds": round(time.perf_counter() - self._began, 3),
        })  # fmt: skip
        self._losses = []

    def _line(self, step: Update) -> str:
        (first, at_first, _), (last, at_last, _) = self._recent[0], self._recent[-1]
        losses = [loss for _, _, loss in self._recent if math.isfinite(loss)]
        said = [
            f"{self.name}: pass {step.passes:.2f}",
            f"loss {sum(losses) / len(losses):.4g}" if losses else "no loss",
        ]
        accuracy = next((kept["accuracy"] for kept in reversed(self.history) if kept["accuracy"] is not None), None)
        said += [] if accuracy is None else [f"accuracy {100 * accuracy:.2f} %"]
        said += [f"{(at_last - at_first) / (last - first):,.0f} examples/s"] if last > first else []
        said += [self._bound] if self._bound else []
        return ", ".join(said + ([f"{step.left_out} updates left out"] if step.left_out else []))

    def _write(self, step: Update) -> None:
        scalars = {"loss": step.mean_loss, "accuracy": step.accuracy}
        scalars["B_D"] = None if step.bound is None else step.bound.batch_size_bound
        for name, value in scalars.items():
            if value is not None:
                assert self._events is not None
                self._events.add_scalar(name, value, step.updates)

    def summary(self, ended: str) -> str:
        """The run in one line.

        Args:
            ended: why it ended.

        Returns:
            Text.
        """
        if self.last is None:
            return f"{self.name}: {ended} before the first update"
        took = time.perf_counter() - self._began
        parts = ", ".join(f"{100 * seconds / took:.0f} % {part}" for part, seconds in self.seconds.items())
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
