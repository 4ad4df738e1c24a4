"""The paper's tuner: the constant step size with which a run converges fastest, by a grid whose optimum is interior.

Step sizes double from one grid point to the next. Where the best is at an edge, the grid grows there; around an
interior best it is refined by √2. What is compared is the mean loss over the whole training set after a fixed number of
passes, the same for every step size; repeats use the same draws for all of them, so that differences are paired.

Source: Section 6 of the paper ("we tune our (constant) step-size to maximize convergence").
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from scipy.stats import t as student
from torch import nn
from torch.utils.data import Dataset

from variegrad.distributed.workers import present
from variegrad.distributed.world import World
from variegrad.per_example.evaluate import Losses, NotFinite, unwrap
from variegrad.problems.subset import size
from variegrad.training.config import TrainConfig
from variegrad.training.evaluation import mean_of
from variegrad.training.sgd import train
from variegrad.training.tuning_stacked import can_be_stacked, stacked_losses


class Stopped(RuntimeError):  # noqa: N818 - it reads as what happened
    """A search that was stopped on request before it had an answer."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One step size that was tried.

    Attributes:
        step_size: γ.
        losses: the mean training loss at the end of each repeat; inf if it diverged: became not finite, or ended
            above the loss it began with.
    """

    step_size: float
    losses: Sequence[float]

    @property
    def mean_loss(self) -> float:
        """Over the repeats; inf if one of them diverged."""
        return math.fsum(self.losses) / len(self.losses)

    @property
    def diverged(self) -> bool:
        """Whether one of the repeats diverged."""
        return math.isinf(self.mean_loss)


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The step size that was found, and how sure that is.

    Attributes:
        step_size: γ of the arm with the least mean loss.
        low: the smallest step size near it that the repeats cannot tell from it.
        high: the largest such.
        interior: whether step sizes on both sides of it were tried and found worse.
        arms: everything that was tried, by step size.
    """

    step_size: float
    low: float
    high: float
    interior: bool
    arms: Sequence[Arm]

    @property
    def cannot_separate(self) -> bool:
        """Whether another step size may be as good: the repeats do not tell."""
        return self.low < self.step_size or self.high > self.step_size

    def __str__(self) -> str:
        best = next(arm for arm in self.arms if arm.step_size == self.step_size)
        repeats = len(best.losses)
        # Chosen because it is the least, it is lower than that of new runs would be.
        text = f"step size {self.step_size:.4g} (mean loss {best.mean_loss:.4g}, optimistic, over {repeats} runs)"
        if not self.interior:
            text += ", at the edge of what was tried: the best may lie beyond"
        if repeats < 2:
            return f"{text}; one run per step size cannot tell it from others"
        if self.cannot_separate:
            return f"{text}; statistically indistinguishable from step sizes in [{self.low:.4g}, {self.high:.4g}]"
        return f"{text}; better than every other"


