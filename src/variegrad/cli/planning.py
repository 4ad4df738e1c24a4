"""A plan for a problem: the constants of the theory measured or bounded, and the batch and step they recommend."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Subset

from variegrad.along import Point, measure_along
from variegrad.batches import passes_over
from variegrad.problems import Problem
from variegrad.problems.classification import logistic_losses, softmax_losses
from variegrad.theory import (
    BatchChoice,
    Rates,
    Stability,
    best_batch_size,
    constants,
    glm_bound,
    gradient_along,
    polyak_lojasiewicz,
    smooth,
    stability_convex,
    strongly_convex,
)
from variegrad.theory.constants import Constant

# sup ℓ″ and sup |ℓ′| of the losses for which a linear model has certificates.
KNOWN_LOSSES: dict[Callable[..., Any], tuple[float, float]] = {
    logistic_losses: (0.25, 1.0),
    softmax_losses: (0.5, math.sqrt(2)),
}
CURVATURE_EXAMPLES = 1024  # Hessian-vector products are taken over at most so many examples


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is recommended, and everything it rests on.

    Attributes:
        problem: its name.
        constants: each with its standing, by symbol.
        seconds_per_step: α of a step of α + c′B seconds.
        seconds_per_example: c′.
        choice: the batch that takes the least time.
        step_size: γ for it, sum-normalised: the problem's own step, retuned from its batch of 64.
        stable_step_size: 2/(βB), above which the mean dynamics of a quadratic diverge.
        rates: what Theorems 2, 3 and 5 promise.
        certificate: a bound on the mean ‖∇F‖² of the measured run (Theorem 2 with the δ_k, M_k² of its points).
        stability: Theorem 9, where the problem is a linear model.
    """

    problem: str
    constants: Mapping[str, Constant]
    seconds_per_step: float
    seconds_per_example: float
    choice: BatchChoice
    step_size: float
    stable_step_size: float
    rates: Sequence[Rates]
    certificate: float
    stability: Stability | None


