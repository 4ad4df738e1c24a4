"""The pictures show what the document says, degenerate points included, and leave matplotlib's settings alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from variegrad.reports import bound_along_run, efficiency, layers, mechanisms
from variegrad.reports.document import landmarks, modules, number, points
from variegrad.reports.style import drawable, in_figures

Document = dict[str, Any]
DRAW = [bound_along_run, efficiency, layers, mechanisms]


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    return figure


def curve(ax: Axes, color: str, marker: str) -> list[float]:
    lines = [line for line in ax.lines if line.get_color() == color and line.get_marker() == marker]
    return [float(y) for y in np.asarray(lines[-1].get_ydata(), dtype=float)]


@pytest.mark.parametrize("draw", DRAW)
def test_every_axis_is_named_and_no_text_leaves_its_picture(
    draw: Callable[[Document], Figure | None], documents: dict[str, Document]
) -> None:
    # One picture title is 300 letters m: a name made to be too wide, cut but not fitted.
    for name in documents.keys() - {"hostile"}:
        figure = draw(documents[name])
        if figure is None:
            continue
        canvas = figure.bbox
        assert figure.get_suptitle()
        assert all(ax.get_ylabel() for ax in figure.axes)
        assert figure.axes[-1].get_xlabel()
        for artist in [*figure.texts, *figure.legends, *figure.axes]:
            box = artist.get_tightbbox()
            assert box is not None
            assert min(box.x0 - canvas.x0, canvas.x1 - box.x1) >= -1, (name, draw.__name__, artist)
            assert min(box.y0 - canvas.y0, canvas.y1 - box.y1) >= -1, (name, draw.__name__, artist)


@pytest.mark.parametrize("draw", DRAW)
def test_drawing_leaves_the_settings_of_matplotlib_alone(
    draw: Callable[[Document], Figure | None], ordinary: Document
) -> None:
    before = dict(mpl.rcParams)
    draw(ordinary)
    assert dict(mpl.rcParams) == before


def test_bound_is_drawn_with_infinite_points_at_the_top_and_undefined_ones_below(
    documents: dict[str, Document],
) -> None:
    ax = drawn(bound_along_run(documents["degenerate"])).axes[0]
    blue = {line.get_marker(): line for line in ax.lines if line.get_color() == "#0b6fb8"}
    assert np.asarray(blue["^"].get_xydata(), dtype=float).tolist() == [[0.25, 1]]
    assert np.asarray(blue["X"].get_xydata(), dtype=float).tolist() == [[0.25 * 3**1.5, 0]]
    np.testing.assert_allclose(curve(ax, "#0b6fb8", "o"), [30, math.nan, 2000, math.nan, 80])


def test_panels_follow_what_was_measured(ordinary: Document) -> None:
    assert len(drawn(bound_along_run(ordinary)).axes) == 3
    for point in ordinary["points"]:
        point.update(accuracy=None, test_accuracy=None)
    assert len(drawn(bound_along_run(ordinary)).axes) == 2


def test_efficiency_curves_obey_their_formulas(ordinary: Document) -> None:
    upper, lower = drawn(efficiency(ordinary)).axes
    start = ordinary["points"][0]["batch_size_bound"]
    sizes, kept = (np.asarray(v, dtype=float) for v in upper.lines[1].get_data())
    np.testing.assert_allclose(kept, 100 / (1 + (sizes - 1) / start))
    sizes, faster = (np.asarray(v, dtype=float) for v in lower.lines[1].get_data())
    np.testing.assert_allclose(faster, sizes / (1 + (sizes - 1) / start))
    assert sizes[0] == 1
    assert sizes[-1] >= 16 * max(p["batch_size_bound"] for p in ordinary["points"])


def test_shares_of_layers_fill_the_bar_and_grouped_bounds_recombine(documents: dict[str, Document]) -> None:
    document = documents["deep"]
    measured = points(document)
    groups = modules(measured, 7)
    assert len(groups) == 8
    assert groups[-1][0] == "other (143 modules)"
    for k, point in enumerate(measured):
        parts = [series[k] for _, series in groups]
        assert sum(part.share for part in parts) == pytest.approx(1)
        # 1/B_D = Σ (A_l/A)(1/B_l), over groups as over parameters.
        recombined = sum(p.sum_sq_norms / p.bound for p in parts) / sum(p.sum_sq_norms for p in parts)
        assert recombined == pytest.approx(1 / point.bound)
    named = max(series[0].share for _, series in groups[:-1])
    assert named == pytest.approx(max(series[0].share for _, series in modules(measured, 150)))
    bars = drawn(layers(document)).axes[0].patches
    tops = [bar.get_y() + bar.get_height() for bar in bars[-len(measured) :]]  # type: ignore[attr-defined]
    np.testing.assert_allclose(tops, 100)


def test_layers_whose_gradients_vanish_or_cancel_keep_their_meaning_in_a_group(ordinary: Document) -> None:
    first = ordinary["points"][0]["per_parameter"]
    first["0.weight"].update(sum_sq_norms=0.0, sq_norm_of_sum=0.0, batch_size_bound=None, share=0.0)
    first["2.weight"].update(sq_norm_of_sum=1e-20, batch_size_bound="inf", share=0.0)
    first["2.bias"].update(sq_norm_of_sum=1e-20, batch_size_bound="inf", share=0.0)
    groups = dict(modules(points(ordinary), 7))
    assert groups["0"][0].bound == pytest.approx(first["0.bias"]["batch_size_bound"])
    assert groups["2"][0].bound == math.inf
    first["0.bias"].update(sum_sq_norms=0.0, sq_norm_of_sum=0.0, batch_size_bound=None, share=0.0)
    assert math.isnan(dict(modules(points(ordinary), 7))["0"][0].bound)


def test_mechanisms_have_a_panel_each(ordinary: Document) -> None:
    panels = drawn(mechanisms(ordinary)).axes
    assert [ax.get_title(loc="left") for ax in panels] == ["DropConnect(0.4)", "Langevin(0.01)", "Quantize()"]
    expected = [p["mechanisms"]["Quantize()"]["effective_bound"] for p in ordinary["points"]]
    np.testing.assert_allclose(curve(panels[2], "#c8551b", "^"), expected)


def test_pictures_without_content_are_not_drawn(documents: dict[str, Document]) -> None:
    assert all(draw(documents["nothing measured"]) is None for draw in DRAW)
    assert mechanisms(documents["deep"]) is None
    assert layers(documents["no layers"]) is None
    assert layers(documents["only infinite"]) is None
    assert efficiency(documents["only undefined"]) is None


def test_landmarks_name_each_point_once(documents: dict[str, Document]) -> None:
    assert list(landmarks(points(documents["usual"]))) == ["start, smallest", "middle", "end"]
    assert list(landmarks(points(documents["single point"]))) == ["start, end, smallest"]
    assert list(landmarks(points(documents["only undefined"]))) == ["start", "middle", "end"]
    assert landmarks([]) == {}


def test_another_schema_is_refused(ordinary: Document) -> None:
    with pytest.raises(ValueError, match=r"schema must be 'variegrad.measure/1'; got 'variegrad.measure/2'"):
        points(ordinary | {"schema": "variegrad.measure/2"})


@pytest.mark.parametrize("value", ["many", True, [1]])
def test_malformed_numbers_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r'must be a JSON number, "inf" for \+inf or null'):
        number(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1, "1"),
        (136.57, "136.6"),
        (0.05, "0.05"),
        (1797, "1,797"),
        (123456.7, "123,457"),
        (2.5e9, "2.5×10⁹"),
        (1.25e-7, "1.25×10⁻⁷"),
        (-2.5, "−2.5"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (math.nan, "–"),
        (999999.7, "1,000,000"),
    ],
)
def test_numbers_are_written_as_people_write_them(value: float, text: str) -> None:
    assert in_figures(value) == text


def test_names_are_drawn_on_one_line_in_glyphs_that_the_font_has() -> None:
    assert drawable("conv1\n\t weight", 30) == "conv1 weight"
    assert drawable("层x", 30) == "�x"
    assert drawable("abcdefghij", 10) == "abcdefghij"
    assert drawable("abcdefghijk", 10) == "abcd…ghijk"
