"""Mechanisms as they are written, numbers as people read them, and the advice of a run."""

import math

import numpy as np
import pytest

from variegrad import __version__
from variegrad.along import Point, over_run
from variegrad.cli.document import advice, half
from variegrad.cli.mechanisms import WRITTEN, parse_mechanism
from variegrad.cli.table import examples, percent, two_digits, words
from variegrad.mechanisms import DropConnect, Langevin, Quantize
from variegrad.moments import Diversity


def point(passes, bound, n=1000, sq=1.0):
    of_sum = 0.0 if math.isinf(bound) else n * sq / bound
    diversity = Diversity(count=n, dimension=3, sum_sq_norms=sq, sq_norm_of_sum=of_sum)
    return Point(
        updates=0, passes=passes, loss=1.0, accuracy=None, test_loss=None, test_accuracy=None, diversity=diversity
    )


def test_mechanisms_are_read_as_they_are_written():
    assert parse_mechanism("dropconnect:0.4") == DropConnect(0.4)
    assert parse_mechanism(" DropConnect:0.4:unscaled ") == DropConnect(0.4, rescale=False)
    assert parse_mechanism("langevin:1e-2") == Langevin(0.01)
    assert parse_mechanism("quantize") == Quantize()
    for written in WRITTEN:  # what `variegrad list` shows can be typed
        parse_mechanism(written.replace("SIGMA", "0.1").replace("P", "0.1"))


def test_the_list_names_problems_and_mechanisms(variegrad):
    said = variegrad("list")
    assert said.code == 0
    for name in (
        "digits",
        "mnist",
        "fashion-mnist",
        "cifar10",
        "cifar10-pair",
        "a9a",
        "mine.py:FUNCTION",
        *WRITTEN,
    ):
        assert name in said.out


def test_the_help_needs_no_argument(variegrad):
    said = variegrad()
    assert said.code == 2
    assert "measure" in said.out
    assert variegrad("--help").code == 0
    assert "1/(1 + (B−1)/B_D)" in variegrad("measure", "-h").out.replace("\n", "")
    assert variegrad("--version").out == variegrad("-V").out == f"variegrad {__version__}\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.nan, "–"),
        (math.inf, "∞"),
        (0.05678, "0.0568"),
        (81.62, "81.6"),
        (86.01, "86.0"),
        (163.4, "163"),
        (999.4, "999"),
        (12345.6, "12,346"),
    ],
)
def test_bounds_are_written_without_exponent(value, text):
    assert examples(value) == text


def test_shares_are_percentages():
    assert (percent(None), percent(0.4321)) == ("–", "43.2 %")


def test_degenerate_points_are_words():
    assert words(point(0, 10)) == ""
    assert words(point(0, math.inf)) == "zero_total: the gradients cancel"
    assert words(point(0, 2000)) == "conflicting: gradients oppose each other"
    assert words(point(0, 10, sq=0.0)) == "undefined: all gradients are zero"


def test_half_of_the_batch_is_wasted_at_one_more_than_the_bound():
    assert half(36.5) == 37
    assert point(0, 36.5).diversity.efficiency(37) >= 0.5 > point(0, 36.5).diversity.efficiency(38)


@pytest.mark.parametrize(
    ("value", "down", "text"),
    [(1, False, "1"), (1.04, False, "1"), (3.21, False, "3.2"), (9.97, False, "10"), (86.2, False, "86"),
     (86.9, True, "86"), (1234, False, "1,200"), (1299, True, "1,200"), (99.6, False, "100")],
)  # fmt: skip
def test_two_digits_and_no_more(value, down, text):
    assert two_digits(value, down=down) == text


def test_a_run_is_summed_up_by_the_harmonic_mean_over_its_passes():
    inverse = [1 / 80, 1 / 36.5, 1 / 200]
    mean = ((inverse[0] + inverse[1]) / 2 + 3 * (inverse[1] + inverse[2]) / 2) / 4
    found = over_run([point(0, 80), point(1, 36.5), point(4, 200)], 64)
    assert found.harmonic_mean == pytest.approx(1 / mean)
    assert found.efficiency == pytest.approx(1 / (1 + 63 * mean))
    rising = (inverse[1] - 1 / 64) / (inverse[1] - inverse[0])
    falling = (inverse[1] - 1 / 64) / (inverse[1] - inverse[2])
    assert found.share_below == pytest.approx((rising + 3 * falling) / 4)
    assert (found.least, found.least_at) == (pytest.approx(36.5), 1)
    passes = np.linspace(0, 4, 4001)
    along = np.interp(passes, [0, 1, 4], inverse)
    for batch in (1, 36, 37, 200, 10**6):
        share = over_run([point(0, 80), point(1, 36.5), point(4, 200)], batch).share_below
        assert share == pytest.approx((along > 1 / batch).mean(), abs=2e-3)


def test_points_without_a_bound_count_as_harmless():
    assert over_run([], 64) is None
    assert over_run([point(0, 5, sq=0.0)], 64) is None
    found = over_run([point(0, 10), point(1, 5, sq=0.0)], 64)
    assert found.harmonic_mean == pytest.approx(20)
    assert over_run([point(2, 10)], 64).share_below == 1


def test_the_advice_is_what_the_numbers_say():
    said = advice([point(0, 80), point(1, 36.5), point(4, 200)], 64)
    assert said == (
        "Over 4 passes B_D is 58 examples (harmonic mean over the run). Your batch of 64 is beyond the limit: 48 % "
        "efficient. B_D is below 64 for 59 % of the run (least: 36 at pass 1). Batches up to 59 are at least 50 % "
        "efficient over the run."
    )
    said = advice([point(0, 1000)], 64)
    assert said == (
        "At pass 0 B_D is 1,000 examples. Your batch of 64 is well below the limit: 94 % efficient. Batches up to "
        "1,000 are at least 50 % efficient."
    )
    assert "is near the limit" in advice([point(0, 100)], 64)
    assert advice([point(0, 100), point(1, 90)], 64).startswith("Over 1 pass B_D is")


def test_the_advice_of_degenerate_runs():
    assert "nothing was measured" in advice([], 64)
    assert "every gradient was zero" in advice([point(0, 5, sq=0.0)], 64)
    assert "no batch size is too large" in advice([point(0, math.inf)], 64)
    assert "B_D is 20 examples" in advice([point(0, 10), point(1, math.inf)], 64)
