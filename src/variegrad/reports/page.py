"""The page of a measured run: one HTML file that needs nothing beside it, and the pictures and numbers as files, too.

The page holds its pictures as data and its style inline, runs no script and asks no network (its own content policy
forbids both). The same document gives the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from variegrad.files import write_whole
from variegrad.reports.document import Point, batch_size, landmarks, points
from variegrad.reports.figures import PICTURES
from variegrad.reports.style import render
from variegrad.reports.writing import embedded, template

FLAGS: Mapping[str, str] = {
    "undefined": "Every gradient is zero, so B_D is 0/0: nothing is left to learn from this data here, and the batch "
    "size does not matter.",
    "zero_total": "Gradients cancel: they are not zero but their sum is, so B_D is infinite. At such a stationary "
    "point, only noise is left and no batch is too large.",
    "conflicting": "Gradients oppose each other on average, so B_D exceeds the number of examples n. Without "
    "replacement, no batch is too large here.",
}
"""What each degenerate case means, in words."""


@dataclass(frozen=True, kw_only=True)
class Special:
    """A degenerate case that occurred: its name, its meaning, and the passes at which it holds."""

    name: str
    meaning: str
    passes: list[float]


def write_report(document: Mapping[str, Any], folder: Path) -> Path:
    """Write report.html, its pictures as PNG and SVG, and the document itself as measure.json.

    Every file is written under a temporary name and renamed, the page last. Pictures of an earlier report that this
    document does not have are removed. For the same document the bytes are the same.

    Args:
        document: the document of `variegrad measure`: plain JSON, +inf as the string "inf", undefined as null.
        folder: where to write; created if it does not exist.

    Returns:
        The path of the page.

    Raises:
        ValueError: if the document is of another schema, or holds what JSON cannot.
    """
    try:
        numbers = json.dumps(document, indent=1, allow_nan=False)
    except (TypeError, ValueError) as problem:
        raise ValueError(
            f"document: it must be plain JSON, with +inf as the string 'inf' and undefined as None; {problem}. "
            "Pass what `variegrad measure --json` prints."
        ) from problem
    drawn = {name: draw(document) for name, draw in PICTURES.items()}
    contents = {
        f"{name}.{kind}": render(figure, kind)
        for name, figure in drawn.items()
        if figure is not None
        for kind in ("png", "svg")
    }
    contents["measure.json"] = f"{numbers}\n".encode()
    images = {name: contents[f"{name}.svg"] for name, figure in drawn.items() if figure is not None}
    contents["report.html"] = _html(document, images).encode("utf-8", "replace")
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        if figure is None:
            for kind in ("png", "svg"):
                (folder / f"{name}.{kind}").unlink(missing_ok=True)
    for name, content in contents.items():
        write_whole(folder / name, content)
    return folder / "report.html"


def _html(document: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    measured = points(document)
    return template("page.html").render(
        document=document,
        points=measured,
        landmarks=landmarks(measured),
        smallest=min((p for p in measured if not math.isnan(p.bound)), key=lambda p: p.bound, default=None),
        batch_size=batch_size(document),
        specials=_specials(measured),
        mechanisms=list(dict.fromkeys(name for point in measured for name in point.mechanisms)),
        images={name: embedded(svg) for name, svg in images.items()},
        kinds=document["problem"].get("layers", {}),
    )


def _specials(measured: list[Point]) -> list[Special]:
    names = dict.fromkeys(flag for point in measured for flag in point.flags)
    return [
        Special(
            name=name,
            meaning=FLAGS.get(name, "This version of the report does not know this case."),
            passes=[point.passes for point in measured if name in point.flags],
        )
        for name in names
    ]
