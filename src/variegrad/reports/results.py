"""The page of reproduced experiments: claim, picture, findings and settings of each, in one self-contained file.

Like every page here it runs no script and asks no network; the same results give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from variegrad.files import write_whole
from variegrad.reports.style import render
from variegrad.reports.writing import embedded, template


@dataclass(frozen=True, kw_only=True)
class Result:
    """One experiment as it is shown.

    Attributes:
        name: of the experiment.
        title: what it shows.
        claim: what the paper says.
        choices: what the paper leaves open and how it was chosen.
        data: what data it ran on.
        findings: (claim, what was found, verdict).
        facts: settings, command, computing time: names and values.
        figure: the picture; None if it is in the folder already.
        folder: where its pictures are written.
    """

    name: str
    title: str
    claim: str
    choices: str
    data: str
    findings: Sequence[tuple[str, str, str]]
    facts: Mapping[str, Any]
    figure: Figure | None
    folder: Path


def write_results(results: Sequence[Result], folder: Path) -> Path:
    """Write report.html into a folder, and each picture as PNG and SVG into its experiment's.

    Args:
        results: what to show, in this order.
        folder: where the page goes.

    Returns:
        The path of the page.
    """
    images = {}
    for result in results:
        for kind in ("png", "svg"):
            path = result.folder / f"{result.name}.{kind}"
            picture = path.read_bytes() if result.figure is None else render(result.figure, kind)
            if result.figure is not None:
                write_whole(path, picture)
            if kind == "svg":
                images[result.name] = embedded(picture)
    page = folder / "report.html"
    write_whole(page, template("results.html").render(results=results, images=images).encode("utf-8", "replace"))
    return page
