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


@pytest.mark.parametrize("seed", range(3))
def test_every_certificate_bounds_a_run_whose_step_sizes_and_batches_vary(seed: int) -> None:
    generator = np.random.default_rng(seed)
    quadratic = problem(1)
    steps, sizes = generator.uniform(0.002, 0.02, 100), generator.integers(1, 40, 100).tolist()
    path = [np.square(quadratic.start() - quadratic.optimum)]
    for step, batch in zip(steps, sizes, strict=True):
        here = quadratic.optimum + np.sqrt(path[-1])
        path.append(quadratic.run(here, step_size=step, batch_size=batch, iterations=1)[-1])
    along = {
        "step_size": steps.tolist(),
        "batch_size": sizes,
        "bounds": [quadratic.second_moment(x) / quadratic.sq_gradient(x) for x in path[:-1]],
        "second_moments": [quadratic.second_moment(x) for x in path[:-1]],
    }
    gaps = np.array([quadratic.gap(x) for x in path])
    weights = steps * sizes / np.sum(steps * sizes)
    norms = np.array([quadratic.sq_gradient(x) for x in path[:-1]])
    assert (gaps <= gap_along(initial_gap=gaps[0], pl_constant=0.5, smoothness=2.0, **along) * (1 + 1e-12)).all()
    assert weights @ norms <= gradient_along(initial_gap=gaps[0], smoothness=2.0, **along)
    assert weights @ gaps[:-1] <= average_gap_along(sq_distance=4.0, **along)


def test_numbers_that_vary_are_one_for_each_step_and_equal_ones_are_as_one() -> None:
    numbers = {"sq_distance": 1.0, "strong_convexity": 0.5, "bounds": [3.0, 9.0], "second_moments": [2.0, 1.0]}
    once = distance_along(**numbers, step_size=0.1, batch_size=4)
    np.testing.assert_array_equal(distance_along(**numbers, step_size=[0.1, 0.1], batch_size=[4, 4]), once)
    by_hand = 1.0 * (1 - 0.4) + (1 + 3 / 3) * 4 * 0.01 * 2
    np.testing.assert_allclose(once, [1.0, by_hand, by_hand * 0.6 + (1 + 3 / 9) * 4 * 0.01], rtol=1e-14)
    with pytest.raises(ValueError, match=r"batch_size must be one number, or one for each of 2 steps; .* \(3,\)"):
        distance_along(**numbers, step_size=0.1, batch_size=[1, 2, 3])
    with pytest.raises(ValueError, match="step_size must be positive and finite; got -1"):
        distance_along(**numbers, step_size=[0.1, -1.0], batch_size=2)
    with pytest.raises(ValueError, match=r"at most 1/\(2·strong_convexity\) = 1; got 1\.2"):
        distance_along(**numbers, step_size=0.1, batch_size=[1, 12])
