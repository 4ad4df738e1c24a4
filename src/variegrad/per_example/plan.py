"""Which of several exact ways is cheapest here: measured once for each layer and shape, like a benchmark mode.

No formula predicts the fastest form of a convolution's per-example gradients on a given machine; running each
candidate once does. Their results are compared with each other as they are timed, so that no way is ever taken that
has not agreed with another one. A `Plan` belongs to the caller; where none is active the first candidate, the cheapest
by the count of operations, is taken; a plan that does not measure takes it too, and can be repeated exactly.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

Result = TypeVar("Result")
Way = Callable[[], Result]
_active = threading.local()

# A further timing of the best candidates decides between those that are this close.
CLOSE = 1.3


class Disagreement(RuntimeError):  # noqa: N818
    """Two ways to the same sums that differ by more than rounding."""

    def __init__(self, rule: str, ways: tuple[str, str], relative: float) -> None:
        super().__init__(f"{ways[0]!r} and {ways[1]!r}, two ways of the rule {rule!r}, differ")
        self.rule, self.ways, self.relative = rule, ways, relative


class Plan:
    """Choices by key, and what each candidate took when it was tried."""

    def __init__(self, *, measured: bool = True) -> None:
        self.measured = measured
        self.chosen: dict[object, str] = {}
        self.seconds: dict[object, dict[str, float]] = {}
        self.agreed: set[tuple[str, str]] = set()


class following:  # noqa: N801 - a context manager, entered at every node of every pass: a generator would cost more
    """Let `choose` measure and remember in this plan, in this thread, inside the block."""

    __slots__ = ("before", "plan")

    def __init__(self, plan: Plan | None) -> None:
        self.plan = plan

    def __enter__(self) -> None:
        self.before = getattr(_active, "plan", None)
        _active.plan = self.plan

    def __exit__(self, *_: object) -> None:
        _active.plan = self.before


def choose(
    key: tuple[object, ...],
    ways: Mapping[str, Way[Result]],
    apart: Callable[[Result, Result], float],
    witness: Mapping[str, Way[Result]] | None = None,
) -> Result:
    """Run the fastest of several ways to the same result."""
    plan: Plan | None = getattr(_active, "plan", None)
    if plan is None:
        return next(iter(ways.values()))()
    if key in plan.chosen:
        return ways[plan.chosen[key]]()
    if not plan.measured or len(ways) == 1:
        name, way = next(iter(ways.items()))
        if (key[0], _kind(name)) in plan.agreed:
            return way()
        return _witnessed(plan, str(key[0]), {**ways, **(witness or {})}, apart)
    (default, way), *others = ways.items()
    taken, first = _timed(way)
    seconds = {default: taken}
    for name, way in others:
        seconds[name], result = _timed(way)
        _compare(plan, str(key[0]), (default, first), (name, result), apart)
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
    """What the active plan chose for a key."""
    plan: Plan | None = getattr(_active, "plan", None)
    return None if plan is None else plan.chosen.get(key)


def _witnessed(
    plan: Plan, rule: str, ways: Mapping[str, Way[Result]], apart: Callable[[Result, Result], float]
) -> Result:
    names = iter(ways)
    first, second = next(names), next(names, None)
    result = ways[first]()
    if second is not None and (rule, _kind(first)) not in plan.agreed:
        _compare(plan, rule, (first, result), (second, ways[second]()), apart)
    return result


def _compare(
    plan: Plan,
    rule: str,
    one: tuple[str, Result],
    other: tuple[str, Result],
    apart: Callable[[Result, Result], float],
) -> None:
    off = apart(one[1], other[1])
    if not off <= 1:
        raise Disagreement(rule, (one[0], other[0]), off)
    plan.agreed |= {(rule, _kind(one[0])), (rule, _kind(other[0]))}


def _kind(name: str) -> str:
    return name.partition(" ×")[0]  # the size of a tile makes no other way


def _timed(way: Way[Result]) -> tuple[float, Result]:
    start = time.perf_counter()
    result = way()
    return time.perf_counter() - start, result
