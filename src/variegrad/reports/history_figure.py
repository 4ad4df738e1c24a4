"""The figure of a history: B_D against the step with its interval as a band, and below it the efficiency."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from variegrad.reports.history_document import HistoryPoint, evenly
from variegrad.reports.marks import DASHES, laid_out, log_axis
from variegrad.reports.style import BLUE, GREEN, INK, ORANGE, QUIET, drawable, in_figures, new_figure, style

# The short last batch of an epoch is no change of the batch size: a lone spike is not drawn.
NEIGHBOURS = 2


def bound_and_efficiency(points: Sequence[HistoryPoint], name: str) -> Figure:
    """B̂_D, its interval and its lower confidence bound over the steps; below, the efficiency 1/(1+(B−1)/B_D).

    Args:
        points: the readings, at least one; if there are very many, some are drawn.
        name: of the run.

    Returns:
        The figure. A reading that cannot tell has a mark at the lower edge (●), and neither band nor line; ▲ at the
        upper edge: nothing bounds B_D from above; ✖: it is undefined. The batch size is the usual one, the median over
        the steps of a reading and its neighbours.
    """
    drawn = evenly(at_usual_batch_size(points))
    x = [point.step for point in drawn]
    unit = drawn[-1].unit
    with style():
        figure = new_figure(5.7, f"Batch-size bound · {drawable(name, 28)}")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1.0])
        _bounds(upper, x, drawn)
        _efficiency(lower, x, drawn)
        upper.set_ylabel(f"bound $B_D$ ({drawable(unit, 16)}, log scale)")
        lower.set_xlabel("optimizer step")
        lower.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        lower.xaxis.set_major_formatter(FuncFormatter(lambda value, _: in_figures(float(value))))
        if len(set(x)) == 1:
            lower.set_xticks([x[0]])
        handles, labels = upper.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=2, alignment="left", columnspacing=1.2)
        figure.align_ylabels([upper, lower])
        return laid_out(figure)


def at_usual_batch_size(points: Sequence[HistoryPoint]) -> list[HistoryPoint]:
    """Each point with the batch size that is usual around it: the median over itself and two readings on either side.

    Args:
        points: in the order of their steps.

    Returns:
        As many points; a lasting change of the batch size stays where it is.
    """
    sizes = [point.usual_batch_size for point in points]
    around = (sizes[max(0, k - NEIGHBOURS) : k + NEIGHBOURS + 1] for k in range(len(sizes)))
    return [
        dataclasses.replace(point, usual_batch_size=statistics.median_high(near))
        for point, near in zip(points, around, strict=True)
    ]


def _bounds(ax: Axes, x: Sequence[int], drawn: Sequence[HistoryPoint]) -> None:
    told = [not (point.cannot_tell or math.isnan(point.bound)) for point in drawn]
    finite = [p.bound if ok and math.isfinite(p.bound) else math.nan for p, ok in zip(drawn, told, strict=True)]
    lower = [p.lower_confidence_bound if ok else math.nan for p, ok in zip(drawn, told, strict=True)]
    high = [p.high if ok else math.nan for p, ok in zip(drawn, told, strict=True)]
    batch = [float(point.usual_batch_size) for point in drawn]
    log_axis(ax, [*finite, *lower, *batch, *(h for h in high if h < 100 * max(_known(finite), default=1.0))])
    top = ax.get_ylim()[1]
    # If nothing bounds B_D from above the band goes to the edge, and a mark says that it goes on.
    upper = [min(h, top) if not math.isnan(h) else math.nan for h in high]
    bottom = [low if math.isnan(low) else max(low, ax.get_ylim()[0]) for low in lower]
    marker = "o" if len(drawn) <= 24 else ""
    _band(ax, x, bottom, upper, "its interval")
    ax.plot(x, finite, color=BLUE, marker=marker or _lonely(finite), label="estimate of $B_D$")
    ax.plot(x, lower, color=GREEN, linewidth=1.4, marker=marker or _lonely(lower), ms=3, label="at least (lower bound)")
    same = len(set(batch)) == 1
    label = f"usual batch: {in_figures(batch[-1])}" if same else "usual batch"
    if len(drawn) == 1:
        ax.axhline(batch[0], color=QUIET, linewidth=1.2, linestyle=DASHES, label=label)
    else:
        ax.step(x, batch, where="post", color=QUIET, linewidth=1.2, linestyle=DASHES, label=label)
    edges = (
        ("no upper limit", "^", 1.0, BLUE, [ok and p.high == math.inf for p, ok in zip(drawn, told, strict=True)]),
        ("too early to tell", "o", 0.0, ORANGE, [p.cannot_tell and not math.isnan(p.bound) for p in drawn]),
        ("undefined", "X", 0.0, INK, [math.isnan(p.bound) for p in drawn]),
    )
    for label, shape, height, color, is_so in edges:
        at = [step for step, holds in zip(x, is_so, strict=True) if holds]
        if at:
            _at_the_edge(ax, at, height, shape, color, label, crowded=len(drawn) > 24)


def _efficiency(ax: Axes, x: Sequence[int], drawn: Sequence[HistoryPoint]) -> None:
    low, middle, high = (
        [math.nan if p.cannot_tell else 100 * p.efficiency[k] for p in drawn] for k in range(3)
    )  # fmt: skip
    _band(ax, x, low, high)
    ax.plot(x, middle, color=BLUE, marker="o" if len(drawn) <= 24 else _lonely(middle))
    for border in (50, 80):
        ax.axhline(border, color=QUIET, linewidth=1.0, linestyle=":")
    ax.set_ylim(0, 105)
    ax.set_yticks([0, 50, 80, 100])
    ax.set_ylabel("efficiency (%)")


def _band(ax: Axes, x: Sequence[int], low: Sequence[float], high: Sequence[float], label: str = "_") -> None:
    """Between two curves; a reading without neighbours that can tell has a bar, as a band of one point is not seen."""
    known = [not (math.isnan(a) or math.isnan(b)) for a, b in zip(low, high, strict=True)]
    ax.fill_between(x, low, high, where=known, color=BLUE, alpha=0.18, linewidth=0, label=label)
    padded = [False, *known, False]
    alone = [k for k, ok in enumerate(known) if ok and not padded[k] and not padded[k + 2]]
    ax.vlines([x[k] for k in alone], [low[k] for k in alone], [high[k] for k in alone], color=BLUE, alpha=0.3, lw=8)


def _at_the_edge(
    ax: Axes, at: Sequence[int], height: float, shape: str, color: str, label: str, *, crowded: bool
) -> None:
    ax.plot(
        at,
        [height] * len(at),
        linestyle="",
        marker=shape,
        markersize=5 if crowded else 8,
        markeredgecolor="none" if crowded else "white",  # a white edge would hide the neighbour
        color=color,
        transform=ax.get_xaxis_transform(),
        clip_on=False,
        zorder=5,
        label=label,
    )


def _known(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _lonely(values: Sequence[float]) -> str:
    """A marker where a line alone could show nothing: a value between two gaps."""
    gaps = [math.nan, *values, math.nan]
    alone = any(
        math.isnan(before) and not math.isnan(value) and math.isnan(after)
        for before, value, after in zip(gaps, gaps[1:], gaps[2:], strict=False)
    )
    return "." if alone else ""
