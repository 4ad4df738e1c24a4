"""Theorem 1 (informal): within the bound, as many gradients at the same step give the same accuracy up to 1+δ/2."""

from __future__ import annotations

import pytest

from laws.quadratic import problem
from variegrad.theory import rates_strongly_convex


@pytest.mark.parametrize("delta", [0.5, 1.0, 3.0])
def test_a_batch_within_the_bound_is_as_good_as_serial_sgd_after_as_many_gradients(delta: float) -> None:
    quadratic = problem(0)
    start = quadratic.start()
    rates = rates_strongly_convex(
        error=0.05,
        strong_convexity=0.5,
        second_moment=quadratic.worst_second_moment,
        sq_distance=4.0,
        bound=quadratic.least_bound,
        delta=delta,
    ).paper
    step, batch = rates.step_size, rates.batch_size
    assert batch > 1
    serial = quadratic.run(start, step_size=step, batch_size=1, iterations=rates.iterations * batch)[-1].sum()
    parallel = quadratic.run(start, step_size=step, batch_size=batch, iterations=rates.iterations)[-1].sum()
    assert serial <= 0.05
    assert parallel <= (1 + delta / 2) * 0.05


def test_far_beyond_the_bound_the_same_number_of_gradients_does_not_serve() -> None:
    quadratic = problem(0)
    start = quadratic.start()
    step, gradients = 1e-3, 30_000
    serial = quadratic.run(start, step_size=step, batch_size=1, iterations=gradients)[-1].sum()
    beyond = quadratic.run(start, step_size=step, batch_size=950, iterations=gradients // 950)[-1].sum()
    assert beyond > 3 * serial
