"""Gradient diversity along a training run: plain mini-batch SGD, with an exact measurement at chosen points."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from variegrad.keys import torch_draws
from variegrad.measurement import measure
from variegrad.mechanisms import Mechanism
from variegrad.moments import Diversity
from variegrad.problems import Problem
from variegrad.training import Epochs, TrainConfig, train
from variegrad.training.evaluation import means_of


@dataclass(frozen=True, kw_only=True)
class Point:
    """A measurement along a run.

    Attributes:
        updates: updates made so far.
        passes: passes over the training set so far.
        loss: mean training loss.
        accuracy: training accuracy in [0, 1], if the problem has one.
        test_loss: mean test loss, if there is a test set.
        test_accuracy: test accuracy.
        diversity: that of the training set's gradients.
    """

    updates: int
    passes: float
    loss: float
    accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None
    diversity: Diversity


def measure_along(
    problem: Problem,
    *,
    passes: float,
    points: int,
    batch_size: int,
    step_size: float,
    mechanisms: Sequence[Mechanism] = (),
    seed: int = 0,
    on_update: Callable[[int, int], None] | None = None,
) -> Iterator[Point]:
    """Train the problem's model in place and measure it exactly at points along the way, denser at the start.

    The run does not depend on how often it is measured, and all its draws are functions of the seed.

    Args:
        problem: what to train.
        passes: how long, in passes over the training set, ≥ 0.
        points: how many measurements, ≥ 1: one before the first update, one after the last.
        batch_size: B of the run.
        step_size: γ of the summed gradient.
        mechanisms: whose closed forms will be asked for.
        seed: of the order of the data and of the model's own draws (dropout masks).
        on_update: told (updates done, updates of the whole run) after each update.

    Returns:
        The points, each as soon as it is measured.

    Raises:
        ValueError: if a setting is out of range; while it runs, if the training diverges.
    """
    if points < 1:
        raise ValueError(f"points must be at least 1; got {points}.")
    if not 0 <= passes < float("inf"):
        raise ValueError(f"passes must be a finite number and not negative; got {passes}.")
    config = TrainConfig(batch_size=batch_size, step_size=step_size, passes=float("inf"), seed=seed, sampling=Epochs())
    count = len(problem.train)  # type: ignore[arg-type]
    if count == 0:
        raise ValueError(f"{problem.name}: the training set has no examples.")
    in_epoch = -(-count // batch_size)
    last = round(passes * in_epoch)
    run = train(problem.model, problem.losses, problem.train, config)

    def points_of_run() -> Iterator[Point]:
        at = stops(last, points)
        for updates in range(last + 1):
            try:
                if updates:
                    next(run)
                if updates and on_update is not None:
                    on_update(updates, last)
                point = _point(problem, updates, updates / in_epoch, mechanisms, seed) if updates in at else None
            except ValueError as error:
                if not updates:
                    raise
                raise ValueError(
                    f"at update {updates} of {last}, with step size {step_size:g} of the summed gradient: {error} "
                    "If training diverged, choose a smaller step size."
                ) from error
            if point is not None:
                yield point

    return points_of_run()


@dataclass(frozen=True, kw_only=True)
class AlongRun:
    """B_D over a whole run, between its points by a straight line in 1/B_D.

    The updates that a run needs grow with the mean of 1 + (B−1)/B_D, so 1/B_D is what is averaged: `harmonic_mean` is
    the one B_D that costs the run as many examples as the B_D that it met.

    Attributes:
        harmonic_mean: of B_D, weighted by passes; +inf if gradients cancel or are zero at all points.
        efficiency: 1/(1 + (B−1)/harmonic_mean), of the run's batch B.
        share_below: the share of the run, in passes, in which B_D is smaller than B.
        least: the smallest B_D measured.
        least_at: in passes, if it was measured.
    """

    harmonic_mean: float
    efficiency: float
    share_below: float
    least: float
    least_at: float


def over_run(points: Sequence[Point], batch_size: int) -> AlongRun | None:
    """B_D over a run, from the points measured along it.

    Args:
        points: in the order of the run.
        batch_size: B.

    Returns:
        What they say of the whole run; None if no point has a B_D (there is none, or all gradients are zero).
    """
    defined = [point for point in points if not point.diversity.undefined]
    if not defined:
        return None
    # Where all gradients are zero any batch is harmless, as with B_D = ∞.
    inverse = [0.0 if p.diversity.undefined else 1 / p.diversity.batch_size_bound for p in points]
    passes = [p.passes for p in points]
    length, area, below = passes[-1] - passes[0], 0.0, 0.0
    for (start, end), (left, right) in zip(pairwise(passes), pairwise(inverse), strict=True):
        area += (end - start) * (left + right) / 2
        below += (end - start) * _share_above(left, right, 1 / batch_size)
    mean = area / length if length else inverse[0]
    share = below / length if length else float(inverse[0] > 1 / batch_size)
    least = min(defined, key=lambda p: p.diversity.batch_size_bound)
    return AlongRun(
        harmonic_mean=1 / mean if mean else math.inf,
        efficiency=1 / (1 + (batch_size - 1) * mean),
        share_below=share,
        least=least.diversity.batch_size_bound,
        least_at=least.passes,
    )


def _share_above(left: float, right: float, level: float) -> float:
    """The share of a straight line from `left` to `right` that lies above `level`."""
    if left == right:
        return float(left > level)
    return min(1.0, max(0.0, (max(left, right) - level) / abs(right - left)))


def stops(last: int, points: int) -> set[int]:
    """The updates to measure at: from 0 to `last`, spaced quadratically, since most changes early.

    Args:
        last: the last update.
        points: how many are wanted.

    Returns:
        At most `points` of them; the ends are always among them (the end alone where one is wanted).
    """
    if points == 1:
        return {last}
    return {round(last * (k / (points - 1)) ** 2) for k in range(points)}


def _point(problem: Problem, updates: int, passes: float, mechanisms: Sequence[Mechanism], seed: int) -> Point:
    functions = [problem.losses, *([problem.accuracy] if problem.accuracy is not None else [])]
    with torch_draws(seed, "point", updates):
        diversity = measure(problem.model, problem.losses, problem.train, mechanism=mechanisms)
        loss, *accuracy = means_of(functions, problem.model, problem.train)
        tested = [] if problem.test is None else means_of(functions, problem.model, problem.test)
        return Point(
            updates=updates,
            passes=passes,
            diversity=diversity,
            loss=loss,
            accuracy=accuracy[0] if accuracy else None,
            test_loss=tested[0] if tested else None,
            test_accuracy=tested[1] if len(tested) > 1 else None,
        )
