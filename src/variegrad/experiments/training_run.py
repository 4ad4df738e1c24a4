"""One training run as one cell: `train` at fixed settings, with losses, accuracies and the exact B_D along the way.

Runs of different batch sizes draw the same samples in the same order and are measured at equal numbers of samples. A
run that diverges is a result, not an error: its losses are infinite from there on. Measuring is kept small beside
training: one forward pass per point, test examples at the end only, B_D at fewer points, and none of it before a run
with a target comes near it; records say how many examples each took.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from variegrad.batches import passes_over
from variegrad.experiments import data
from variegrad.experiments.intervals import Interval, geometric
from variegrad.experiments.networks import network
from variegrad.experiments.records import Cell, Record
from variegrad.experiments.verdict import AtLeast
from variegrad.measurement import BATCH_SIZE, measure
from variegrad.mechanisms import DropConnect, MomentMatched
from variegrad.per_example.evaluate import Losses, NotFinite, left_as_found
from variegrad.problems.problem import Problem
from variegrad.training import TrainConfig, Update, shared_gradient, train

BOUND_EXAMPLES = 1000  # B_D is exact over this many examples of the training set, its first ones
NEAR = 1.0  # mean loss over a pass above which a run with a target is not near it yet
CURVES = ("passes", "losses", "accuracies")
OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "momentum": partial(torch.optim.SGD, momentum=0.9), "Adam": torch.optim.Adam,
}  # fmt: skip


def run_once(cell: Cell, device: torch.device = data.CPU) -> dict[str, Any]:
    """Train and measure.

    Args:
        cell: with problem, max_examples, network, batch_size, step_size, seed, `at` (samples after which it is
            measured), and perhaps r, drop (of moment-matched DropConnect), `exact_masks`, `optimizer` (one of
            `OPTIMIZERS` instead of SGD), `bounds_every` (B_D at each this many points, the start first), `target` (a
            training accuracy that ends the run) and `test` (whether the test set is read at the end).
        device: where it is trained.

    Returns:
        `passes`, `losses`, `accuracies` at the points; `bounds` and `bound_passes`; `test_accuracy`; `online_loss`, the
        mean of the batches' losses over all updates; `end_loss`, that over the last pass; `needed`, passes to the
        target, interpolated, +inf if it was not reached; `diverged`; and the examples that were `trained`, `evaluated`
        (forward) and `differentiated` (for B_D), of `examples`.
    """
    of = TrainingRun(cell, device)
    of.note(0.0)
    diverged = False
    try:
        for step in updates(cell, of.model, of.problem.losses, of.examples):
            of.took(step.mean_loss, step.batch_size)
            if step.examples >= cell["at"][of.points] and not of.note(step.passes):
                diverged = True
            if diverged or of.ended:
                break
    except NotFinite:
        diverged = True
    return of.values(diverged=diverged)


def updates(cell: Cell, model: nn.Module, losses: Losses, examples: TensorDataset) -> Iterator[Update]:
    """The updates of a cell's run: of plain SGD, or of its optimizer at the learning rate η = γB of the mean gradient.

    Args:
        cell: as for `run_once`.
        model: at its starting weights.
        losses: one per example.
        examples: what it is trained on.

    Yields:
        Each update, after it was made.
    """
    settings, size = config(cell, len(examples)), cell["batch_size"]
    if (name := cell.values.get("optimizer")) is None:
        yield from train(model, losses, examples, settings)
        return
    optimizer = OPTIMIZERS[name](model.parameters(), lr=cell["step_size"] * size)
    for update in shared_gradient(model, losses, examples, settings):
        for weight in model.parameters():
            if weight.grad is not None:
                weight.grad.div_(size)
        optimizer.step()
        yield update


def config(cell: Cell, n: int) -> TrainConfig:
    """The settings of a cell's run.

    Args:
        cell: as for `run_once`.
        n: how many examples it trains on.

    Returns:
        The settings.
    """
    masks = DropConnect(cell["drop"]) if cell.values.get("drop") else None
    return TrainConfig(
        batch_size=cell["batch_size"], step_size=cell["step_size"], seed=cell["seed"], passes=cell["at"][-1] / n,
        mechanism=masks if masks is None or cell.values.get("exact_masks") else MomentMatched(masks),
        granularity=cell.values.get("granularity", "example"),
    )  # fmt: skip


class TrainingRun:
    """What a run gathers, however its updates are made.

    Attributes:
        model: at its starting weights.
        problem: losses and accuracy.
        examples: what it is trained on, on its device.
        points: how many of the cell's points it has passed, measured or skipped, with finite weights.
    """

    def __init__(self, cell: Cell, device: torch.device) -> None:
        """A run that is about to begin.

        Args:
            cell: as for `run_once`.
            device: where it is trained.
        """
        self.cell, self.device = cell, device
        name, count = cell["problem"], cell["max_examples"]
        self.problem: Problem = data.problem(name, count)
        self.examples = data.replicated(name, count, cell.values.get("r", 1), cell["seed"], device)
        self.model = fresh(cell, data.tensors(name, count)).to(device)  # copies of a few may lack some class
        self.target = cell.values.get("target", math.inf)
        self.found: dict[str, list[float]] = {name: [] for name in (*CURVES, "bounds", "bound_passes")}
        self.recent: list[tuple[float, int]] = []  # (mean loss, examples) of the updates of the last pass
        self.loss_sum, self.trained, self.evaluated, self.differentiated, self.points = 0.0, 0, 0, 0, 0

    @property
    def ended(self) -> bool:
        """Whether it is at its target or at its last point."""
        return self._arrived or self.points == len(self.cell["at"])

    @property
    def _arrived(self) -> bool:
        return bool(self.found["accuracies"][-1] >= self.target)

    def took(self, mean_loss: float, size: int) -> None:
        """Note an update.

        Args:
            mean_loss: of its batch, before it.
            size: of its batch.
        """
        self.loss_sum += mean_loss * size
        self.trained += size
        self.recent.append((mean_loss, size))
        while sum(few for _, few in self.recent[1:]) >= len(self.examples):
            self.recent.pop(0)

    @property
    def end_loss(self) -> float:
        """The mean over the updates of the last pass."""
        return sum(loss * size for loss, size in self.recent) / sum(size for _, size in self.recent)

    def note(self, passes: float) -> bool:
        """Measure at the next point.

        Args:
            passes: where the run is.

        Returns:
            Whether all is finite.
        """
        if not all(torch.isfinite(p).all() for p in self.model.parameters()):
            return False
        cell, first = self.cell, not self.trained
        self.points += not first
        if (every := cell.values.get("bounds_every", 0)) and self.points % every == 0:
            some = TensorDataset(*(column[:BOUND_EXAMPLES] for column in self.examples.tensors))
            self.found["bounds"].append(measure(self.model, self.problem.losses, some).batch_size_bound)
            self.found["bound_passes"].append(passes)
            self.differentiated += len(some)
        far = math.isfinite(self.target) and not first and self.end_loss > NEAR and self.points < len(cell["at"])
        if far:
            return True
        loss, accuracy = self._measured(self.examples)
        for name, value in zip(CURVES, (passes, loss, accuracy), strict=True):
            self.found[name].append(value)
        return math.isfinite(loss)

    def _measured(self, examples: TensorDataset) -> tuple[float, float]:
        """Mean loss and accuracy from one forward pass."""
        self.evaluated += len(examples)
        assert self.problem.accuracy is not None
        once, total, right = _Once(self.model), 0.0, 0.0
        with left_as_found(self.model), torch.no_grad():
            self.model.eval()
            for batch in passes_over(examples, BATCH_SIZE):
                total += float(self.problem.losses(once, batch).double().sum())
                right += float(self.problem.accuracy(once, batch).sum())
        return total / len(examples), right / len(examples)

    def values(self, *, diverged: bool) -> dict[str, Any]:
        """What `run_once` returns.

        Args:
            diverged: whether the run did.

        Returns:
            The values by name.
        """
        found = dict(self.found)
        if diverged:
            rest = [samples / len(self.examples) for samples in self.cell["at"][self.points :]]
            for name, value in zip(CURVES, (rest, [math.inf] * len(rest), [math.nan] * len(rest)), strict=True):
                found[name] = [*found[name], *value]
        test = math.nan
        if self.cell.values.get("test") and not diverged:
            _, test = self._measured(data.test_set(self.cell["problem"], self.device))
        return {
            **found, "online_loss": math.inf if diverged else self.loss_sum / self.trained,
            "end_loss": math.inf if diverged else self.end_loss, "needed": self._needed(), "test_accuracy": test,
            "diverged": diverged, "trained": self.trained, "evaluated": self.evaluated,
            "differentiated": self.differentiated, "examples": len(self.examples),
        }  # fmt: skip

    def _needed(self) -> float:
        """Passes until the target, by a straight line between the two points around it."""
        if not self._arrived:
            return math.inf
        (low, below), (high, above) = list(zip(self.found["passes"], self.found["accuracies"], strict=True))[-2:]
        return float(low + (high - low) * (self.target - below) / (above - below))


class _Once(nn.Module):
    """A model that does not compute again what it was asked last: loss and accuracy of a batch are one forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.last: tuple[Tensor, Tensor] | None = None

    def forward(self, features: Tensor) -> Tensor:
        if self.last is None or self.last[0] is not features:
            self.last = features, self.model(features)
        return self.last[1]


