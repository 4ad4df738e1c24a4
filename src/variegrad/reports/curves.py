"""Pictures of repeated experiments: a mean with its interval for each series, in the style of every other picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from variegrad.reports.marks import DASHES, laid_out, log_axis, octave_ticks
from variegrad.reports.style import MARKERS, OTHER, SERIES, WIDTH, drawable, new_figure, style


@runtime_checkable
class Range(Protocol):
    """A mean and its interval."""

    @property
    def mean(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a panel, with an interval at each point.

    Attributes:
        label: its name in the legend.
        x: where the points stand.
        mean: their heights.
        low: lower ends of the intervals.
        high: upper ends.
        joined: whether a line joins the points.
        quiet: whether it is a reference, dashed and grey.
        belongs_to: place of the series whose reference it is: dashed in that colour.
        notes: a word beside each point.
        runs: single curves behind the mean, drawn thin; instead of bars.
        beyond: at a point whose value is only known to be larger than a number, that number; else None.
    """

    label: str
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    joined: bool = True
    quiet: bool = False
    belongs_to: int | None = None
    notes: Sequence[str] = ()
    runs: Sequence[Sequence[float]] = ()
    beyond: Sequence[float | None] = ()

    @classmethod
    def of(
        cls,
        label: str,
        x: Sequence[float],
        ranges: Sequence[Range],
        *,
        joined: bool = True,
        notes: Sequence[str] = (),
        runs: Sequence[Sequence[float]] = (),
        beyond: Sequence[float | None] = (),
    ) -> Series:
        """A series of means with intervals.

        Args:
            label: its name.
            x: where they stand.
            ranges: a mean with its interval for each x.
            joined: whether a line joins the points.
            notes: a word beside each point.
            runs: single curves, one height per x.
            beyond: numbers that values exceed, where no more is known; else None.

        Returns:
            The series.
        """
        means, lows, highs = ([getattr(one, end) for one in ranges] for end in ("mean", "low", "high"))
        return cls(
            label=label, x=list(x), mean=means, low=lows, high=highs, joined=joined, notes=notes, runs=runs,
            beyond=beyond,
        )  # fmt: skip

    @classmethod
    def reference(cls, label: str, x: Sequence[float], y: Sequence[float], of: int | None = None) -> Series:
        """A line to compare with: what theory says.

        Args:
            label: its name.
            x: where its points stand.
            y: their heights.
            of: place of the series that it belongs to, in whose colour it is drawn.

        Returns:
            The series.
        """
        return cls(label=label, x=list(x), mean=list(y), low=list(y), high=list(y), quiet=True, belongs_to=of)


# Where a note may stand: offset in points, and how it is aligned there.
NOTED_AT = (
    ((7, 0), "left", "center"), ((-7, 0), "right", "center"), ((0, 7), "center", "bottom"), ((0, -7), "center", "top"),
    ((6, 6), "left", "bottom"), ((6, -6), "left", "top"), ((-6, 6), "right", "bottom"), ((-6, -6), "right", "top"),
    *(((x, y), side, "center") for y in (14, -14, 24, -24) for x, side in ((8, "left"), (-8, "right"))),
)  # fmt: skip

Panel = tuple[str, str, Sequence[Series]]


def panels(
    title: str, parts: Sequence[Panel], *, log_x: bool = False, log_y: bool = False, same_y: bool = False
) -> Figure:
    """Panels one below the other, each with its axes' names and its series; one legend if it is the same for all.

    Args:
        title: of the picture.
        parts: (name of x, name of y, series) for each panel.
        log_x: whether x is an axis of doublings.
        log_y: whether y is logarithmic.
        same_y: whether all panels have the same range of y, because they are to be compared.

    Returns:
        The figure.
    """
    lines = [math.ceil(sum(bool(one.label) for one in series) / 2) for _, _, series in parts]
    legends = [[one.label for one in series] for _, _, series in parts]
    if all(legend == legends[0] for legend in legends):
        lines[1:] = [0] * (len(parts) - 1)
    with style():
        height = 2.7 if len(parts) < 4 else 1.8  # inches: many panels are compared at one look
        figure = new_figure(0.5 + sum(height + 0.2 * rows for rows in lines), title)
        figure.set_figwidth(WIDTH)
        rows = figure.subplots(len(parts), 1, squeeze=False, sharey=same_y)[:, 0]
        for ax, (x_name, y_name, series), legend_lines in zip(rows, parts, lines, strict=True):
            for place, one in enumerate(series):
                _draw(ax, one, place, log_y=log_y)
            ax.set_xlabel(x_name)
            ax.set_ylabel(y_name)
            if log_x:
                ax.set_xscale("log", base=2)
                ax.xaxis.set_major_locator(LogLocator(base=2, numticks=9))
                ax.xaxis.set_minor_locator(NullLocator())
                ax.xaxis.set_major_formatter(FuncFormatter(_doublings))
            elif all(float(value).is_integer() for one in series for value in one.x):
                ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            if log_y:
                compared = [one for _, _, others in parts for one in others] if same_y else series
                heights = [v for one in compared for ends in (one.mean, one.low, one.high) for v in ends]
                heights += [2.5 * least for one in compared for least in one.beyond if least is not None]  # its arrow
                log_axis(ax, heights, headroom=1.3)
            if legend_lines:
                ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, columnspacing=1.2)
        laid_out(figure)
        for ax, (_, _, series) in zip(rows, parts, strict=True):
            _annotate(ax, series)
        return figure


