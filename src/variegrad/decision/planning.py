"""A plan for a problem: which batch size, which learning rate, why, and the constants that the theorems ask for.

The batch is the least of three limits:

    noise       1 + δ·B̄, B̄ the harmonic mean of B_D along a measured run: efficiency 1/(1+δ) at a tuned step
    time        √(α(B̄−1)/c′), where a step takes α + c′B seconds; none if the timing does not resolve c′
    stability   where the step tuned for B reaches 2/β, β the largest curvature seen at the ends of the run

With momentum m the run is one of plain SGD at the learning rate of the slow directions, η/(1−m), and the stable one is
2(1+m)/β. For Adam's family there is neither a learning rate nor a stability limit: the run was not one of Adam.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise
from typing import Any

import numpy as np
from torch import optim
from torch.utils.data import Subset

from variegrad.along import Point, measure_along, over_run
from variegrad.batches import passes_over
from variegrad.decision.limits import Estimate
from variegrad.decision.linear_models import certificates, certified, stability
from variegrad.decision.many_workers import AtWorkers, Link, gradient_bytes, over_workers
from variegrad.decision.schedule import BatchSchedule
from variegrad.decision.timing import StepTime
from variegrad.decision.timing import step_time as timed_step
from variegrad.estimators import StepSizeRule
from variegrad.mechanisms import DropConnect, Mechanism
from variegrad.problems import Problem
from variegrad.theory import (
    Rates,
    Stability,
    constants,
    efficiency,
    gradient_along,
    rates_polyak_lojasiewicz,
    rates_smooth,
    rates_strongly_convex,
)
from variegrad.theory.arguments import non_negative, positive, whole_number
from variegrad.theory.constants import Constant
from variegrad.theory.mechanism_speed import Granularity, MechanismTime, mechanism_time

UNRESOLVED = "the timing does not resolve how a step's time depends on the batch; state it, or time a larger model"
CURVATURE_EXAMPLES = 1024  # Hessian-vector products are taken over at most this many examples


class PlanLimit(Enum):
    """What set the recommended batch."""

    NOISE = "noise: more examples per step would be redundant"
    TIME = "time: a larger batch takes longer per unit of progress"
    STABILITY = "stability: a larger step diverges"
    DATA = "the size of the data set"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recommended batch size and learning rate, with the measurements behind them.

    Attributes:
        problem: its name.
        constants: each a certificate or an estimate, by symbol.
        harmonic_mean: B̄ of B_D along the run.
        step_time: α and c′ of a step of α + c′B seconds, on one worker.
        workers: P, sharing the examples of a step.
        communication: seconds per step that they communicate.
        batch_size: B, the smallest of the limits.
        batch_size_range: B at the ends of the interval of the time limit.
        limited_by: the name of the smallest limit.
        limits: all of them, in examples; without the time limit if c′ is not resolved.
        time_limit: √(α(B̄−1)/c′) over the intervals of α and c′; α includes communication, c′ is shared by the workers.
        efficiency: 1/(1 + (B−1)/B̄).
        run_batch_size: of the measured run.
        run_learning_rate: of the measured run, taken as tuned for its batch; NaN for Adam.
        learning_rate: η of the mean gradient at B: the problem's own, tuned for B by 1/(1 + (B−1)/B̄); NaN for Adam.
        step_size: γ = η/B, of the summed gradient; NaN for Adam.
        stable_learning_rate: 2(1+m)/β, m the momentum; NaN for Adam.
        schedule: batch sizes that follow B_D along the run, within the other limits.
        at_workers: the same for more workers.
        rates: what Theorems 2, 3 and 5 promise.
        mechanism: time to an accuracy with DropConnect against plain gradients; None if it was not asked for, or the
            timing does not resolve c′.
        certificate: a bound on the mean ‖∇F‖² of the measured run (Theorem 2 with the δ_k, M_k² of its points).
        stability: Theorem 9, if the problem is a linear model.
        warnings: what speaks against this plan, in sentences.
    """

    problem: str
    constants: Mapping[str, Constant]
    harmonic_mean: float
    step_time: StepTime
    workers: int
    communication: float
    batch_size: int
    batch_size_range: tuple[int, int]
    limited_by: PlanLimit
    limits: Mapping[PlanLimit, float]
    time_limit: Estimate | None
    efficiency: float
    run_batch_size: int
    run_learning_rate: float
    learning_rate: float
    step_size: float
    stable_learning_rate: float
    schedule: BatchSchedule
    at_workers: Sequence[AtWorkers]
    rates: Sequence[Rates]
    certificate: float
    stability: Stability | None
    mechanism: MechanismTime | None = None
    warnings: Sequence[str] = ()


