"""How every picture looks: one calm style, colours for colour-blind readers too, the same bytes each time."""

from __future__ import annotations

import io
import math
import re
from contextlib import AbstractContextManager
from functools import cache

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine

# Narrow enough that 10-point text is still read on a phone, where a picture is scaled to some 340 pixels.
WIDTH = 4.8

INK, QUIET, RULE = "#222831", "#5b6470", "#dfe3e8"
BLUE, ORANGE, GREEN = "#0b6fb8", "#c8551b", "#0b8a6a"
# Okabe and Ito's palette, its yellow darkened so that a line is seen on white; grey is for "other".
SERIES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c7a00")
OTHER = "#9aa2ab"
MARKERS = ("o", "s", "D", "v", "P", "^", "X", "h")

_SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelsize": 10,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.title_fontsize": 9.5,
    "legend.handlelength": 1.8,
    "legend.borderaxespad": 0.2,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "svg.fonttype": "path",  # Letters travel as outlines: the reader needs no font.
    "svg.hashsalt": "variegrad",  # Ids inside the picture follow from its content.
}


def style() -> AbstractContextManager[None]:
    """The settings to draw and to save under, whatever the reader's own matplotlib settings are.

    Returns:
        A context; on leaving it the former settings stand again.
    """
    return matplotlib.style.context(["default", _SETTINGS])


def new_figure(height: float, title: str) -> Figure:
    """An empty figure with a title at its left edge.

    Args:
        height: in inches.
        title: any text, taken literally.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.06, hspace=0.03))
    figure.suptitle(title, x=0.015, ha="left", fontsize=11, fontweight="bold", parse_math=False)
    return figure


# What each colour of a picture becomes on a dark page: text and lines light, series lighter than on white.
_DARK = {
    "#ffffff": "#1c222a", INK: "#e6e9ee", QUIET: "#a3adba", RULE: "#333c47", OTHER: "#7f8a96", "#000000": "#e6e9ee",
    BLUE: "#57aee6", ORANGE: "#f08a4f", GREEN: "#35c9a0", "#0072b2": "#4a9fe0", "#009e73": "#2fc299",
    "#cc79a7": "#e09cc4", "#56b4e9": "#a5dcff", "#d55e00": "#ff8442", "#8c7a00": "#c9b640",
}  # fmt: skip


def in_the_dark(svg: bytes) -> bytes:
    """The same picture for a dark page.

    Args:
        svg: a picture of this style.

    Returns:
        The picture with every colour exchanged.
    """
    return re.sub(rb"#[0-9a-f]{6}\b", lambda found: _DARK.get(found[0].decode(), found[0].decode()).encode(), svg)


def render(figure: Figure, kind: str) -> bytes:
    """A figure as a file's bytes, without dates or random ids: the same figure gives the same bytes.

    Args:
        figure: the figure.
        kind: "png" or "svg".

    Returns:
        The bytes.
    """
    target = io.BytesIO()
    unstamped = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with style():
        figure.savefig(target, format=kind, dpi=200, metadata=unstamped)
    return target.getvalue()


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def drawable(text: str, length: int) -> str:
    """A name as it can be drawn: one line, glyphs that the font has, its middle left out if it is too long.

    Args:
        text: any text.
        length: the most characters to show.

    Returns:
        The text to draw.
    """
    line = "".join(c if ord(c) in _glyphs() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    if len(line) <= length:
        return line
    head = (length - 1) // 2
    return f"{line[:head]}…{line[head + 1 - length :]}"


def in_figures(value: float) -> str:
    """A number as people write it: four significant digits, thousands separated, ∞ and an en dash for undefined.

    Args:
        value: any float.

    Returns:
        The text, in characters that work in HTML and in pictures alike.
    """
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        mantissa, _, exponent = f"{value:.3g}".partition("e")
        if exponent:
            return f"{mantissa}×10{raised(int(exponent))}".replace("-", "−")
    decimals = max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")


def rounded(value: float, digits: int = 2, *, down: bool = False) -> str:
    """An estimate with the digits that its interval supports: two significant ones, zeros kept.

    Args:
        value: any float.
        digits: significant digits.
        down: whether to round down, for a bound that must hold.

    Returns:
        The text: 104.2 is "100", 9.53 is "9.5", 2 is "2.0", 1,634 is "1,600".
    """
    if not math.isfinite(value) or value == 0 or not 1e-2 <= abs(value) < 1e6:
        return in_figures(value)
    # The decade after rounding: 9.96 is "10", not "10.0".
    decade = math.floor(math.log10(abs(value if down else float(f"{value:.{digits - 1}e}"))))
    places = digits - 1 - decade
    shown = math.floor(value * 10.0**places + 1e-9) / 10.0**places if down else round(value, places)
    return f"{shown:,.{max(0, places)}f}".replace("-", "−")


def raised(exponent: int) -> str:
    """An exponent in raised digits.

    Args:
        exponent: any integer.

    Returns:
        Its characters, as in ⁻³.
    """
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