def step_time_of(problem: Problem) -> tuple[float, float]:
    """α and c′ of a step α + c′B, from the median times of a small and a large batch.

    Args:
        problem: whose losses are differentiated.

    Returns:
        Seconds a step, and seconds an example.
    """
    n = len(problem.train)  # type: ignore[arg-type]
    sizes = (max(1, min(n, 256) // 8), min(n, 256))
    model = copy.deepcopy(problem.model)
    trained = [p for p in model.parameters() if p.requires_grad]
    medians = []
    for size in sizes:
        batch = next(iter(passes_over(Subset(problem.train, range(size)), size)))
        times = []
        for _ in range(9):
            start = time.perf_counter()
            torch.autograd.grad(problem.losses(model, batch).sum(), trained, allow_unused=True)
            times.append(time.perf_counter() - start)
        medians.append(statistics.median(times))
    if sizes[0] == sizes[1]:
        return 0.0, medians[0] / sizes[0]
    slope = max((medians[1] - medians[0]) / (sizes[1] - sizes[0]), 1e-12)
    return max(0.0, medians[0] - slope * sizes[0]), slope


def measure_run(problem: Problem, passes: float, points: int, seed: int) -> tuple[list[Point], list[float]]:
    """Exact measurements along a run of the problem's own step, and the top curvature at its ends.

    Args:
        problem: what to measure; its model is trained in place.
        passes: how long.
        points: how many measurements.
        seed: of the order of the data.

    Returns:
        The measurements, and estimates of β.
    """
    n = len(problem.train)  # type: ignore[arg-type]
    sample = list(passes_over(Subset(problem.train, range(min(n, CURVATURE_EXAMPLES))), 256))
    found: list[Point] = []
    curvatures = [constants.smoothness(problem.model, problem.losses, sample, steps=10, seed=seed).value]
    run = measure_along(
        problem, passes=passes, points=points, batch_size=min(64, n), step_size=problem.step_size, seed=seed
    )
    found.extend(run)
    curvatures.append(constants.smoothness(problem.model, problem.losses, sample, steps=10, seed=seed).value)
    return found, curvatures


def make_plan(
    problem: Problem,
    points: Sequence[Point],
    curvatures: Sequence[float],
    *,
    accuracy: float,
    delta: float,
    l2: float,
    step_time: tuple[float, float],
) -> Plan:
    """Put the theory to the numbers of a measured problem.

    Args:
        problem: what was measured.
        points: along its run.
        curvatures: estimates of β.
        accuracy: ε as a share of the criterion's value at the start.
        delta: δ, the batch in units of the bound.
        l2: λ of a term in the loss; 0 for none.
        step_time: α and c′ of a step of α + c′B seconds.

    Returns:
        The plan.

    Raises:
        ValueError: if all gradients are zero.
    """
    n = len(problem.train)  # type: ignore[arg-type]
    known, features = _certificates(problem, l2)
    norms = [point.diversity.sq_norm_of_mean for point in points]
    moments = [point.diversity.mean_sq_norm for point in points]
    bounds = [max(1.0, point.diversity.batch_size_bound) for point in points if not point.diversity.undefined]
    if not bounds:
        raise ValueError(f"{problem.name}: all gradients are zero at every point; there is nothing to plan.")
    gap = constants.initial_gap(points[0].loss)
    found: dict[str, Constant] = {
        "inf B_D": _estimate(min(bounds), f"smallest of {len(bounds)} exact measurements along a run; not a bound"),
        "β": _estimate(max(curvatures), "top Hessian eigenvalue by Lanczos at the run's ends; not a bound"),
        "M²": constants.second_moment_along(moments, margin=1.5),
        "μ": constants.pl_along(norms, [point.loss for point in points], minimum=0.0),
        "F₀ − F*": gap,
    }
    if l2 > 0:
        found["D₀"] = constants.sq_distance(strong_convexity=l2, gap=gap.value, sq_gradient_norm=norms[0])
    # A measured inf B_D is larger and describes the run; the certificate is kept beside it.
    found |= known
    bound, beta = found["inf B_D"].value, found["β"].value
    rates = _rates(found, norms[0], accuracy=accuracy, delta=delta, l2=l2)
    choice = best_batch_size(
        bound=min(bound, 1e12), seconds_per_step=step_time[0], seconds_per_example=step_time[1], largest=n
    )
    own = min(64, n)
    step = problem.step_size * (1 + (own - 1) / bound) / (1 + (choice.batch_size - 1) / bound)
    repeats = [max(1, after.updates - before.updates) for before, after in pairwise(points)] or [1]
    return Plan(
        problem=problem.name,
        constants=found,
        seconds_per_step=step_time[0],
        seconds_per_example=step_time[1],
        choice=choice,
        step_size=step,
        stable_step_size=2 / (beta * choice.batch_size) if beta > 0 else math.inf,
        rates=rates,
        certificate=gradient_along(
            initial_gap=gap.value,
            smoothness=max(beta, 1e-300),
            step_size=problem.step_size,
            batch_size=own,
            bounds=np.repeat(
                [max(1.0, p.diversity.batch_size_bound) for p in points[: len(repeats)]], repeats
            ).tolist(),
            second_moments=np.repeat(moments[: len(repeats)], repeats).tolist(),
        ),
        stability=_stability(
            problem,
            features,
            leave_one_out=known["inf B_D, any w, one example left out"].value if known else 0.0,
            batch_size=choice.batch_size,
            step_size=step,
            updates=points[-1].updates * own,
        ),
    )


def _rates(
    found: Mapping[str, Constant], sq_gradient: float, *, accuracy: float, delta: float, l2: float
) -> list[Rates]:
    beta, moment, gap = found["β"].value, found["M²"].value, found["F₀ − F*"].value
    bound, mu = found["inf B_D"].value, found["μ"].value
    made = []
    if beta > 0 and moment > 0 and sq_gradient > 0:
        shared: dict[str, Any] = {"smoothness": beta, "second_moment": moment, "bound": bound, "delta": delta}
        made.append(smooth(error=accuracy * sq_gradient, initial_gap=gap, **shared))
        if 0 < mu < math.inf:
            made.append(polyak_lojasiewicz(error=accuracy * gap, pl_constant=mu, initial_gap=gap, **shared))
        if l2 > 0:
            distance = found["D₀"].value
            made.append(strongly_convex(error=accuracy * distance, strong_convexity=l2, sq_distance=distance, **shared))
    return made


def _certificates(problem: Problem, l2: float) -> tuple[dict[str, Constant], np.ndarray | None]:
    """β, M² and inf B_D from the data, where the problem is a linear model with a known loss and no L2 term."""
    layers = [layer for layer in problem.model.modules() if not isinstance(layer, nn.Sequential | nn.Flatten)]
    if problem.losses not in KNOWN_LOSSES or len(layers) != 1 or not isinstance(layers[0], nn.Linear) or l2 > 0:
        return {}, None
    curvature, slope = KNOWN_LOSSES[problem.losses]
    parts = [batch[0].flatten(1).double().numpy() for batch in passes_over(problem.train, 4096)]
    X = np.concatenate(parts)
    if layers[0].bias is not None:
        X = np.hstack([X, np.ones((len(X), 1))])
    data_only = glm_bound(X, centring=False)
    basis = "n/σ²_max of the normalised rows, the intercept's column included; " + data_only.certificate
    return {
        "β": constants.glm_smoothness(X, curvature=curvature),
        "M²": constants.glm_second_moment(X, slope=slope),
        "inf B_D, any w": Constant(value=data_only.bound, certified=True, basis=basis),
        "inf B_D, any w, one example left out": Constant(
            value=data_only.leave_one_out, certified=True, basis="(n−1)/σ²_max of the normalised rows"
        ),
    }, X


def _stability(
    problem: Problem, X: np.ndarray | None, *, leave_one_out: float, batch_size: int, step_size: float, updates: int
) -> Stability | None:
    if X is None or len(X) < 2:
        return None
    curvature, slope = KNOWN_LOSSES[problem.losses]
    largest = float(np.square(X).sum(axis=1).max())
    return stability_convex(
        batch_size=batch_size,
        step_size=step_size,
        smoothness=curvature * largest,
        lipschitz=slope * math.sqrt(largest),
        updates=updates,
        examples=len(X),
        leave_one_out=leave_one_out,
    )


def _estimate(value: float, basis: str) -> Constant:
    return Constant(value=value, certified=False, basis=basis)
