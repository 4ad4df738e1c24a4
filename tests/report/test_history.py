"""The page of a history stands alone, shows the band and every odd reading, and draws very long histories evenly."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from monitor.readings import ODD, a_reading
from report.test_page import Page
from variegrad.reports.history_document import SCHEMA, evenly, history_points
from variegrad.reports.history_figure import bound_and_efficiency
from variegrad.reports.history_page import write_history

Document = dict[str, Any]
HOSTILE = '<script>window.hit = 1</script>$\\frac{"><img src=x onerror="window.hit = 1">'


def a_document(readings: list[Any], **changes: Any) -> Document:
    return {
        "schema": SCHEMA,
        "name": "monitor",
        "log": "runs/a/monitor.jsonl",
        "runs": 1,
        "count": len(readings),
        "half_written": False,
        "confidence": 0.95,
        "population": None,
        "command": "variegrad monitor runs/a/monitor.jsonl --report runs/a",
        "versions": {"variegrad": "0.1.0", "python": "3.11.7"},
        "advice": "At step 48 the batch of 64 is near the limit.",
        "readings": [reading.to_record() for reading in readings],
        **changes,
    }


def usual(count: int = 30, batch_size: int = 64) -> list[Any]:
    return [
        a_reading(16 * k, bound=50.0 + 5 * k, low=30.0 + 4 * k, high=100.0 + 9 * k, lower=28.0 + 4 * k,
                  batch_size=batch_size)
        for k in range(count)
    ]  # fmt: skip


CASES: dict[str, Document] = {
    "usual": a_document(usual()),
    "one": a_document(usual(1)),
    "odd": a_document([a_reading(16 * k, **of) for k, of in enumerate(ODD.values())]),
    "only cannot tell": a_document([a_reading(16 * k, **ODD["cannot tell"]) for k in range(3)]),
    "only undefined": a_document([a_reading(16 * k, **ODD["undefined"]) for k in range(3)]),
    "only unbounded": a_document([a_reading(16 * k, **ODD["unbounded above"]) for k in range(3)]),
    "one that cannot tell": a_document([a_reading(16, **ODD["cannot tell"])]),
    "one unbounded": a_document([a_reading(16, **ODD["unbounded above"])]),
    "batch of one": a_document(usual(5, batch_size=1)),
    "growing batch": a_document(usual(5) + [a_reading(100 + k, batch_size=128) for k in range(3)]),
    "many": a_document(usual(3000)),
    "same step": a_document([a_reading(16), a_reading(16)]),
    "hostile": a_document(
        usual(3), name=HOSTILE, log=HOSTILE, command=HOSTILE, advice=HOSTILE, versions={HOSTILE: "1"}
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_history_becomes_a_page_that_nests_and_stands_alone(case: str, tmp_path: Path) -> None:
    path = write_history(CASES[case], tmp_path / "new" / "folder")
    page = Page(path)
    assert page.all("script") == page.all("link") == page.all("a") == []
    assert all((image["src"] or "").startswith("data:image/svg+xml") for image in page.all("img"))
    assert len(page.all("img")) == len(page.all("figcaption")) == 1
    assert len(page.all("img")[0]["alt"] or "") > 60
    assert not re.search(r"\b(nan|inf)\b", page.text, re.IGNORECASE)
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "history.json", "history.png", "history.svg", "report.html",
    ]  # fmt: skip
    assert json.loads((path.parent / "history.json").read_text()) == CASES[case]


def test_same_document_gives_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_history(CASES["odd"], tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_hostile_text_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    page = Page(write_history(CASES["hostile"], tmp_path))
    assert page.text.count("<script>window.hit = 1</script>") >= 5
    assert len(page.all("img")) == 1


def test_a_failed_write_leaves_the_former_page_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_history(CASES["usual"], tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(path: Path, target: Path) -> Path:
        raise OSError(f"no space left for {target.name}")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_history(CASES["odd"], tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_page_says_what_is_odd(tmp_path: Path) -> None:
    document = CASES["odd"] | {"half_written": True, "runs": 3, "population": 1500, "count": 900}
    document["readings"][-1] = a_reading(200, skipped=2).to_record()
    text = Page(write_history(document, tmp_path)).text
    assert "Half a line. The log ends in an incomplete line" in text
    assert "Skipped. 2 steps were skipped" in text
    assert "▲ at the upper edge" in text
    assert "(2 of these readings). Read “at least”." in text
    assert "● at the lower edge: not enough readings yet, neither estimate nor band is drawn (2 of" in text
    assert "✖ at the lower edge: every gradient was zero" in text
    assert "the last of its 3 runs" in text
    assert "a population of 1,500 examples" in text
    assert "8 of 900 readings are drawn" in text


def test_the_usual_page_has_no_notes_about_what_did_not_occur(tmp_path: Path) -> None:
    text = Page(write_history(CASES["usual"], tmp_path)).text
    assert not any(mark in text for mark in "▲●✖")
    assert "Skipped" not in text
    assert "Half a line" not in text
    assert "30 readings, steps 0 to 464" in text
    assert "The latest 20 readings" in text
    assert "fresh or augmented" in text


def test_the_picture_has_band_line_bound_and_batch() -> None:
    figure = bound_and_efficiency(history_points(CASES["usual"]), "usual")
    upper, lower = figure.axes
    labels = upper.get_legend_handles_labels()[1]
    assert labels == ["its interval", "estimate of $B_D$", "at least (lower bound)", "usual batch: 64"]
    assert upper.get_yscale() == "log"
    band = upper.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(28)
    assert band[:, 1].max() == pytest.approx(100 + 9 * 29)
    estimate, lcb = (line.get_ydata() for line in upper.get_lines()[:2])
    assert list(estimate) == [50.0 + 5 * k for k in range(30)]
    assert list(lcb) == [28.0 + 4 * k for k in range(30)]
    assert lower.get_lines()[0].get_ydata()[0] == pytest.approx(100 / (1 + 63 / 50))
    assert upper.get_ylim()[0] < 28
    assert upper.get_ylim()[1] > 100 + 9 * 29


def test_the_short_last_batch_of_an_epoch_is_no_spike() -> None:
    sizes = [64, 64, 64, 10, 64, 64, 64, 128, 128, 128, 128]
    readings = [a_reading(16 * k, batch_size=size) for k, size in enumerate(sizes, start=1)]
    upper, lower = bound_and_efficiency(history_points(a_document(readings)), "usual").axes
    drawn = next(line for line in upper.get_lines() if "usual batch" in str(line.get_label()))
    assert list(drawn.get_ydata()) == [64.0] * 7 + [128.0] * 4  # a lasting change stays where it is
    assert lower.get_lines()[0].get_ydata()[3] == pytest.approx(100 / (1 + 63 / 100))


def test_odd_readings_stand_at_the_edges() -> None:
    upper = bound_and_efficiency(history_points(CASES["odd"]), "odd").axes[0]
    marks = {line.get_label(): (list(line.get_xdata()), line.get_ydata()[0]) for line in upper.get_lines()}
    names = list(ODD)
    unbounded = [16 * names.index(name) for name in ("unbounded above", "unbounded above with a point estimate")]
    untold = [16 * names.index(name) for name in ("cannot tell", "cannot tell, bounded above")]
    assert marks["no upper limit"] == (unbounded, 1.0)
    assert marks["too early to tell"] == (untold, 0.0)
    assert marks["undefined"] == ([16 * names.index("undefined")], 0.0)
    # A lower bound that is the trivial 1 is not drawn as if it were known.
    bound = next(line for line in upper.get_lines() if line.get_label() == "at least (lower bound)")
    assert [step for step, y in zip(*bound.get_data(), strict=True) if math.isnan(y)] == sorted(
        [*untold, 16 * names.index("undefined")]
    )


@pytest.mark.parametrize("count", [1, 2, 399, 400, 401, 3000, 100_000])
def test_very_many_readings_are_drawn_evenly(count: int) -> None:
    points = history_points(a_document(usual(1)))
    many = [replace(points[0], step=16 * k) for k in range(count)]
    drawn = evenly(many)
    assert len(drawn) <= 400
    assert drawn[0] is many[0]
    assert drawn[-1] is many[-1]
    if count <= 400:
        assert drawn == many
    else:
        gaps = [b.step - a.step for a, b in itertools.pairwise(drawn)]
        assert max(gaps) <= 2 * math.ceil(16 * count / 399)
        assert len(drawn) > 195


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "variegrad.measure/1"}, "schema must be 'variegrad.history/1'"),
        ({"readings": []}, "there are no readings to draw"),
    ],
)
def test_another_document_is_refused(change: Document, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_history(CASES["usual"] | change, tmp_path / "new")
    assert not (tmp_path / "new").exists()
