"""Means over repeats and their intervals."""

import math

import numpy as np
import pytest

from variegrad.experiments.intervals import geometric, interval


def test_the_interval_is_student_s():
    found = interval([1.0, 2.0, 3.0])
    # t_{.975, 2} = 4.302653, s = 1, three repeats
    assert (found.mean, found.count) == (2.0, 3)
    assert found.high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert found.low == pytest.approx(4 - found.high)


def test_the_interval_covers_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(size=(4000, 5))
    covered = np.mean([found.low <= 0 <= found.high for found in map(interval, draws.tolist())])
    assert covered == pytest.approx(0.95, abs=0.014)  # four standard errors of 4000 draws


def test_few_and_broken_repeats():
    assert interval([2.0]).low == -math.inf
    assert math.isnan(interval([1.0, math.inf]).low)
    with pytest.raises(ValueError, match="there are no repeats"):
        interval([])


def test_the_geometric_mean_is_that_of_factors():
    found = geometric([1.0, 4.0])
    logs = interval([0.0, math.log(4.0)])
    assert found.mean == pytest.approx(2.0)
    assert (found.low, found.high) == pytest.approx((math.exp(logs.low), math.exp(logs.high)))
    assert geometric([3.0]).high == math.inf
    never = geometric([2.0, math.inf])  # a target that one repeat did not reach
    assert never.mean == math.inf
    assert math.isnan(never.low)
