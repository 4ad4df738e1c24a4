"""The page stands alone, says what was measured, escapes everything, and is the same bytes for the same document."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

from variegrad.reports import write_report

Document = dict[str, Any]
Report = Callable[[str], Path]
VOID = {"meta", "img", "br", "source"}


class Page(HTMLParser):
    """A page's tags, text and sources; refuses tags that do not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_document_becomes_a_page_that_nests_and_stands_alone(report: Report, case: str) -> None:
    path = report(case)
    page = Page(path)
    assert path.name == "report.html"
    assert page.all("script") == page.all("link") == page.all("a") == page.all("iframe") == []
    for _, attributes in page.tags:
        assert not {key for key in attributes if key.startswith("on")}
        assert "href" not in attributes
        assert (attributes.get("src") or "data:").startswith("data:")
    assert "url(" not in path.read_text(encoding="utf-8")
    assert "@import" not in path.read_text(encoding="utf-8")


def test_every_picture_has_words_for_those_who_do_not_see_it(report: Report, case: str) -> None:
    page, folder = Page(report(case)), report(case).parent
    pictures = sorted(path.stem for path in folder.glob("*.svg"))
    assert sorted(path.stem for path in folder.glob("*.png")) == pictures
    assert len(page.all("img")) == len(page.all("figcaption")) == len(pictures)
    assert all(len(image["alt"] or "") > 60 for image in page.all("img"))
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1


def test_nothing_unfinished_stays_behind(report: Report, case: str) -> None:
    assert {path.suffix for path in report(case).parent.iterdir()} <= {".html", ".png", ".svg", ".json"}


def test_a_failed_write_leaves_the_former_page_whole(
    ordinary: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(ordinary, tmp_path)
    before = contents(tmp_path)

    def full(path: Path, target: Path) -> Path:
        raise OSError(f"no space left for {target.name}")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_report(ordinary | {"advice": "Another."}, tmp_path)
    assert contents(tmp_path) == before


def test_same_document_gives_same_bytes_in_another_process_and_under_other_settings(
    ordinary: Document, tmp_path: Path
) -> None:
    with mpl.rc_context({"font.size": 23, "svg.fonttype": "none", "svg.hashsalt": None, "axes.grid": False}):
        write_report(ordinary, tmp_path / "a")
    code = (
        "import json, sys; from pathlib import Path; from variegrad.reports import write_report; "
        "write_report(json.load(sys.stdin), Path(sys.argv[1]))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "b")],
        input=json.dumps(ordinary).encode(),
        env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
        check=True,
    )
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_document_itself_is_kept_beside_the_page(report: Report, documents: dict[str, Document], case: str) -> None:
    assert json.loads(report(case).with_name("measure.json").read_text(encoding="utf-8")) == documents[case]


def test_hostile_text_is_shown_and_not_obeyed(report: Report) -> None:
    page = Page(report("hostile"))
    # Name, description, advice, command, start, flag, setting, version, mechanism, layer: each as plain text.
    assert page.text.count("<script>window.hit = 1</script>") >= 10
    assert "{{ 7 * 7 }}" in page.text
    assert len(page.all("img")) == 4


def test_pictures_of_an_earlier_run_do_not_linger(documents: dict[str, Document], tmp_path: Path) -> None:
    write_report(documents["usual"], tmp_path)
    (tmp_path / "notes.svg").write_text("mine")
    write_report(documents["nothing measured"], tmp_path)
    assert sorted(contents(tmp_path)) == ["measure.json", "notes.svg", "report.html"]


def test_degenerate_cases_are_explained_where_they_occur(report: Report) -> None:
    text = Page(report("degenerate")).text
    assert "undefined at 1.3 passes. Every gradient is zero" in text
    assert "zero total at 0.25 passes. Gradients cancel" in text
    assert "conflicting at 0.25, 0.707 passes. Gradients oppose each other" in text
    assert "Interrupted. The run was stopped early; the last point measured is at 2 of 10 passes." in text
    assert "∞" in text
    assert not re.search(r"\b(nan|inf)\b", text, re.IGNORECASE)


def test_nothing_measured_is_said(report: Report) -> None:
    text = Page(report("nothing measured")).text
    assert "Nothing was measured. The run ended before its first point." in text
    assert "variegrad measure digits" in text


def test_headline_has_advice_and_key_numbers(ordinary: Document, tmp_path: Path) -> None:
    ordinary["points"][0]["batch_size_bound"] = 41.26
    ordinary["points"][5]["batch_size_bound"] = 1.5
    ordinary["points"][-1]["batch_size_bound"] = 12345.6
    ordinary["points"][-1]["passes"] = 1.0
    text = Page(write_report(ordinary, tmp_path / "new" / "folder")).text
    assert ordinary["advice"] in text
    assert "Start 41.3 examples, after 0 passes" in text
    assert "End 12,300 examples, after 1 pass Smallest" in " ".join(text.split())
    assert "Smallest 1.50 examples, after 2.8 passes" in text
    assert "Efficiency at B = 64, tightest point 2 %" in text  # 1/(1 + 63/1.5) = 0.0233


def test_quantities_that_were_not_measured_have_no_column(report: Report) -> None:
    text = Page(report("unscored")).text
    table = text[text.index("Measurements") :]
    assert "test accuracy" in table
    assert "test loss" not in table
    assert "efficiency" not in table


def test_document_that_json_cannot_hold_is_refused(ordinary: Document, tmp_path: Path) -> None:
    ordinary["points"][0]["batch_size_bound"] = float("inf")
    with pytest.raises(ValueError, match=r"plain JSON, with \+inf as the string 'inf'"):
        write_report(ordinary, tmp_path)
    ordinary["points"][0]["batch_size_bound"] = object()
    with pytest.raises(ValueError, match="plain JSON"):
        write_report(ordinary, tmp_path)
    assert contents(tmp_path) == {}