def plan(
    problem: Problem,
    *,
    passes: float = 2,
    points: int = 6,
    accuracy: float = 0.1,
    delta: float = 1.0,
    l2: float = 0.0,
    step_time: StepTime | None = None,
    communication: float = 0.0,
    workers: int = 1,
    link: Link | None = None,
    mechanism: Mechanism | None = None,
    granularity: Granularity = "example",
    optimizer: optim.Optimizer | type[optim.Optimizer] = optim.SGD,
    seed: int = 0,
    on_stage: Callable[[str], None] | None = None,
) -> Plan:
    """Time a step, measure along a run, and recommend a batch size and a learning rate.

    Args:
        problem: its model is trained for `passes` passes, in place.
        passes: length of the measured run.
        points: exact measurements along it.
        accuracy: ε of the theorems, as a share of the criterion's value at the start.
        delta: δ of the noise limit 1 + δ·B̄: a batch there has efficiency 1/(1+δ).
        l2: λ of a term (λ/2)‖w‖² in the loss, if any; enables Theorem 5.
        step_time: α and c′ on one worker; None to time them here.
        communication: seconds per step that workers communicate, added to α.
        workers: P, sharing the examples of a step.
        link: of a table over P.
        mechanism: DropConnect, to be compared with plain gradients in time to an accuracy; its draws are timed here.
        granularity: "example" or "worker": what one draw of the mechanism is for.
        optimizer: of the training: SGD, with its momentum, or one of Adam's family; or its class.
        seed: of the order of the data.
        on_stage: called with a description of the next stage.

    Returns:
        The plan.

    Raises:
        ValueError: if an argument is out of range, all gradients are zero, the run diverges, or the mechanism is not
            DropConnect.
        TypeError: for an optimizer that no number is known for, such as sign descent or Muon, or without a `Problem`.
    """
    if not isinstance(problem, Problem):
        raise TypeError(
            f"plan needs a vg.Problem, which holds model, losses and data; got {type(problem).__name__}. Make one: "
            "vg.Problem(name=…, model=…, losses=…, train=…)."
        )
    non_negative(passes=passes, l2=l2, communication=communication)
    positive(accuracy=accuracy, delta=delta)
    whole_number(points=points, workers=workers)
    momentum = _momentum(optimizer)
    dropped = None if mechanism is None else with_a_model(mechanism)
    say = on_stage or (lambda _: None)
    if step_time is None:
        say("timing steps")
        step_time = timed_step(problem)
    masked = None
    if dropped is not None:
        say("timing steps with the mechanism")
        masked = timed_step(problem, mechanism=dropped, granularity=granularity)
    say("measuring along a run")
    found, curvatures = measure_run(problem, passes, points, seed, curvature=not certified(problem, l2))
    say("bounding the constants")
    made = make_plan(
        problem,
        found,
        curvatures,
        accuracy=accuracy,
        delta=delta,
        l2=l2,
        step_time=step_time,
        communication=communication,
        workers=workers,
        link=link,
        momentum=momentum,
    )
    if dropped is None or masked is None:
        return made
    if not step_time.resolved:
        return replace(made, warnings=(*made.warnings, f"no time with {type(dropped).__name__}: {UNRESOLVED}"))
    return replace(made, mechanism=_compared(problem, made, dropped, granularity, masked, workers))


