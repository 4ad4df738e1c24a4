"""The picture of a history: B_D against the step with its interval as a band, and below it what the batch is worth."""

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
        points: the readings, at least one; where there are very many, some are drawn.
        name: of the run.

    Returns:
        The figure. Marks at the edge: ▲ where nothing bounds B_D from above, ● where nothing can be told yet, ✖ where
        it is undefined. The batch size, and the efficiency at it, are those of the median over 5 neighbouring readings;
        the legend says so where that makes a difference.
    """
    smooth = at_usual_batch_size(points)
    drawn = evenly(smooth)
    x = [point.step for point in drawn]
    with style():
        figure = new_figure(5.6, f"Batch-size bound · {drawable(name, 28)}")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1.0])
        _bounds(upper, x, drawn, "" if smooth == list(points) else " (running median)")
        _efficiency(lower, x, drawn)
        lower.set_xlabel("optimiser step")
        lower.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        lower.xaxis.set_major_formatter(FuncFormatter(lambda value, _: in_figures(float(value))))
        if len(set(x)) == 1:
            lower.set_xticks([x[0]])
        handles, labels = upper.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=2, alignment="left")
        figure.align_ylabels([upper, lower])
        return laid_out(figure)


def at_usual_batch_size(points: Sequence[HistoryPoint]) -> list[HistoryPoint]:
    """Each point with the batch size that is usual around it: the median over itself and two readings on either side.

    Args:
        points: in the order of their steps.

    Returns:
        As many points; a lasting change of the batch size stays where it is.
    """
    sizes = [point.batch_size for point in points]
    around = (sizes[max(0, k - NEIGHBOURS) : k + NEIGHBOURS + 1] for k in range(len(sizes)))
    return [
        dataclasses.replace(point, batch_size=statistics.median_high(near))
        for point, near in zip(points, around, strict=True)
    ]


def _bounds(ax: Axes, x: Sequence[int], drawn: Sequence[HistoryPoint], smoothed: str) -> None:
    finite = [point.bound if math.isfinite(point.bound) else math.nan for point in drawn]
    lower = [math.nan if point.cannot_tell else point.lower_confidence_bound for point in drawn]
    high = [point.high for point in drawn]
    batch = [float(point.batch_size) for point in drawn]
    log_axis(ax, [*finite, *lower, *batch, *(h for h in high if h < 100 * max(_known(finite), default=1.0))])
    top = ax.get_ylim()[1]
    # Where nothing bounds B_D from above the band goes to the edge, and a mark says that it goes on.
    bottom = [math.nan if math.isnan(point.bound) else max(point.low, ax.get_ylim()[0]) for point in drawn]
    upper = [min(h, top) for h in high]
    single, batch_label = len(drawn) == 1, _batch_label(batch) + smoothed
    marker = "o" if len(drawn) <= 24 else ""
    if single:
        ax.vlines(x, bottom, upper, color=BLUE, alpha=0.3, linewidth=8, label="its interval")
    else:
        ax.fill_between(x, bottom, upper, color=BLUE, alpha=0.18, linewidth=0, label="its interval")
    ax.plot(x, finite, color=BLUE, marker=marker or _lonely(finite), label="estimate of $B_D$")
    ax.plot(x, lower, color=GREEN, linewidth=1.4, marker=marker or _lonely(lower), ms=3, label="lower confidence bound")
    if single:
        ax.axhline(batch[0], color=QUIET, linewidth=1.2, linestyle=DASHES, label=batch_label)
    else:
        ax.step(
            x, batch, where="post", color=QUIET, linewidth=1.2, linestyle=DASHES, label=_batch_label(batch) + smoothed
        )
    edges = (
        ("no upper limit", "^", 1.0, BLUE, [p.high == math.inf and not p.cannot_tell for p in drawn]),
        ("cannot tell yet", "o", 0.0, ORANGE, [p.cannot_tell and not math.isnan(p.bound) for p in drawn]),
        ("undefined", "X", 0.0, INK, [math.isnan(p.bound) for p in drawn]),
    )
    for label, shape, height, color, is_so in edges:
        at = [step for step, holds in zip(x, is_so, strict=True) if holds]
        if at:
            _at_the_edge(ax, at, height, shape, color, label, crowded=len(drawn) > 24)
    ax.set_ylabel("bound $B_D$ (examples)")


def _efficiency(ax: Axes, x: Sequence[int], drawn: Sequence[HistoryPoint]) -> None:
    low, middle, high = (
        [100 * value for value in column] for column in zip(*(point.efficiency for point in drawn), strict=True)
    )
    if len(drawn) == 1:
        ax.vlines(x, low, high, color=BLUE, alpha=0.3, linewidth=8)
    else:
        ax.fill_between(x, low, high, color=BLUE, alpha=0.18, linewidth=0)
    # Without a point estimate there is an interval alone: a line through it would pretend to know.
    known = [math.nan if point.cannot_tell else value for point, value in zip(drawn, middle, strict=True)]
    ax.plot(x, known, color=BLUE, marker="o" if len(drawn) <= 24 else _lonely(known))
    for border in (50, 80):
        ax.axhline(border, color=QUIET, linewidth=1.0, linestyle=":")
    ax.set_ylim(0, 105)
    ax.set_yticks([0, 50, 100])
    ax.set_ylabel("efficiency (%)")


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


def _batch_label(batch: Sequence[float]) -> str:
    return f"batch size in use: {in_figures(batch[-1])}" if len(set(batch)) == 1 else "batch size in use"
