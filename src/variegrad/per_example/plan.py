"""Which of several exact ways is cheapest here: measured once for each kind of layer, like a benchmark mode.

No formula predicts the fastest form of a convolution's per-example gradients on a given machine; running each
candidate once on a few examples does, and holds for other sizes near these. Their results are compared with each other
as they are timed, so that no way is ever taken that has not agreed with another one. A `Plan` belongs to the caller;
where none is active the first candidate, the cheapest by the count of operations, is taken; a plan that does not
measure takes it too, and can be repeated exactly.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

# A further timing of the best candidates decides between those that are this close.
CLOSE = 1.3
# Ways are timed on at most this many examples, and a choice serves sizes within this factor of those it was made for.
TRIED, NEAR = 32, 2
# Choices that are remembered; all are made anew beyond that.
REMEMBERED = 4096


@runtime_checkable
class Item(Protocol):
    """What has several exact ways to the same result."""

    @property
    def count(self) -> int:
        """How many examples it has."""

    @property
    def family(self) -> tuple[Hashable, ...]:
        """The rule's name, and what besides sizes decides which way is fastest."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes that differ from batch to batch, but for the number of examples."""

    def first(self, count: int) -> Any:
        """The same for the first few examples."""


Kind = TypeVar("Kind", bound=Item)
Result = TypeVar("Result")
Ways = Mapping[str, Callable[[Kind], Result]]
_active = threading.local()


class Disagreement(RuntimeError):  # noqa: N818
    """Two ways to the same sums that differ by more than rounding."""

    def __init__(self, rule: str, ways: tuple[str, str], relative: float) -> None:
        super().__init__(f"{ways[0]!r} and {ways[1]!r}, two ways of the rule {rule!r}, differ")
        self.rule, self.ways, self.relative = rule, ways, relative


class Plan:
    """Choices by (family, sizes), and what each candidate took when it was tried."""

    def __init__(self, *, measured: bool = True) -> None:
        self.measured = measured
        self.chosen: dict[tuple[Hashable, tuple[int, ...]], str] = {}
        self.seconds: dict[tuple[Hashable, tuple[int, ...]], dict[str, float]] = {}
        self.agreed: set[tuple[str, str]] = set()
        self._tried: dict[Hashable, list[tuple[int, ...]]] = {}

    def near(self, family: Hashable, sizes: tuple[int, ...]) -> str | None:
        """What was chosen for these sizes, or for the nearest ones in reach."""
        if (family, sizes) in self.chosen:
            return self.chosen[family, sizes]
        reach = [
            (max(max(a, b) / min(a, b) for a, b in zip(sizes, others, strict=True)), others)
            for others in self._tried.get(family, ())
        ]
        far, others = min(reach, default=(NEAR + 1.0, ()))
        return self.chosen[family, others] if far <= NEAR else None

    def remember(self, family: Hashable, sizes: tuple[int, ...], seconds: dict[str, float]) -> str:
        """Choose the fastest."""
        if len(self.chosen) >= REMEMBERED:
            for each in (self.chosen, self.seconds, self._tried):
                each.clear()
        self._tried.setdefault(family, []).append(sizes)
        self.seconds[family, sizes] = seconds
        way = self.chosen[family, sizes] = min(seconds, key=seconds.__getitem__)
        return way


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
    item: Kind,
    ways: Ways[Kind, Result],
    apart: Callable[[Kind, Result, Result], float],
    asked: Hashable = None,
    witness: Ways[Kind, Result] | None = None,
) -> Result:
    """Run the fastest of several ways to the same result.

    Args:
        item: what the ways are of.
        ways: name → way, the cheapest by the count of operations first.
        apart: how far two results are apart; 1 is as far as rounding may explain.
        asked: what is asked for, if that decides which way is fastest.
        witness: slower ways, to compare a sole way with.

    Returns:
        The result of one of the ways.

    Raises:
        Disagreement: if two ways differ by more than rounding.
    """
    plan: Plan | None = getattr(_active, "plan", None)
    if plan is None:
        return next(iter(ways.values()))(item)
    rule = str(item.family[0])
    if len(ways) == 1 or not plan.measured:
        name, way = next(iter(ways.items()))
        if (rule, _kind(name)) in plan.agreed:
            return way(item)
        return _witnessed(plan, item, {**ways, **(witness or {})}, apart)
    family, sizes = (item.family, asked), (min(item.count, TRIED), *item.sizes)
    known = plan.near(family, sizes)
    if known is not None and known not in ways:  # the size of a tile follows the batch
        known = next((name for name in ways if _kind(name) == _kind(known)), None)
    if known is None:
        known = plan.remember(family, sizes, _tried(plan, item.first(TRIED), ways, apart))
    return ways[known](item)


def chosen(item: Item, asked: Hashable = None) -> str | None:
    """What the active plan chose."""
    plan: Plan | None = getattr(_active, "plan", None)
    return None if plan is None else plan.near((item.family, asked), (min(item.count, TRIED), *item.sizes))


def _tried(
    plan: Plan, few: Kind, ways: Ways[Kind, Result], apart: Callable[[Kind, Result, Result], float]
) -> dict[str, float]:
    """Seconds that each way takes, all of them compared with the first."""
    seconds = {}
    first: tuple[str, Result] | None = None
    for name, way in ways.items():
        seconds[name], result = _timed(way, few)
        if first is None:
            first = name, result
        else:
            _compare(plan, few, first, (name, result), apart)
    # The first round also pays for cold caches and code: time those in reach once more.
    fastest = min(seconds.values())
    for name, way in ways.items():
        if seconds[name] <= CLOSE * 2 * fastest:
            seconds[name] = min(seconds[name], *(_timed(way, few)[0] for _ in range(2)))
    return seconds


def _witnessed(
    plan: Plan, item: Kind, ways: Ways[Kind, Result], apart: Callable[[Kind, Result, Result], float]
) -> Result:
    names = iter(ways)
    first, second = next(names), next(names, None)
    if second is not None:
        few = item.first(TRIED)
        _compare(plan, few, (first, ways[first](few)), (second, ways[second](few)), apart)
    return ways[first](item)


def _compare(
    plan: Plan,
    item: Kind,
    one: tuple[str, Result],
    other: tuple[str, Result],
    apart: Callable[[Kind, Result, Result], float],
) -> None:
    off, rule = apart(item, one[1], other[1]), str(item.family[0])
    if not off <= 1:
        raise Disagreement(rule, (one[0], other[0]), off)
    plan.agreed |= {(rule, _kind(one[0])), (rule, _kind(other[0]))}


def _kind(name: str) -> str:
    return name.partition(" ×")[0]  # the size of a tile makes no other way


def _timed(way: Callable[[Kind], Result], item: Kind) -> tuple[float, Result]:
    start = time.perf_counter()
    result = way(item)
    return time.perf_counter() - start, result
