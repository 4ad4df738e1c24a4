"""Theorem 4 (convex): γ = ε/M², T = M²D₀/ε² gives E F(averaged iterate) − F* ≤ (1+δ/2)ε; retuned, ε."""

from __future__ import annotations

import numpy as np
import pytest

from laws.quadratic import problem
from variegrad.theory import average_gap_along, rates_convex


@pytest.mark.parametrize("delta", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("law", ["paper", "retuned"])
def test_the_promised_gap_is_reached(delta: float, law: str) -> None:
    quadratic = problem(4)
    start = quadratic.start()
    rates = rates_convex(
        error=0.3,
        second_moment=quadratic.worst_second_moment,
        sq_distance=float(np.square(start - quadratic.optimum).sum()),
        bound=quadratic.least_bound,
        delta=delta,
    )
    schedule = getattr(rates, law)
    path = quadratic.run(
        start, step_size=schedule.step_size, batch_size=schedule.batch_size, iterations=schedule.iterations - 1
    )
    # By convexity the gap of the average is at most the average of the gaps.
    assert np.mean([quadratic.gap(x) for x in path]) <= schedule.error
    assert quadratic.gap(path[len(path) // 100]) > schedule.error


def test_the_numbers_are_the_formulae_s() -> None:
    rates = rates_convex(error=0.1, second_moment=5.0, sq_distance=2.0, bound=9.0, delta=1.0)
    assert rates.paper.step_size == pytest.approx(0.02)
    assert rates.paper.updates == pytest.approx(1000)
    assert (rates.paper.batch_size, rates.paper.iterations) == (10, 100)
    assert rates.paper.error == pytest.approx(0.15)
    assert rates.retuned.step_size == pytest.approx(0.01)
    assert rates.retuned.updates == pytest.approx(2000)
    assert (rates.retuned.batch_size, rates.retuned.iterations) == (10, 200)


def test_the_two_terms_of_the_proof_add_up_to_the_paper_s_error() -> None:
    schedule = rates_convex(error=0.1, second_moment=5.0, sq_distance=2.0, bound=9.0, delta=1.0).paper
    bound = average_gap_along(
        sq_distance=2.0,
        step_size=schedule.step_size,
        batch_size=schedule.batch_size,
        bounds=[9.0] * schedule.iterations,
        second_moments=[5.0] * schedule.iterations,
    )
    assert bound == pytest.approx(schedule.error)
