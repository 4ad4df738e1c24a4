"""Which of several exact ways is cheapest here: measured once for each layer and shape, like a benchmark mode.

No formula predicts the fastest form of a convolution's per-example gradients on a given machine; running each
candidate once does. A `Plan` belongs to the caller; where none is active the first candidate, the cheapest by the
count of operations, is taken, so that a run can be made deterministic.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

Result = TypeVar("Result")
_active = threading.local()

# A further timing of the best candidates decides between those that are this close.
CLOSE = 1.3


class Plan:
    """Choices by key, and what each candidate took when it was tried.

    Attributes:
        chosen: key → name of the way taken.
        seconds: key → name → measured seconds.
    """

    def __init__(self) -> None:
        self.chosen: dict[object, str] = {}
        self.seconds: dict[object, dict[str, float]] = {}


class following:  # noqa: N801 - a context manager, entered at every node of every pass: a generator would cost more
    """Let `choose` measure and remember in this plan, in this thread, inside the block.

    Args:
        plan: the plan; None for the first candidate always.
    """

    __slots__ = ("before", "plan")

    def __init__(self, plan: Plan | None) -> None:
        self.plan = plan

    def __enter__(self) -> None:
        self.before = getattr(_active, "plan", None)
        _active.plan = self.plan

    def __exit__(self, *_: object) -> None:
        _active.plan = self.before


def choose(key: object, ways: Mapping[str, Callable[[], Result]]) -> Result:
    """Run the fastest of several ways to the same result.

    Args:
        key: what the choice depends on: rule, shapes, type.
        ways: name → way; the first is the default.

    Returns:
        The result.
    """
    plan: Plan | None = getattr(_active, "plan", None)
    if plan is None or len(ways) == 1:
        return next(iter(ways.values()))()
    if key in plan.chosen:
        return ways[plan.chosen[key]]()
    seconds = {name: _timed(way)[0] for name, way in ways.items()}
    fastest = min(seconds.values())
    # The first round also pays for cold caches and code: time those in reach once more.
    for name, way in ways.items():
        if seconds[name] <= CLOSE * 2 * fastest:
            for _ in range(2):
                taken, result = _timed(way)
                seconds[name] = min(seconds[name], taken)
    plan.seconds[key] = seconds
    plan.chosen[key] = min(seconds, key=seconds.__getitem__)
    return result


def chosen(key: object) -> str | None:
    """What the active plan chose for a key.

    Args:
        key: as for `choose`.

    Returns:
        The name of the way; None where there is no plan or no choice yet.
    """
    plan: Plan | None = getattr(_active, "plan", None)
    return None if plan is None else plan.chosen.get(key)


def _timed(way: Callable[[], Result]) -> tuple[float, Result]:
    start = time.perf_counter()
    result = way()
    return time.perf_counter() - start, result
