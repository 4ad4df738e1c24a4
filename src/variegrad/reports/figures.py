"""The four figures of a measured run: B_D along it, efficiency, shares of layers, effect of mechanisms.

Each function turns the document into one `Figure`, or None if there is nothing to draw; none touches global state.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from variegrad.reports.document import batch_size, landmarks, modules, points
from variegrad.reports.marks import DASHES, laid_out, legend_above, line, log_axis, octave_ticks, passes_axis, reference
from variegrad.reports.style import (
    BLUE,
    GREEN,
    INK,
    MARKERS,
    ORANGE,
    OTHER,
    QUIET,
    SERIES,
    drawable,
    in_figures,
    new_figure,
    rounded,
    style,
)


def bound_along_run(document: Mapping[str, Any]) -> Figure | None:
    """B_D(w) = n·Σ‖g_i‖²/‖Σg_i‖² along the run, above the loss and, if it was measured, the accuracy.

    Args:
        document: the document of `variegrad measure`.

    Returns:
        The figure; None if nothing was measured.
    """
    measured, trained_with = points(document), batch_size(document)
    if not measured:
        return None
    x = [point.passes for point in measured]
    bounds = [point.bound for point in measured]
    training, test = ("training set", INK, "o"), ("test set", ORANGE, "s")
    curves = {
        "loss": {training: [p.loss for p in measured], test: [p.test_loss for p in measured]},
        "accuracy": {
            training: [100 * p.accuracy for p in measured],
            test: [100 * p.test_accuracy for p in measured],
        },
    }
    known = {
        quantity: {look: values for look, values in both.items() if not all(map(math.isnan, values))}
        for quantity, both in curves.items()
    }
    below = {quantity: both for quantity, both in known.items() if both}
    with style():
        figure = new_figure(2.9 + 1.3 * len(below), _title(document, "Bound along the run"))
        panels = figure.subplots(
            1 + len(below), 1, sharex=True, squeeze=False, height_ratios=[2.2] + [1.0] * len(below)
        )[:, 0]
        top = panels[0]
        conflicting = any("conflicting" in point.flags for point in measured)
        n = float(measured[0].count) if conflicting else math.nan
        log_axis(top, [*bounds, trained_with, n])
        line(top, x, bounds, color=BLUE, marker="o")
        reference(top, trained_with, f"trained with B = {in_figures(trained_with)}")
        reference(top, n, f"n = {in_figures(n)}", dotted=True)
        top.set_ylabel("bound $B_D$\n(examples, log scale)")
        legend_above(top)
        for ax, (quantity, both) in zip(panels[1:], below.items(), strict=True):
            for (label, color, marker), values in both.items():
                line(ax, x, values, color=color, marker=marker, label=label)
            ax.set_ylabel(f"{quantity} (%)" if quantity == "accuracy" else quantity)
            ax.margins(y=0.12)
            ax.yaxis.set_major_locator(MaxNLocator(4))
            if quantity == "accuracy":
                ax.set_ylim(0, 102)
                ax.set_yticks([0, 50, 100])
            # The panels share their colours: one legend serves both, unless they show different sets.
            if ax is panels[1] or both.keys() != below["loss"].keys():
                legend_above(ax)
        passes_axis(panels[-1], x)
        figure.align_ylabels(list(panels))
        return laid_out(figure)


def efficiency(document: Mapping[str, Any]) -> Figure | None:
    """Efficiency 1/(1+(B−1)/B_D) and speed-up B/(1+(B−1)/B_D) against B: start, middle, end and smallest B_D.

    Args:
        document: the document of `variegrad measure`.

    Returns:
        The figure; None if no point has a defined B_D.
    """
    measured, trained_with = points(document), batch_size(document)
    chosen = {name: point for name, point in landmarks(measured).items() if not math.isnan(point.bound)}
    if not chosen:
        return None
    finite = [point.bound for point in chosen.values() if math.isfinite(point.bound)]
    largest = 16 * max([*finite, 4.0, trained_with if math.isfinite(trained_with) else 1.0])
    sizes = np.exp2(np.linspace(0, math.ceil(math.log2(largest)), 400))
    with style():
        names = [f"{name}: $B_D$ = {rounded(point.bound, 3)}" for name, point in chosen.items()]
        columns = 2 if max(map(len, names)) <= 26 else 1
        rows = math.ceil((len(names) + 2) / columns)
        figure = new_figure(5.1 + 0.22 * rows, _title(document, "Efficiency and speed-up"))
        upper, lower = figure.subplots(2, 1, sharex=True)
        upper.axhline(100, color=QUIET, linestyle=DASHES, linewidth=1.2)
        ideal = lower.plot(sizes, sizes, color=QUIET, linestyle=DASHES, linewidth=1.2)[0]
        handles, labels = [ideal], ["ideal", *names]
        for point, color, marker in zip(chosen.values(), SERIES, MARKERS, strict=False):
            kept = np.array([point.efficiency(b) for b in sizes])
            upper.plot(sizes, 100 * kept, color=color)
            lower.plot(sizes, sizes * kept, color=color)
            half = point.bound + 1
            if math.isfinite(half):
                upper.plot([half], [50], color=color, marker=marker)
                lower.plot([half], [half / 2], color=color, marker=marker)
            handles.append(Line2D([], [], color=color, marker=marker if math.isfinite(half) else ""))
        if math.isfinite(trained_with):
            for ax in (upper, lower):
                rule = ax.axvline(trained_with, color=QUIET, linewidth=1.2, linestyle=":")
            handles.append(rule)
            labels.append(f"trained with B = {in_figures(trained_with)}")
        upper.set_ylim(0, 105)
        upper.set_ylabel("efficiency (% of examples)")
        lower.set_xscale("log", base=2)
        lower.set_xlim(1, sizes[-1])
        lower.set_yscale("log", base=2)
        fastest = 1.5 * max([*finite, 4.0]) if len(finite) == len(chosen) else sizes[-1]
        lower.set_ylim(1, 2 ** math.ceil(math.log2(fastest)))
        lower.set_xlabel("batch size B (examples)")
        lower.set_ylabel("speed-up over B = 1 (times)")
        for axis in (lower.xaxis, lower.yaxis):
            axis.set_major_locator(LogLocator(base=2, numticks=8))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(octave_ticks))
        figure.legend(handles, labels, loc="outside lower left", ncols=columns)
        figure.align_ylabels([upper, lower])
        return laid_out(figure)


def layers(document: Mapping[str, Any], shown: int = len(SERIES)) -> Figure | None:
    """Each layer's share (A_l/A)(1/B_l)/(1/B_D) of 1/B_D = Σ_l (A_l/A)(1/B_l), above its own bound B_l.

    Args:
        document: the document of `variegrad measure`.
        shown: how many modules are drawn by name; the rest is one, "other".

    Returns:
        The figure; None if there are no layers, or nothing to share out at any point.
    """
    measured = points(document)
    groups = modules(measured, shown)
    if all(math.isnan(layer.share) for _, series in groups for layer in series):
        return None
    x = [point.passes for point in measured]
    kinds = document["problem"].get("layers", {})
    names = [drawable(f"{name} · {kinds[name]}" if name in kinds else name, 40) for name, _ in groups]
    columns = 1 if max(map(len, names)) > 18 else 2
    rows = math.ceil(len(groups) / columns)
    with style():
        figure = new_figure(4.9 + 0.22 * (rows + 2), _title(document, "Which layers set the bound"))
        upper, lower = figure.subplots(2, 1, sharex=True)
        floor = np.zeros(len(measured))
        handles = []
        for k, (_, series) in enumerate(groups):
            color, marker = (SERIES[k], MARKERS[k]) if k < len(SERIES) else (OTHER, MARKERS[-1])
            share = np.nan_to_num([100 * layer.share for layer in series])
            left, width = _cells(x)
            upper.bar(left, share, width, floor, align="edge", color=color, edgecolor="white", linewidth=0.6)
            floor += share
            bounds = [layer.bound for layer in series]
            handles.append(line(lower, x, bounds, color=color, marker=marker))
        whole = [point.bound for point in measured]
        handles.append(line(lower, x, whole, color=INK, marker=".", dashed=True))
        log_axis(lower, [*whole, *(layer.bound for _, series in groups for layer in series)])
        upper.set_ylim(0, 100)
        upper.grid(axis="x", visible=False)
        upper.set_ylabel("share of 1/$B_D$ (%)")
        lower.set_ylabel("own bound $B_l$\n(examples, log scale)")
        passes_axis(lower, x)
        # A label that begins with an underscore would be left out: a zero-width character stands before it.
        labels = [*("\N{ZERO WIDTH SPACE}" + name for name in names), "all layers: $B_D$"]
        # Beside the bars, whose colours it names; the layout makes room for it.
        legend = upper.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, alignment="left", borderaxespad=0.4
        )
        legend.set_title("layers, in the order of the model:")
        for text in legend.get_texts()[:-1]:
            text.set_parse_math(False)
        figure.align_ylabels([upper, lower])
        return laid_out(figure)


def mechanisms(document: Mapping[str, Any]) -> Figure | None:
    """B_D, B_DIM = n(1+t)/(n/B_D+t) and B_eff = (1+t)·B_D along the run, one panel for each mechanism.

    Args:
        document: the document of `variegrad measure`.

    Returns:
        The figure; None if no mechanism was asked for or nothing was measured.
    """
    measured = points(document)
    names = list(dict.fromkeys(name for point in measured for name in point.mechanisms))
    if not names:
        return None
    x = [point.passes for point in measured]
    plain = [point.bound for point in measured]
    with style():
        figure = new_figure(1.3 + 1.6 * len(names), _title(document, "Bounds with mechanisms"))
        panels = figure.subplots(len(names), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        missing = (math.nan, math.nan)
        drawn = {name: [point.mechanisms.get(name, missing) for point in measured] for name in names}
        log_axis(panels[0], [*plain, *(v for both in drawn.values() for pair in both for v in pair)])
        for ax, (name, both) in zip(panels, drawn.items(), strict=True):
            effective = [pair[1] for pair in both]
            lines = [
                line(ax, x, plain, color=QUIET, marker="o"),
                line(ax, x, [pair[0] for pair in both], color=GREEN, marker="s"),
                line(ax, x, effective, color=ORANGE, marker="^"),
            ]
            ax.set_title(drawable(name, 32), loc="left", fontsize=10, parse_math=False)
            ax.set_ylabel("bound\n(examples)")
        passes_axis(panels[-1], x)
        figure.legend(lines, ["$B_D$, no mechanism", "$B_{DIM}$", "$B_{eff}$"], loc="outside lower left", ncols=3)
        return laid_out(figure)


def _cells(x: Sequence[float]) -> tuple[list[float], list[float]]:
    """Left ends and widths of bars that meet halfway between the points of a linear axis."""
    if len(x) == 1:
        return [x[0] - 0.4], [0.8]
    middle = [(a + b) / 2 for a, b in itertools.pairwise(x)]
    edges = [x[0] - (middle[0] - x[0]), *middle, x[-1] + (x[-1] - middle[-1])]
    return edges[:-1], [b - a for a, b in itertools.pairwise(edges)]


PICTURES: Mapping[str, Callable[[Mapping[str, Any]], Figure | None]] = {
    "bound-along-run": bound_along_run,
    "efficiency": efficiency,
    "layers": layers,
    "mechanisms": mechanisms,
}
"""File name to the function that draws it, in the order of the page."""


def _title(document: Mapping[str, Any], subject: str) -> str:
    return f"{subject} · {drawable(document['problem']['name'], 14)}"
