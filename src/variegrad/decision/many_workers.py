"""A plan's batch size for other numbers of workers: the best one at P = 1, 4, 16, … from the α-β model of the link."""

from __future__ import annotations

import math
from dataclasses import dataclass

from variegrad.decision.timing import StepTime
from variegrad.problems import Problem
from variegrad.theory import best_batch_size, efficiency, speed_up
from variegrad.theory.arguments import non_negative, positive


@dataclass(frozen=True, kw_only=True)
class AtWorkers:
    """The best batch for P workers, by the α-β model of an all-reduce.

    Attributes:
        workers: P.
        batch_size: B over all workers.
        seconds_per_step: α + c′B/P + communication.
        efficiency: 1/(1 + (B−1)/B̄), at a tuned learning rate.
        speed_up: in time to the same progress, over one worker at its own best batch.
        measured: whether these workers were timed; otherwise the row is extrapolated.
    """

    workers: int
    batch_size: int
    seconds_per_step: float
    efficiency: float
    speed_up: float
    measured: bool


@dataclass(frozen=True, kw_only=True)
class Link:
    """A network between workers.

    Attributes:
        bytes_per_second: bandwidth of each worker.
        latency: seconds per message.

    Raises:
        ValueError: if a number is out of range.
    """

    bytes_per_second: float
    latency: float = 5e-5

    def __post_init__(self) -> None:
        positive(bytes_per_second=self.bytes_per_second)
        non_negative(latency=self.latency)

    def all_reduce(self, size: int, workers: int) -> float:
        """Seconds to sum `size` bytes over P workers: 2·latency·⌈log₂P⌉ + 2·(P−1)/P·size/bandwidth.

        Args:
            size: bytes of a gradient.
            workers: P ≥ 1.

        Returns:
            Seconds; 0 for one worker.
        """
        hops = math.ceil(math.log2(workers))
        return 2 * self.latency * hops + 2 * (workers - 1) / workers * size / self.bytes_per_second


def over_workers(
    problem: Problem, step_time: StepTime, alpha: float, link: Link, bound: float, delta: float, measured: int
) -> list[AtWorkers]:
    """The best batch at P = 1, 4, 16, … 65,536 workers.

    Args:
        problem: whose gradients are sent.
        step_time: on one worker.
        alpha: fixed seconds of a step, communication of any number of workers included.
        link: between the workers.
        bound: B̄ of B_D.
        delta: δ of the noise limit 1 + δ·B̄.
        measured: a further P to list.

    Returns:
        A row per P; none if the timing does not resolve c′.
    """
    if not step_time.resolved:
        return []
    size = gradient_bytes(problem)
    rows: list[AtWorkers] = []
    alone = 0.0
    for workers in sorted({4**k for k in range(9)} | {measured}):
        per_example = step_time.seconds_per_example.value / workers
        fixed = alpha + link.all_reduce(size, workers)
        most = max(workers, math.floor(1 + delta * bound))  # one example per worker at least
        choice = best_batch_size(bound=bound, seconds_per_step=fixed, seconds_per_example=per_example, largest=most)
        batch_size = max(workers, choice.batch_size)
        seconds = fixed + per_example * batch_size
        progress = speed_up(batch_size=batch_size, bound=bound) / seconds
        alone = alone or progress
        rows.append(
            AtWorkers(
                workers=workers,
                batch_size=batch_size,
                seconds_per_step=seconds,
                efficiency=efficiency(batch_size=batch_size, bound=bound),
                speed_up=progress / alone,
                measured=workers == 1,
            )
        )
    return rows


def gradient_bytes(problem: Problem) -> int:
    """What a worker sends of each gradient.

    Args:
        problem: which.

    Returns:
        Bytes.
    """
    return sum(p.numel() * p.element_size() for p in problem.model.parameters() if p.requires_grad)
