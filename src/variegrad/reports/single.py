"""One result by itself: a table and a picture for a notebook, and the page of `variegrad measure` from Python."""

from __future__ import annotations

import base64
import html
import math
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from variegrad.reports.document import SCHEMA, layer_kinds
from variegrad.reports.marks import DASHES, laid_out, octave_ticks
from variegrad.reports.style import BLUE, QUIET, drawable, in_figures, new_figure, render, rounded, style
from variegrad.versions import version


@runtime_checkable
class Measured(Protocol):
    """An exact measurement: `variegrad.Diversity`."""

    count: int
    dimension: int

    def to_dict(self) -> dict[str, Any]: ...


def efficiency_of(bound: float, low: float, high: float, *, title: str, digits: int) -> Figure:
    """Efficiency 1/(1 + (B−1)/B_D) against the batch size, with the interval of B_D as a band.

    Args:
        bound: B_D; NaN if it is undefined.
        low: the lower end of its interval; B_D itself for an exact one.
        high: the upper end; +inf if nothing bounds it.
        title: of the picture.
        digits: of B_D in the legend.

    Returns:
        The figure.
    """
    finite = [value for value in (bound, low, high) if math.isfinite(value)]
    sizes = np.exp2(np.linspace(0, math.ceil(math.log2(16 * max([*finite, 4.0]))), 300))

    def curve(at: float) -> Any:
        return 100 / (1 + (sizes - 1) / at) if not math.isnan(at) else np.full_like(sizes, 100.0)

    with style():
        figure = new_figure(3.1, drawable(title, 44))
        ax = figure.subplots()
        if low < high:
            ax.fill_between(sizes, curve(low), curve(high), color=BLUE, alpha=0.18, linewidth=0, label="its interval")
        if not math.isnan(bound):
            ax.plot(sizes, curve(bound), color=BLUE, label=f"$B_D$ = {rounded(bound, digits)}")
        ax.axhline(50, color=QUIET, linestyle=DASHES, linewidth=1.0)
        ax.set_xscale("log", base=2)
        ax.set_xlim(1, sizes[-1])
        ax.set_ylim(0, 105)
        ax.xaxis.set_major_formatter(FuncFormatter(octave_ticks))
        ax.set_xlabel("batch size B (examples, log scale)")
        ax.set_ylabel("efficiency (%)")
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="upper right")
        return laid_out(figure)


def shown(
    title: str, rows: Sequence[tuple[str, str]], figure: Figure, *, alt: str = "Efficiency against the batch size"
) -> str:
    """A result in a notebook.

    Args:
        title: a sentence.
        rows: (what, value), shown as text.
        figure: its picture.
        alt: what it shows, for those who do not see it.

    Returns:
        HTML that needs nothing beside it.
    """
    cells = "".join(
        f'<tr><th style="text-align:left;font-weight:500">{html.escape(what)}</th>'
        f'<td style="text-align:right">{html.escape(value)}</td></tr>'
        for what, value in rows
    )
    picture = base64.b64encode(render(figure, "svg")).decode()
    return (
        f"<div><p>{html.escape(title)}</p><table>{cells}</table>"
        f'<img style="max-width:30rem;background:#fff" alt="{html.escape(alt)}" '
        f'src="data:image/svg+xml;base64,{picture}"></div>'
    )


def in_digits(value: float, digits: int) -> str:
    """A number for a notebook's table.

    Args:
        value: any float.
        digits: significant digits.

    Returns:
        Its text.
    """
    return in_figures(value) if not math.isfinite(value) else rounded(value, digits)


def report(
    found: Measured | Mapping[float, Measured],
    folder: str | Path,
    *,
    name: str = "measurement",
    batch_size: int | None = None,
    model: Any = None,
    overwrite: bool = False,
) -> Path:
    """Writes the page of `variegrad measure` from Python: B_D along a run, efficiency, and shares of layers.

    Example:
        ```python
        along = {}
        for epoch in range(10):
            train_one_epoch(model)
            along[epoch + 1] = vg.measure(model, losses, data)
        vg.report(along, "runs/a", name="resnet", batch_size=256, model=model)
        ```

    Args:
        found: a result of `variegrad.measure`, or several of them, by passes over the data.
        folder: where report.html, its pictures and measure.json are written; created if it does not exist.
        name: of the model or the run.
        batch_size: B of the run; its efficiency is shown.
        model: the model, to describe each layer.
        overwrite: whether an existing page may be replaced.

    Returns:
        The path of the page.

    Raises:
        FileExistsError: if there is a page in the folder, and `overwrite` is not set.
        ValueError: if nothing was measured, or a batch size is below one.
    """
    from variegrad.reports.page import write_report  # noqa: PLC0415 - which draws by way of the other modules

    along = dict(found) if isinstance(found, Mapping) else {0.0: found}
    if not along:
        raise ValueError("found: it is empty. Pass results of variegrad.measure.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 example; got {batch_size}.")
    page = Path(folder) / "report.html"
    if page.exists() and not overwrite:
        raise FileExistsError(f"{page} already exists. Choose another folder, or pass overwrite=True.")
    first = next(iter(along.values()))
    unknown = dict.fromkeys(("loss", "accuracy", "test_loss", "test_accuracy"))
    points = [
        {"passes": float(at), "updates": 0, **unknown, "mechanisms": {}, **one.to_dict()}
        for at, one in sorted(along.items())
    ]
    document = {
        "schema": SCHEMA,
        "problem": {
            "name": name,
            "description": "",
            "examples": first.count,
            "parameters": first.dimension,
            "layers": {} if model is None else layer_kinds(model),
        },
        "settings": {"batch_size": batch_size, "points": len(points)},
        "versions": {"variegrad": version("variegrad"), "python": platform.python_version()},
        "command": "variegrad.report(...)",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": 0.0,
        "interrupted": False,
        "points": points,
        "advice": "",
    }
    return write_report(document, Path(folder))
