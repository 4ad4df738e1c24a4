"""Printing on any terminal: columns that never lose a digit, and symbols that any encoding can show."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

PIPE_WIDTH = 120  # a pipe has no width of its own
SPELLED = {
    "Δ": "Delta", "γ": "gamma", "β": "beta", "δ": "delta", "ε": "epsilon", "λ": "lambda", "μ": "mu", "α": "alpha",
    "ρ": "rho", "σ": "sigma", "Σ": "sum", "∇": "grad ", "‖": "||", "≥": ">=", "≤": "<=", "≈": "~", "−": "-", "–": "-",
    "…": "...", "×": "x", "÷": "/", "·": "*", "√": "sqrt", "²": "^2", "₂": "2", "∞": "inf", "→": "->", "±": "+-",
    "′": "'", "½": "1/2", "¼": "1/4",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of numbers.

    Attributes:
        head: its title; a line break makes two lines.
        cells: one text per row.
    """

    head: str
    cells: Sequence[str]

    @property
    def width(self) -> int:
        """Characters that it needs."""
        return max(len(text) for text in (*self.head.split("\n"), *self.cells))


def print_in_any_encoding() -> None:
    """Let both streams write every symbol: in words or ASCII if their encoding has no such character."""
    codecs.register_error("spelled", _spelled)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="spelled")


def _spelled(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    symbol = error.object[error.start]
    written = SPELLED.get(symbol) or ("-" if "─" <= symbol <= "╿" else f"\\u{ord(symbol):04x}")
    return written, error.start + 1


def shown(text: str, stream: TextIO | None = None) -> str:
    """A text as the stream's encoding will show it, so that its width is known before a table is laid out.

    Args:
        text: what to print.
        stream: where; standard output by default.

    Returns:
        The text with what cannot be encoded spelled out.
    """
    encoding = getattr(stream or sys.stdout, "encoding", None) or "utf-8"
    codecs.register_error("spelled", _spelled)
    return text.encode(encoding, "spelled").decode(encoding)


def output(**options: Any) -> Console:
    """Standard output, in the terminal's width or in one that keeps tables readable in a pipe.

    Args:
        options: of the console.

    Returns:
        A console.
    """
    return Console(**options) if sys.stdout.isatty() else Console(width=PIPE_WIDTH, **options)


def errors() -> Console:
    """Standard error, for progress and remarks: text as it is."""
    return Console(stderr=True, markup=False, highlight=False, soft_wrap=True)


def progress_bar(*columns: Any, console: Console, shown: bool = True) -> Any:
    """A progress bar that is erased at the end, and prints nothing if the output is not a terminal.

    Args:
        *columns: of rich.progress.
        console: where it is drawn.
        shown: whether it is drawn there.

    Returns:
        A rich `Progress`.
    """
    from rich.progress import Progress  # noqa: PLC0415 - only for commands that work for long

    class Bar(Progress):
        def stop(self) -> None:
            if not self.disable:  # rich before 14.1 prints an empty line here
                super().stop()

    return Bar(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))


def print_json(document: Any) -> None:
    """Print one strict JSON document on standard output, in ASCII, which every encoding can show.

    Args:
        document: plain values.
    """
    sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")


def print_line(text: str, console: Console | None = None, *, wrap: bool = False) -> None:
    """Print a text as it is.

    Args:
        text: what.
        console: where; standard output by default.
        wrap: whether a terminal gets new lines between words; paths and log lines stay whole.
    """
    console = console or output()
    console.print(text, soft_wrap=not (wrap and console.is_terminal), markup=False, highlight=False)


def print_columns(title: str, columns: Sequence[Column], *, caption: str = "", console: Console | None = None) -> None:
    """Print columns of numbers. Those that do not fit beside the first follow below in a further table.

    A number is never cut, whatever the width: a table is split between columns, as pandas does it.

    Args:
        title: above them.
        columns: the first names the rows and is repeated.
        caption: below them.
        console: where; standard output by default.
    """
    console = console or output()
    print_line(title, console)
    columns = [Column(head=shown(c.head), cells=[shown(cell) for cell in c.cells]) for c in columns]
    key, rest = columns[0], list(columns[1:])
    while rest:
        part, used = [key], key.width
        while rest and (len(part) == 1 or used + 2 + rest[0].width <= console.width):
            used += 2 + rest[0].width
            part.append(rest.pop(0))
        _print_rows([column.head for column in part], part, console, style="bold")
        for cells in zip(*(column.cells for column in part), strict=True):
            _print_rows(cells, part, console)
        if rest:
            console.print()
    if caption:
        console.print(shown(caption), markup=False, highlight=False, style="italic")


def _print_rows(texts: Iterable[str], columns: Sequence[Column], console: Console, style: str = "") -> None:
    """One row of a table, its texts at the right of their columns and, if they have several lines, at the bottom."""
    # Not a table of rich: its oldest versions pad the last column.
    parts = [text.split("\n") for text in texts]
    height = max(map(len, parts))
    for line in zip(*([""] * (height - len(lines)) + lines for lines in parts), strict=True):
        row = "  ".join(text.rjust(column.width) for text, column in zip(line, columns, strict=True)).rstrip()
        console.print(row, style=style, soft_wrap=True, markup=False, highlight=False)


def text_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> Table:
    """A table of words: the first column is kept whole, the others wrap between words.

    Args:
        heads: of the columns.
        rows: their texts.
        title: above it.

    Returns:
        The table.
    """
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for place, head in enumerate(heads):
        table.add_column(shown(head), overflow="fold", no_wrap=False, ratio=None if place == 0 else 1)
    for row in rows:
        table.add_row(*(escape(shown(text)) for text in row))
    return table
