"""The table of a measured run, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from variegrad.along import Point
from variegrad.mechanisms import Mechanism


def table(name: str, points: Sequence[Point], mechanisms: Sequence[Mechanism]) -> Table:
    """One row a point: pass, loss, accuracy, Δ_D, B_D, B_wor, and B_eff with each mechanism.

    Args:
        name: of the problem.
        points: what was measured.
        mechanisms: whose bounds to show.

    Returns:
        The table.
    """
    scored = any(point.accuracy is not None for point in points)
    tested = any(point.test_accuracy is not None for point in points)
    result = Table(
        title=f"Gradient diversity along {escape(name)}", title_justify="left", caption_justify="left", box=None,
        pad_edge=False,
        caption="Δ_D: gradient diversity; B_D, B_wor (examples): bounds for draws with and without replacement; "
        "with a mechanism: B_eff, its bound for fresh draws (examples).",
    )  # fmt: skip
    heads = ["pass", "loss", *(["accuracy"] if scored else []), *(["test"] if tested else []), "Δ_D", "B_D", "B_wor"]
    for head in (*heads, *(str(m).replace("(", "\n(") for m in mechanisms)):
        result.add_column(head, justify="right", no_wrap=True)
    flagged = any(words(point) for point in points)
    if flagged:
        result.add_column("note")
    for point in points:
        d = point.diversity
        row = [f"{point.passes:.2f}", f"{point.loss:.4g}"]
        row += [percent(point.accuracy)] if scored else []
        row += [percent(point.test_accuracy)] if tested else []
        row += [examples(d.diversity), examples(d.batch_size_bound), examples(d.batch_size_bound_without_replacement)]
        row += [examples(d.effective_bound_with(m)) for m in mechanisms]
        result.add_row(*row, *([words(point)] if flagged else []))
    return result


def words(point: Point) -> str:
    """The degenerate cases of a point, in words.

    Args:
        point: what was measured.

    Returns:
        Words, empty for an ordinary point.
    """
    d = point.diversity
    if d.undefined:
        return "undefined: all gradients are zero"
    if d.zero_total:
        return "zero_total: the gradients cancel"
    return "conflicting: gradients oppose each other" if d.conflicting else ""


def examples(value: float) -> str:
    """A bound as people read it: three digits and no exponent.

    Args:
        value: in examples.

    Returns:
        Its text; a dash where undefined.
    """
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def percent(value: float | None) -> str:
    """A share as a percentage.

    Args:
        value: in [0, 1], or None.

    Returns:
        Its text.
    """
    return "–" if value is None else f"{100 * value:.1f} %"
