"""Theorem 5 (strongly convex): γ = ελ/M², B ≤ 1/(2λγ), T = M²/(2λ²ε)·ln(2D₀/ε); E‖w_T−w*‖² ≤ (1+δ/2)ε; retuned, ε."""

from __future__ import annotations

import math

import numpy as np
import pytest

from laws.quadratic import problem
from variegrad.theory import distance_along, rates_strongly_convex


@pytest.mark.parametrize("delta", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("law", ["paper", "retuned"])
def test_the_promised_distance_is_reached(delta: float, law: str) -> None:
    quadratic = problem(5)
    start = quadratic.start()
    rates = rates_strongly_convex(
        error=0.05,
        strong_convexity=0.5,
        second_moment=quadratic.worst_second_moment,
        sq_distance=4.0,
        bound=quadratic.least_bound,
        delta=delta,
    )
    schedule = getattr(rates, law)
    path = quadratic.run(
        start, step_size=schedule.step_size, batch_size=schedule.batch_size, iterations=schedule.iterations
    )
    assert path[-1].sum() <= schedule.error
    assert path[len(path) // 50].sum() > schedule.error


def test_the_numbers_are_the_formulae_s() -> None:
    rates = rates_strongly_convex(
        error=0.01, strong_convexity=0.5, second_moment=4.0, sq_distance=1.0, bound=100.0, delta=0.5, smoothness=3.0
    )
    assert rates.paper.step_size == pytest.approx(0.00125)
    assert rates.paper.updates == pytest.approx(800 * math.log(200))
    assert rates.paper.batch_size == 51
    assert rates.paper.error == pytest.approx(0.0125)
    assert rates.speed_up == pytest.approx(51 / 1.5)
    assert rates.efficiency == pytest.approx(1 / 1.5)


def test_the_trajectory_certificate_is_an_equality_on_a_quadratic_of_one_curvature() -> None:
    quadratic = problem(6, curvatures=(0.7, 0.7, 0.7))
    step, batch = 0.01, 9
    path = quadratic.run(quadratic.start(), step_size=step, batch_size=batch, iterations=200)
    moments = [quadratic.second_moment(x) for x in path[:-1]]
    bounds = [quadratic.second_moment(x) / quadratic.sq_gradient(x) for x in path[:-1]]
    found = distance_along(
        sq_distance=float(path[0].sum()),
        strong_convexity=0.7,
        step_size=step,
        batch_size=batch,
        bounds=bounds,
        second_moments=moments,
    )
    np.testing.assert_allclose(found, path.sum(axis=1), rtol=1e-11)


def test_the_trajectory_certificate_is_a_bound_on_any_quadratic_and_sharper_than_the_worst_case() -> None:
    quadratic = problem(7)
    step, batch = 0.01, 20
    path = quadratic.run(quadratic.start(), step_size=step, batch_size=batch, iterations=400)
    moments = [quadratic.second_moment(x) for x in path[:-1]]
    bounds = [quadratic.second_moment(x) / quadratic.sq_gradient(x) for x in path[:-1]]
    along = {"sq_distance": 4.0, "strong_convexity": 0.5, "step_size": step, "batch_size": batch}
    found = distance_along(**along, bounds=bounds, second_moments=moments)
    worst = distance_along(**along, bounds=[min(bounds)] * 400, second_moments=[max(moments)] * 400)
    assert (path.sum(axis=1) <= found * (1 + 1e-12)).all()
    assert found[-1] < worst[-1] / 1.2


def test_the_cap_does_not_exclude_divergence_and_the_calculator_says_so() -> None:
    numbers = {"error": 0.01, "strong_convexity": 0.1, "second_moment": 4.0, "sq_distance": 1.0, "bound": 1e9}
    schedule = rates_strongly_convex(**numbers, delta=1.0, smoothness=3.0).paper
    assert schedule.step_size * schedule.batch_size >= 2 / 3
    assert "reaches 2/β" in schedule.warning
    assert rates_strongly_convex(**{**numbers, "bound": 10.0}, delta=1.0, smoothness=3.0).paper.warning == ""