def tune(
    model: nn.Module,
    losses: Losses,
    dataset: Dataset[Any],
    config: TrainConfig,
    world: World | None = None,
    *,
    points: int = 5,
    growth: int = 8,
    repeats: int = 3,
    confidence: float = 0.95,
) -> Tuned:
    """Find the step size with the least training loss after `config.passes` passes.

    The grid is γ·2^k around `config.step_size`; every step size is run with the seeds seed, seed+1, …, from the same
    weights. Small models without a mechanism are run at all step sizes at once (`training.tuning_stacked`).

    Args:
        model: at its starting weights; it is not changed.
        losses: `losses(model, batch) → (b,)`.
        dataset: the training set.
        config: of the runs; its step size is the middle of the grid, its passes the budget.
        world: the workers; None for the process group that exists, or this process alone.
        points: step sizes to begin with, odd, at least 3.
        growth: how often the grid may grow by a point if the best is at its edge.
        repeats: seeds for each step size; with at least two there is an interval.
        confidence: of the comparisons with the winner, all together.

    Returns:
        The step size, its interval, and all that was tried.

    Raises:
        ValueError: if an argument is out of range, or every step size diverges.
        Stopped: if a stop was requested (Ctrl-C, `world.request_stop`): runs of other lengths cannot be compared.

    Source: Section 6 of the paper.
    """
    if points < 3 or points % 2 == 0:
        raise ValueError(f"tune: points must be odd and at least 3; got {points}.")
    if growth < 0 or repeats < 1:
        raise ValueError(f"tune: growth must be at least 0 and repeats at least 1; got {growth} and {repeats}.")
    if not 0 < confidence < 1:
        raise ValueError(f"tune: confidence must lie between 0 and 1; got {confidence}.")
    if math.isinf(config.passes):
        raise ValueError("tune: passes must be finite: they are the budget that step sizes are compared at.")
    world, model = present() if world is None else world, unwrap(model)
    at_start = mean_of(losses, model, dataset, world)
    tried: dict[int, Arm] = {}  # by k, γ·√2^k: every number of the search is a power of √2

    def ask(exponents: Sequence[int]) -> None:
        new = [k for k in exponents if k not in tried]
        if world.size == 1 and world.stop_requested:  # runs that are stacked do not look
            world.stop_requested = False
            raise Stopped("tune: stopped on request before a step size was found.")
        sizes = [config.step_size * 2 ** (k / 2) for k in new]
        found = _ends(model, losses, dataset, config, world, sizes, range(config.seed, config.seed + repeats))
        for k, step_size, ends in zip(new, sizes, zip(*found, strict=True), strict=True):
            tried[k] = Arm(step_size=step_size, losses=[end if end <= at_start else math.inf for end in ends])

    def best() -> int:
        return min(tried, key=lambda k: (tried[k].mean_loss, k))

    ask(range(1 - points, points, 2))
    for _ in range(growth):
        if min(tried) < best() < max(tried):
            break
        ask([min(tried) - 2 if best() == min(tried) else max(tried) + 2])
    if tried[best()].diverged:
        raise ValueError(
            f"tune: every step size from {tried[min(tried)].step_size:.3g} up diverged or did not lower the loss. "
            "Begin with a smaller one, or train for more passes."
        )
    while {best() - 1, best() + 1} - set(tried) and min(tried) < best() < max(tried):
        ask([best() - 1, best() + 1])
    winner = best()
    alike = _alike(tried, winner, confidence)
    return Tuned(
        step_size=tried[winner].step_size, low=tried[min(alike)].step_size, high=tried[max(alike)].step_size,
        interior=min(tried) < winner < max(tried), arms=[tried[k] for k in sorted(tried)],
    )  # fmt: skip


def _ends(
    model: nn.Module,
    losses: Losses,
    dataset: Dataset[Any],
    config: TrainConfig,
    world: World,
    sizes: Sequence[float],
    seeds: Sequence[int],
) -> list[list[float]]:
    """The loss at the end of each run, by seed and step size."""
    if world.size == 1 and can_be_stacked(model, config):
        try:
            stacked = stacked_losses(model, losses, dataset, config, sizes, seeds)
            return [[end if math.isfinite(end) else math.inf for end in ends] for ends in stacked]
        except (RuntimeError, ValueError):  # torch.func cannot stack it: one by one; a real error then shows again
            pass
    settings = [[replace(config, seed=seed, step_size=step_size) for step_size in sizes] for seed in seeds]
    return [[_end(model, losses, dataset, each, world) for each in of_seed] for of_seed in settings]


def _end(model: nn.Module, losses: Losses, dataset: Dataset[Any], config: TrainConfig, world: World) -> float:
    trained = copy.deepcopy(model)
    try:
        examples = 0
        for update in train(trained, losses, dataset, config, world):
            examples = update.examples
    except NotFinite:
        return math.inf
    if examples < config.passes * size(dataset) * (1 - 1e-12):
        raise Stopped("tune: stopped on request before a step size was found.")
    end = mean_of(losses, trained, dataset, world)
    return end if math.isfinite(end) else math.inf


def _alike(tried: dict[int, Arm], winner: int, confidence: float) -> list[int]:
    """The unbroken run of step sizes around the winner that paired t intervals cannot tell from it."""
    others = [k for k in tried if k != winner and not tried[k].diverged]
    repeats = len(tried[winner].losses)
    if repeats < 2 or not others:
        return [k for k in tried if k == winner or (repeats < 2 and k in others)]
    quantile = float(student.ppf(1 - (1 - confidence) / len(others), repeats - 1))  # Bonferroni over the comparisons
    alike = [winner]
    for side in (-1, 1):
        for k in sorted((k for k in others if (k - winner) * side > 0), key=lambda k: abs(k - winner)):
            differences = [a - b for a, b in zip(tried[k].losses, tried[winner].losses, strict=True)]
            mean = math.fsum(differences) / repeats
            variance = math.fsum((d - mean) ** 2 for d in differences) / (repeats - 1)
            if mean > quantile * math.sqrt(variance / repeats):
                break
            alike.append(k)
    return alike