def _annotate(ax: Axes, series: Sequence[Series]) -> None:
    """The notes, each at the first place beside its point that covers no point and no other note, if there is one."""
    point = ax.figure.get_dpi() / 72
    marked = [ax.transData.transform(at) for one in series for at in zip(one.x, one.mean, strict=True)]
    taken = [Bbox.from_bounds(x - 4 * point, y - 4 * point, 8 * point, 8 * point) for x, y in marked]
    for place, one in enumerate(series):
        for x, height, note in zip(one.x, one.mean, one.notes, strict=False):
            text = ax.annotate(
                note, (x, height), (0, 0), textcoords="offset points", fontsize=8, color=SERIES[place % len(SERIES)]
            )
            costs = []
            for offset, across, along in NOTED_AT:
                text.set(position=offset, ha=across, va=along)
                box = text.get_window_extent()
                inside = ax.bbox.contains(box.x0, box.y0) and ax.bbox.contains(box.x1, box.y1)
                costs.append(box.count_overlaps(taken) + (0 if inside else 1))
            offset, across, along = NOTED_AT[costs.index(min(costs))]
            text.set(position=offset, ha=across, va=along)
            taken.append(text.get_window_extent())


def _draw(ax: Axes, one: Series, place: int, *, log_y: bool) -> None:
    if one.quiet:
        ax.plot(
            one.x,
            one.mean,
            color=OTHER if one.belongs_to is None else SERIES[one.belongs_to % len(SERIES)],
            linestyle=DASHES,
            linewidth=1.3,
            label=drawable(one.label, 40),
        )
        return
    color, marker = SERIES[place % len(SERIES)], MARKERS[place % len(MARKERS)]
    many = len(one.x) > 24

    def drawn(value: float) -> bool:  # a logarithmic axis has no place for zero
        return math.isfinite(value) and not (log_y and value <= 0)

    beyond = dict(enumerate(one.beyond))
    heights = [math.nan if beyond.get(k) or not drawn(height) else height for k, height in enumerate(one.mean)]
    ax.plot(
        one.x, heights, color=color, marker="" if many and one.joined else marker, label=drawable(one.label, 40),
        linestyle="-" if one.joined else "",
    )  # fmt: skip
    for run in one.runs:
        ax.plot(one.x, run, color=color, linewidth=0.8, alpha=0.5)
    for k, least in enumerate(one.beyond):
        if least is not None:
            ax.annotate(
                f"> {least:,.4g}", (one.x[k], least), (0, 24), textcoords="offset points", ha="center", fontsize=8,
                color=color, arrowprops={"arrowstyle": "<-", "color": color},
            )  # fmt: skip
            ax.plot([one.x[k]], [least], color=color, marker="_", linestyle="", markersize=10)
    bounded = [all(map(drawn, ends)) and not beyond.get(k)
               for k, ends in enumerate(zip(one.mean, one.low, one.high, strict=True))]  # fmt: skip
    if many:
        ax.fill_between(one.x, one.low, one.high, where=bounded, color=color, alpha=0.18, linewidth=0)
        return
    kept = [k for k, whole in enumerate(bounded) if whole and one.high[k] > one.low[k]]
    ax.errorbar(
        [one.x[k] for k in kept], [one.mean[k] for k in kept], linestyle="", color=color, capsize=2.5, elinewidth=1.2,
        yerr=[[one.mean[k] - one.low[k] for k in kept], [one.high[k] - one.mean[k] for k in kept]],
    )  # fmt: skip


def _doublings(value: float, _position: int | None = None) -> str:
    return octave_ticks(value) if value >= 1 else f"1/{1 / value:,.0f}" if value > 1e-3 else octave_ticks(value)
