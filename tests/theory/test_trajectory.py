"""Trajectory certificates refuse what is no trajectory; the laws they rest on are tested with Theorems 2-5."""

from __future__ import annotations

import math

import numpy as np
import pytest

from laws.quadratic import problem
from variegrad.theory import average_gap_along, distance_along, gap_along, gradient_along


def test_every_certificate_bounds_a_run() -> None:
    quadratic = problem(1)
    step, batch = 0.01, 20
    path = quadratic.run(quadratic.start(), step_size=step, batch_size=batch, iterations=100)
    along = {
        "step_size": step,
        "batch_size": batch,
        "bounds": [quadratic.second_moment(x) / quadratic.sq_gradient(x) for x in path[:-1]],
        "second_moments": [quadratic.second_moment(x) for x in path[:-1]],
    }
    gaps = np.array([quadratic.gap(x) for x in path])
    norms = [quadratic.sq_gradient(x) for x in path[:-1]]
    assert (gaps <= gap_along(initial_gap=gaps[0], pl_constant=0.5, smoothness=2.0, **along) * (1 + 1e-12)).all()
    assert np.mean(norms) <= gradient_along(initial_gap=gaps[0], smoothness=2.0, **along)
    assert gaps[:-1].mean() <= average_gap_along(sq_distance=4.0, **along)


def test_a_run_without_a_common_direction_has_the_noise_of_serial_sgd() -> None:
    numbers = {"sq_distance": 1.0, "strong_convexity": 0.5, "step_size": 0.1, "second_moments": [2.0]}
    found = distance_along(**numbers, batch_size=10, bounds=[math.inf])
    np.testing.assert_allclose(found, [1.0, 10 * 0.01 * 2.0], atol=1e-15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bounds": []}, "one number for each step, at least one; got 0 and 1"),
        ({"bounds": [0.5]}, "bounds must be at least 1; got 0.5"),
        ({"second_moments": [math.nan]}, "second_moments must be finite and not negative; got nan"),
        ({"batch_size": 11}, r"step_size·batch_size must be at most 1/\(2·strong_convexity\) = 1; got 1.1"),
        ({"step_size": 0.0}, "step_size must be positive and finite; got 0.0"),
    ],
)
def test_wrong_numbers_are_named(change: dict[str, object], message: str) -> None:
    numbers = {"sq_distance": 1.0, "strong_convexity": 0.5, "step_size": 0.1, "batch_size": 10}
    with pytest.raises(ValueError, match=message):
        distance_along(**{**numbers, "bounds": [2.0], "second_moments": [1.0], **change})
