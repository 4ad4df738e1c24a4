"""The page of a history: B_D with its interval along a training run, drawn from a plain JSON document alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from variegrad.files import write_whole
from variegrad.reports.history_document import evenly, history_points
from variegrad.reports.history_figure import bound_and_efficiency
from variegrad.reports.style import render
from variegrad.reports.writing import embedded, template


def write_history(document: Mapping[str, Any], folder: Path) -> Path:
    """Write report.html, its picture as PNG and SVG, and the document itself as history.json.

    Every file is written under a temporary name and renamed, the page last; the same document gives the same bytes.

    Args:
        document: the document of `variegrad monitor`: plain JSON, +inf as the string "inf", undefined as null.
        folder: where to write; created if it does not exist.

    Returns:
        The path of the page.

    Raises:
        ValueError: if the document is of another schema, or has no reading.
    """
    points = history_points(document)
    if not points:
        raise ValueError("document: there are no readings to draw.")
    figure = bound_and_efficiency(points, str(document["name"]))
    pictures = {kind: render(figure, kind) for kind in ("png", "svg")}
    page = template("history.html").render(
        document=document,
        points=points,
        latest=points[-20:][::-1],
        drawn=len(evenly(points)),
        infinity=math.inf,
        sources=list(dict.fromkeys(point.source for point in points)),
        picture=embedded(pictures["svg"]),
    )
    folder.mkdir(parents=True, exist_ok=True)
    for kind, picture in pictures.items():
        write_whole(folder / f"history.{kind}", picture)
    write_whole(folder / "history.json", f"{json.dumps(document, indent=1, allow_nan=False)}\n".encode())
    write_whole(folder / "report.html", page.encode("utf-8", "replace"))
    return folder / "report.html"
