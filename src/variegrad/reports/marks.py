"""What lies on the axes of every picture: lines with gaps, points at the edge, reference lines, logarithmic ticks.

A log axis has no place for +inf and for an undefined number: such points are drawn at its edges, where they are seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from variegrad.reports.style import QUIET, in_figures, raised

DASHES = (0, (4, 3))


def line(
    ax: Axes,
    x: Sequence[float],
    values: Sequence[float],
    *,
    color: str,
    marker: str,
    label: str = "",
    dashed: bool = False,
) -> Line2D:
    """A line through the finite values, and a mark at the edge for each other: ▲ at the top for +inf, ✖ below for NaN.

    Args:
        ax: the axes.
        x: where the values stand.
        values: the same number of values.
        color: of line and marks.
        marker: of a finite value.
        label: its name in a legend; none if it is empty or no value is finite.
        dashed: whether the line is dashed.

    Returns:
        The line, for a legend.
    """
    finite = [value if math.isfinite(value) else math.nan for value in values]
    for is_one, height, edge_marker in ((math.isinf, 1.0, "^"), (math.isnan, 0.0, "X")):
        at = [place for place, value in zip(x, values, strict=True) if is_one(value)]
        if at:
            ax.plot(
                at,
                [height] * len(at),
                linestyle="",
                marker=edge_marker,
                markersize=8,
                markeredgecolor="white",
                color=color,
                transform=ax.get_xaxis_transform(),
                clip_on=False,
                zorder=5,
            )
    shown = label if label and not all(map(math.isnan, finite)) else "_"
    style = DASHES if dashed else "-"
    # Many markers would become one thick line; none would hide a point that stands alone between two gaps.
    size = 4.5 if len(finite) <= 24 else 2.5
    return ax.plot(x, finite, color=color, marker=marker, ms=size, linestyle=style, label=shown, clip_on=False)[0]


def reference(ax: Axes, value: float, label: str, *, dotted: bool = False) -> None:
    """A quiet horizontal line to compare with; nothing if the value is not finite.

    Args:
        ax: the axes.
        value: its height.
        label: its name in the legend.
        dotted: dotted rather than dashed.
    """
    if math.isfinite(value):
        ax.axhline(value, color=QUIET, linewidth=1.2, linestyle=":" if dotted else DASHES, label=label)


def passes_axis(ax: Axes, passes: Sequence[float]) -> None:
    """Label the x axis of a run; a single point has its own tick and no invented neighbours.

    Args:
        ax: the axes.
        passes: where the points stand.
    """
    ax.set_xlabel("passes over the data")
    if len(passes) == 1:
        ax.set_xticks(passes, [f"{passes[0]:.3g}"])


def legend_above(ax: Axes) -> None:
    """A legend over the axes, where it can hide nothing.

    Args:
        ax: the axes.
    """
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        ax.legend(handles, labels, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, columnspacing=1.2)


def log_axis(ax: Axes, values: Sequence[float], *, headroom: float = 1.5) -> None:
    """Make the y axis logarithmic and fit it to the finite positive values.

    Args:
        ax: the axes.
        values: everything that is to be seen; what is not finite and positive is left out.
        headroom: the factor to leave free above the largest.
    """
    seen = [value for value in values if math.isfinite(value) and value > 0] or [1.0, 10.0]
    low, high = min(seen) / 1.5, max(seen) * headroom
    ax.set_yscale("log")
    ax.set_ylim(low, max(high, 4 * low))
    decades = math.log10(high / low)
    if decades < 0.9:
        steps: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    else:
        steps = (1.0, 2.0, 5.0) if decades < 1.4 else (1.0, 3.0) if decades < 3.2 else (1.0,)
    ax.yaxis.set_major_locator(LogLocator(subs=steps, numticks=8))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))


def octave_ticks(value: float, _position: int | None = None) -> str:
    """A tick on an axis of doublings: plain up to 65,536, a power of two beyond.

    Args:
        value: the tick's value.

    Returns:
        Its label.
    """
    return f"{value:,.0f}" if 1 <= value < 1e5 else f"2{raised(round(math.log2(value)))}"


def _tick(value: float) -> str:
    exponent = math.log10(value)
    if abs(exponent) >= 5 and exponent == round(exponent):
        return f"10{raised(round(exponent))}"
    return in_figures(value)


def laid_out(figure: Figure) -> Figure:
    """A finished figure, drawn once: its ticks are made at the first drawing, by the settings of that moment.

    Args:
        figure: the figure.

    Returns:
        The same figure, its layout fixed.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # PNG and SVG share one layout, and it is found only once.
    return figure
