"""Mechanisms as they are written, numbers as people read them, and the advice of a run."""

import math

import pytest

from variegrad.along import Point
from variegrad.cli.document import advice, half
from variegrad.cli.mechanisms import WRITTEN, parse_mechanism
from variegrad.cli.table import examples, percent, words
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
        "package.module:function",
        *WRITTEN,
    ):
        assert name in said.out


def test_the_help_needs_no_argument(variegrad):
    said = variegrad()
    assert said.code == 2
    assert "measure" in said.out
    assert variegrad("--help").code == 0
    assert "1/(1 + (B−1)/B_D)" in variegrad("measure", "-h").out.replace("\n", "")


@pytest.mark.parametrize(
    ("value", "text"),
    [(math.nan, "–"), (math.inf, "∞"), (0.05678, "0.0568"), (81.62, "81.6"), (999.4, "999"), (12345.6, "12,346")],
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
    p = point(0, 36.5)
    assert half(p) == 37
    assert p.diversity.efficiency(37) >= 0.5 > p.diversity.efficiency(38)


def test_the_advice_is_what_the_numbers_say():
    said = advice([point(0, 80), point(1, 36.5), point(4, 200)], 64)
    assert said.startswith("Up to pass 4 a batch of 37 wastes at most half of its examples (the least is at pass 1);")
    assert "at pass 4 a batch of 201 does." in said
    worst, end = 100 / (1 + 63 / 36.5), 100 / (1 + 63 / 200)
    assert f"beyond the limit: {worst:.0f} % of its examples count at worst, {end:.0f} % at the end" in said
    assert "is well below the limit" in advice([point(0, 1000)], 64)
    assert "is near the limit" in advice([point(0, 100)], 64)


def test_the_advice_of_degenerate_runs():
    assert "nothing was measured" in advice([], 64)
    assert "every gradient was zero" in advice([point(0, 5, sq=0.0)], 64)
    assert "no batch size is too large" in advice([point(0, math.inf)], 64)
    assert "at pass 1 any batch does" in advice([point(0, 10), point(1, math.inf)], 64)