def passes_needed(record: Record) -> float:
    """Passes until the training accuracy reaches the target; at least those that were run, if it does not.

    Args:
        record: of a run with a target.

    Returns:
        A number of passes.
    """
    needed = float(record["needed"])
    return needed if math.isfinite(needed) else AtLeast(record.cell["at"][-1] / record["examples"])


def passes_said(passes: Sequence[float]) -> Interval | str:
    """Their geometric mean with its interval; in words, if some run never reached its target.

    Args:
        passes: of `passes_needed`, one per seed.

    Returns:
        What a table shows.
    """
    late = [needed for needed in passes if isinstance(needed, AtLeast)]
    return f"more than {min(late):g} in {len(late)} of {len(passes)} runs" if late else geometric(passes)


def passes_score(record: Record) -> float:
    """What is tuned for where runs have a target: passes needed; beyond their end, more the further they stayed away.

    Args:
        record: of a run with a target.

    Returns:
        The score; +inf if the run diverged.
    """
    if record["diverged"]:
        return math.inf
    needed = passes_needed(record)
    return needed * (2 + record.cell["target"] - max(record["accuracies"])) if isinstance(needed, AtLeast) else needed


def aligned(passes: float, points: int, n: int, largest: int) -> list[int]:
    """Samples to measure after: whole updates of the largest batch, so that all batch sizes are compared alike.

    Args:
        passes: how long the run is.
        points: how many measurements after the start.
        n: examples in the training set.
        largest: the largest batch size; the others divide it.

    Returns:
        Numbers of samples, increasing.
    """
    updates = max(points, round(passes * n / largest))
    return [round(updates * k / points) * largest for k in range(1, points + 1)]


def points_of(settings: Mapping[str, Any], batch_size: int) -> list[int]:
    """Samples to measure after, if each batch size has a length of its own.

    Args:
        settings: with `passes` by place in `batch_sizes`, `points` and `examples`.
        batch_size: B.

    Returns:
        Numbers of samples, increasing.
    """
    passes = settings["passes"][settings["batch_sizes"].index(batch_size)]
    return aligned(passes, settings["points"], settings["examples"], batch_size)


def fresh(cell: Mapping[str, Any] | Any, dataset: TensorDataset) -> nn.Module:
    """The cell's network at its starting weights.

    Args:
        cell: with network and seed.
        dataset: examples of every class.

    Returns:
        The network.
    """
    x, y = dataset.tensors
    return network(cell["network"], tuple(x.shape[1:]), int(y.max()) + 1, seed=cell["seed"])
