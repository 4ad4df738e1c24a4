"""The picture of the three limits: progress per example against the batch size, by rule of the learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from variegrad.reports.marks import DASHES, laid_out, octave_ticks
from variegrad.reports.style import INK, QUIET, SERIES, new_figure, style

# Progress at one batch size: the estimate, and the ends of its interval.
Curve = Callable[[float], tuple[float, float, float]]


def progress_per_example(curves: Mapping[str, Curve | None], batch_size: int, tolerance: float) -> Figure:
    """Progress per example, relative to the batch and the learning rate in use.

    Args:
        curves: rule → batch size → progress, with its interval; None if it is undecided.
        batch_size: B₀, in use.
        tolerance: loss of progress that counts as none.

    Returns:
        The figure: a line per rule with its interval as a band; the batch in use is marked.
    """
    sizes: NDArray[np.float64] = batch_size * np.exp2(np.linspace(-3, 8, 221))
    sizes = sizes[sizes >= 1]
    with style():
        figure = new_figure(3.4, "Progress per example")
        ax = figure.subplots()
        for (name, curve), color in zip(curves.items(), SERIES, strict=False):
            if curve is None:
                ax.plot([], [], color=color, label=f"{name}: undecided")
                continue
            middle, low, high = 100 * np.array([curve(size) for size in sizes]).T
            ax.fill_between(sizes, low, np.minimum(high, 1e6), color=color, alpha=0.15, linewidth=0)
            ax.plot(sizes, middle, color=color, label=name)
        ax.axhline(100 * (1 - tolerance), color=QUIET, linestyle=DASHES, linewidth=1.0)
        ax.axvline(batch_size, color=QUIET, linestyle=":", linewidth=1.2)
        ax.plot([batch_size], [100], marker="o", color=INK, linestyle="", label=f"in use: B = {batch_size:,}", zorder=5)
        ax.set_xscale("log", base=2)
        ax.set_xlim(sizes[0], sizes[-1])
        ax.set_ylim(0, 160)
        ax.xaxis.set_major_formatter(FuncFormatter(octave_ticks))
        ax.set_xlabel("batch size B (examples, log scale)")
        ax.set_ylabel("relative to now (%)")
        handles, labels = ax.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=1, alignment="left")
        return laid_out(figure)
