"""Pictures of experiments: what cannot be drawn is marked or left out, never drawn elsewhere."""

import math

import pytest

from variegrad.experiments.intervals import Interval
from variegrad.reports.curves import Series, panels


def interval(mean):
    return Interval(mean=mean, low=mean * 0.9, high=mean * 1.1, count=3)


def drawn(figure, number=0):
    """The heights of the line of a series."""
    return [height for height in figure.axes[0].lines[number].get_ydata() if math.isfinite(height)]


def test_a_value_known_only_to_exceed_a_number_is_an_arrow_and_no_point():
    series = Series.of(
        "measured", [16, 32, 64], [interval(50), interval(80), interval(400)], beyond=[None, None, 400.0]
    )
    figure = panels("", [("B", "passes", [series])], log_x=True, log_y=True)
    assert drawn(figure) == [50, 80]
    assert [text.get_text() for text in figure.axes[0].texts] == ["> 400"]
    assert figure.axes[0].get_ylim()[1] > 400
    assert len(figure.axes[0].containers[0][0].get_xdata()) == 2  # bars at the two points alone


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_logarithmic_axis_leaves_out_what_it_has_no_place_for(value):
    series = Series(label="a", x=[1, 2, 3], mean=[1.0, value, 2.0], low=[0.9, value, 1.9], high=[1.1, value, 2.1])
    figure = panels("", [("x", "y", [series])], log_y=True)
    assert drawn(figure) == [1.0, 2.0]
    assert len(figure.axes[0].containers[0][0].get_xdata()) == 2


def test_panels_that_are_compared_have_one_range_and_one_legend():
    parts = [("x", "y", [Series.of("a", [1, 2], [interval(k), interval(10 * k)])]) for k in (1, 100)]
    figure = panels("", parts, log_y=True, same_y=True)
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    assert [ax.get_legend() is not None for ax in figure.axes] == [True, False]


def test_single_runs_are_drawn_behind_their_mean():
    runs = [[1.0, 2.0], [2.0, 1.0]]
    figure = panels("", [("x", "y", [Series.of("mean", [1, 2], [interval(1.5)] * 2, runs=runs)])])
    assert [list(line.get_ydata()) for line in figure.axes[0].lines[1:3]] == runs


@pytest.mark.parametrize(
    "points",
    [
        [(2.0, 1.1), (2.4, 1.2), (2.42, 1.3), (2.5, 1.6)],  # close together
        [(1.0, 1.0), (1.0, 1.05), (1.0, 1.1), (8.0, 9.0)],  # one above the other
        [(1.0, 1.0), (8.0, 9.0), (8.0, 8.0), (7.9, 8.5)],  # at the edge
    ],
)
def test_notes_cover_no_other_note_and_stay_inside(points):
    x, y = zip(*points, strict=True)
    notes = [f"r = {2**k}" for k in range(len(points))]
    one = Series(label="a", x=x, mean=y, low=y, high=y, joined=False, notes=notes)
    (ax,) = panels("title", [("x", "y", [one])], log_x=True, log_y=True).axes
    boxes = [text.get_window_extent() for text in ax.texts]
    assert [text.get_text() for text in ax.texts] == notes
    assert all(box.count_overlaps([other for other in boxes if other is not box]) == 0 for box in boxes)
    assert all(ax.bbox.contains(*corner) for box in boxes for corner in (box.p0, box.p1))
