"""The table of a measured run, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from variegrad.cli.terminal import Column, print_columns

if TYPE_CHECKING:
    from variegrad.along import Point
    from variegrad.mechanisms import Mechanism

CAPTION = (
    "Δ_D: gradient diversity; B_D, B_wor (examples): bounds for sampling with and without replacement; "
    "B_eff (examples): the bound with a mechanism, with fresh random draws in each batch."
)


def print_table(
    name: str, points: Sequence[Point], mechanisms: Sequence[Mechanism], console: Console | None = None
) -> None:
    """Print one row per point: pass, B_D, loss, accuracy, Δ_D, B_wor, and B_eff with each mechanism.

    Args:
        name: of the problem.
        points: what was measured.
        mechanisms: whose bounds to show.
        console: where; standard output by default.
    """
    bounds = [p.diversity for p in points]
    columns = [
        Column(head="pass", cells=[f"{p.passes:.2f}" for p in points]),
        Column(head="B_D", cells=[examples(d.batch_size_bound) for d in bounds]),
        Column(head="B_wor", cells=[examples(d.batch_size_bound_without_replacement) for d in bounds]),
        *(
            Column(head=str(m).replace("(", "\n("), cells=[examples(d.effective_bound_with(m)) for d in bounds])
            for m in mechanisms
        ),
        Column(head="Δ_D", cells=[examples(d.diversity) for d in bounds]),
        Column(head="loss", cells=[f"{p.loss:.4g}" for p in points]),
    ]
    if any(p.accuracy is not None for p in points):
        columns.append(Column(head="accuracy", cells=[percent(p.accuracy) for p in points]))
    if any(p.test_accuracy is not None for p in points):
        columns.append(Column(head="test", cells=[percent(p.test_accuracy) for p in points]))
    if any(words(p) for p in points):
        columns.append(Column(head="note", cells=[words(p) for p in points]))
    print_columns(f"Gradient diversity along {name}", columns, caption=CAPTION, console=console)


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
    """A bound as people read it: three significant digits, trailing zeros too, and no exponent.

    Args:
        value: in examples.

    Returns:
        Its text; a dash if undefined.
    """
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def percent(value: float | None) -> str:
    """A share as a percentage.

    Args:
        value: in [0, 1], or None.

    Returns:
        Its text.
    """
    return "–" if value is None else f"{100 * value:.1f} %"


def two_digits(value: float, *, down: bool = False) -> str:
    """A number of examples with two significant digits and no exponent.

    Args:
        value: positive.
        down: whether to round down, for a limit that must hold.

    Returns:
        Its text.
    """
    place = 10 ** (math.floor(math.log10(value)) - 1) if value >= 1 else 0.1
    rounded = (math.floor(value / place) if down else round(value / place)) * place
    return f"{rounded:,.1f}" if value < 9.95 and not float(rounded).is_integer() else f"{rounded:,.0f}"