def with_a_model(mechanism: object) -> DropConnect:
    """The mechanism, if a plan has a model of the time with it."""
    if not isinstance(mechanism, DropConnect):
        raise ValueError(
            "mechanism: a plan has a model of the time with DropConnect only, not with "
            f"{type(mechanism).__name__}. Measure it: `variegrad train --mechanism`."
        )
    return mechanism


def _momentum(optimizer: optim.Optimizer | type[optim.Optimizer]) -> float | None:
    """Momentum of SGD, None for Adam's family."""
    try:
        rule = StepSizeRule.of(optimizer)
    except TypeError as error:
        name = (optimizer if isinstance(optimizer, type) else type(optimizer)).__name__
        raise TypeError(
            f"optimizer: for {name} no number is known that predicts the critical batch size. Measure it: vg.branch."
        ) from error
    if rule is StepSizeRule.SQUARE_ROOT:
        return None
    return 0.0 if isinstance(optimizer, type) else float(optimizer.param_groups[0].get("momentum", 0.0))


def _compared(
    problem: Problem,
    made: Plan,
    mechanism: DropConnect,
    granularity: Granularity,
    masked: StepTime,
    workers: int,
) -> MechanismTime:
    plain = made.step_time
    per_example = masked.seconds_per_example.value - plain.seconds_per_example.value
    return mechanism_time(
        bound=made.harmonic_mean,
        seconds_per_step=plain.seconds_per_step,
        seconds_per_example=plain.seconds_per_example.value / workers,
        communication=made.communication,
        drop=mechanism.p,
        granularity=granularity,
        workers=workers,
        extra_seconds_per_step=max(0.0, masked.seconds_per_step - plain.seconds_per_step),
        extra_seconds_per_example=max(0.0, per_example) / workers,
        largest=max(workers, len(problem.train)),  # type: ignore[arg-type]
    )


def measure_run(
    problem: Problem, passes: float, points: int, seed: int, *, curvature: bool = True
) -> tuple[list[Point], list[float]]:
    """Exact measurements along a run of the problem's own step, and the top curvature at its ends.

    Args:
        problem: what to measure; its model is trained in place.
        passes: how long.
        points: how many measurements.
        seed: of the order of the data.
        curvature: whether β is to be estimated; a linear model has a certificate of it.

    Returns:
        The measurements, and estimates of β.
    """
    n = len(problem.train)  # type: ignore[arg-type]
    sample = Subset(problem.train, range(min(n, CURVATURE_EXAMPLES)))

    def largest() -> list[float]:
        if not curvature:
            return []
        batches = list(passes_over(sample, 256))
        return [constants.smoothness(problem.model, problem.losses, batches, steps=10, seed=seed).value]

    curvatures = largest()
    followed = replace(problem, accuracy=None, test=None)  # no plan needs them, and each is a pass over the data
    found = list(
        measure_along(
            followed, passes=passes, points=points, batch_size=min(64, n), step_size=problem.step_size, seed=seed
        )
    )
    return found, curvatures + largest()


def make_plan(
    problem: Problem,
    points: Sequence[Point],
    curvatures: Sequence[float],
    *,
    accuracy: float,
    delta: float,
    l2: float,
    step_time: StepTime,
    communication: float = 0.0,
    workers: int = 1,
    link: Link | None = None,
    momentum: float | None = 0.0,
) -> Plan:
    """Put the theory to the numbers of a measured problem.

    Args:
        problem: what was measured.
        points: along its run.
        curvatures: estimates of β; none for a linear model, whose certificate is used.
        accuracy: ε as a share of the criterion's value at the start.
        delta: δ, the batch in units of the bound.
        l2: λ of a term in the loss; 0 for none.
        step_time: α and c′ of a step of α + c′B seconds on one worker.
        communication: seconds per step that P workers communicate, whatever P; added to α.
        workers: P, sharing the examples of a step.
        link: of a table over P.
        momentum: m of SGD; None for Adam's family.

    Returns:
        The plan.

    Raises:
        ValueError: if all gradients are zero.
    """
    n = len(problem.train)  # type: ignore[arg-type]
    known, features = certificates(problem, l2)
    norms = [point.diversity.sq_norm_of_mean for point in points]
    moments = [point.diversity.mean_sq_norm for point in points]
    told = [point for point in points if not point.diversity.undefined]
    bounds = [max(1.0, point.diversity.batch_size_bound) for point in told]
    if not bounds:
        raise ValueError(f"{problem.name}: all gradients are zero at every point, so there is nothing to plan.")
    gap = constants.initial_gap(points[0].loss)
    found: dict[str, Constant] = {
        "inf B_D": _estimate(min(bounds), f"smallest of {len(bounds)} exact measurements along a run; not a bound"),
        "β": _estimate(
            max(curvatures, default=math.nan), "top Hessian eigenvalue by Lanczos at the run's ends; not a bound"
        ),
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
    own = min(64, n)
    mean = over_run(points, own)
    mean_bound = max(1.0, min(mean.harmonic_mean if mean else bound, 1e12))
    sent = communication + (0.0 if link is None else link.all_reduce(gradient_bytes(problem), workers))
    alpha = step_time.seconds_per_step
    least, most = step_time.seconds_per_step_range or (alpha, alpha)
    times = {PlanLimit.NOISE: 1 + delta * mean_bound, PlanLimit.DATA: float(n)}
    c = step_time.seconds_per_example.scaled(1 / workers)
    value, low, high = (
        _fastest(fixed + sent, each, mean_bound) for fixed, each in ((alpha, c.value), (least, c.high), (most, c.low))
    )
    time_limit = Estimate(value=value, low=low, high=high) if step_time.resolved else None
    smallest = step_time.sizes[0] if step_time.sizes else 1  # nothing is known of smaller steps than were timed
    if step_time.resolved:
        times[PlanLimit.TIME] = max(smallest, value)
    slow = 1.0 if momentum is None else 1 / (1 - momentum)  # learning rate of the slow directions, in units of η
    stable = math.inf if not beta > 0 else 2 * (2 - 1 / slow) / beta
    if momentum is not None:
        times[PlanLimit.STABILITY] = _stable_batch(problem.step_size, own, mean_bound, stable * slow)
    limited_by = min(times, key=lambda limit: times[limit])
    batch_size = max(1, math.floor(times[limited_by]))
    others = min(size for limit, size in times.items() if limit is not PlanLimit.TIME)
    least_batch, most_batch = (max(1, math.floor(min(others, max(smallest, end)))) for end in (low, high))
    at_workers = (
        []
        if link is None
        else over_workers(problem, step_time, alpha + communication, link, mean_bound, delta, workers)
    )
    step = problem.step_size * (1 + (own - 1) / mean_bound) / (1 + (batch_size - 1) / mean_bound)
    repeats = [max(1, after.updates - before.updates) for before, after in pairwise(points)] or [1]
    return Plan(
        problem=problem.name,
        constants=found,
        harmonic_mean=mean_bound,
        step_time=step_time,
        workers=workers,
        communication=sent,
        batch_size=batch_size,
        batch_size_range=(least_batch, most_batch),
        limited_by=limited_by,
        limits=times,
        time_limit=time_limit,
        efficiency=efficiency(batch_size=batch_size, bound=mean_bound),
        run_batch_size=own,
        run_learning_rate=problem.step_size * own / slow if momentum is not None else math.nan,
        learning_rate=step / slow * batch_size if momentum is not None else math.nan,
        step_size=step / slow if momentum is not None else math.nan,
        stable_learning_rate=stable if momentum is not None else math.nan,
        schedule=BatchSchedule.along(
            [round(point.passes * n) for point in told],
            [max(1.0, point.diversity.batch_size_bound) for point in told],
            delta=delta,
            largest=min(size for limit, size in times.items() if limit is not PlanLimit.NOISE),
        ),
        at_workers=at_workers,
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
        stability=stability(
            problem,
            features,
            leave_one_out=known["inf B_D, any w, one example left out"].value if known else 0.0,
            batch_size=batch_size,
            step_size=step,
            updates=points[-1].updates * own,
        ),
        warnings=tuple(
            _warnings(
                points,
                batch_size=batch_size,
                bound=mean_bound,
                workers=workers,
                at_workers=at_workers,
                table_missing=link is not None and not step_time.resolved,
                rates=(problem.step_size * own / slow, step / slow * batch_size, stable),
            )
        ),
    )


def _warnings(
    points: Sequence[Point],
    *,
    batch_size: int,
    bound: float,
    workers: int,
    at_workers: Sequence[AtWorkers],
    table_missing: bool,
    rates: tuple[float, float, float],
) -> Iterator[str]:
    """What speaks against a plan; `rates` are the learning rate of the run, that of the plan, and the stable one."""
    if (share := efficiency(batch_size=batch_size, bound=bound)) < 0.2:
        yield f"at the batch size below {1 - share:.0%} of the examples are redundant"
    first, last = points[0].loss, points[-1].loss
    if len(points) > 1 and not last < first:
        yield (
            f"the loss did not fall along the measured run, from {first:.3g} to {last:.3g}: the plan may not hold for "
            "a run that trains; change the learning rate or measure a longer run"
        )
    run, planned, stable = rates
    if max(run, planned) > stable:
        which = (
            f"learning rate of the measured run, {run:.2g}," if run > stable else f"learning rate below, {planned:.2g},"
        )
        yield f"the {which} exceeds the largest stable one, {stable:.2g}: lower it"
    if workers > batch_size:
        yield f"only {batch_size:,} of the {workers:,} workers have an example of a batch of {batch_size:,}"
    slower = [row for row in at_workers if row.workers == workers and row.speed_up < 1]
    if slower:
        yield f"{workers:,} workers over this link train {slower[0].speed_up:.2g} times as fast as one"
    if table_missing:
        yield f"no table over the number of workers: {UNRESOLVED}"


def _fastest(alpha: float, per_example: float, bound: float) -> float:
    return math.sqrt(alpha * (bound - 1) / per_example) if per_example > 0 else math.inf


def _stable_batch(step_size: float, own: int, bound: float, stable: float) -> float:
    """The B at which the learning rate tuned for B, γ₀(1+(b−1)/B̄)·B/(1+(B−1)/B̄), reaches the largest stable one."""
    if math.isinf(stable):
        return math.inf
    reached = stable / (step_size * (1 + (own - 1) / bound))
    return math.inf if reached >= bound else max(1.0, reached * (1 - 1 / bound) / (1 - reached / bound))


def _rates(
    found: Mapping[str, Constant], sq_gradient: float, *, accuracy: float, delta: float, l2: float
) -> list[Rates]:
    beta, moment, gap = found["β"].value, found["M²"].value, found["F₀ − F*"].value
    bound, mu = found["inf B_D"].value, found["μ"].value
    made = []
    if beta > 0 and moment > 0 and sq_gradient > 0:
        shared: dict[str, Any] = {"smoothness": beta, "second_moment": moment, "bound": bound, "delta": delta}
        made.append(rates_smooth(error=accuracy * sq_gradient, initial_gap=gap, **shared))
        if 0 < mu < math.inf:
            made.append(rates_polyak_lojasiewicz(error=accuracy * gap, pl_constant=mu, initial_gap=gap, **shared))
        if l2 > 0:
            distance = found["D₀"].value
            made.append(
                rates_strongly_convex(error=accuracy * distance, strong_convexity=l2, sq_distance=distance, **shared)
            )
    return made


def _estimate(value: float, basis: str) -> Constant:
    return Constant(value=value, certified=False, basis=basis)
