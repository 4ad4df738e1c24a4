"""Theorem 3 (Polyak-Łojasiewicz): γ = 2εμ/(M²β), B ≤ 1/(2γμ), T = M²β/(4μ²ε)·ln(2(F₀−F*)/ε); E F−F* ≤ (1+δ/2)ε."""

from __future__ import annotations

import math

import numpy as np
import pytest

from laws.quadratic import problem
from variegrad.theory import gap_along, rates_polyak_lojasiewicz


@pytest.mark.parametrize("delta", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("law", ["paper", "retuned"])
def test_the_promised_gap_is_reached(delta: float, law: str) -> None:
    quadratic = problem(3)
    start = quadratic.start()
    rates = rates_polyak_lojasiewicz(
        error=0.05,
        smoothness=2.0,
        pl_constant=0.5,
        second_moment=quadratic.worst_second_moment,
        initial_gap=quadratic.gap(np.square(start - quadratic.optimum)),
        bound=quadratic.least_bound,
        delta=delta,
    )
    schedule = getattr(rates, law)
    path = quadratic.run(
        start, step_size=schedule.step_size, batch_size=schedule.batch_size, iterations=schedule.iterations
    )
    assert quadratic.gap(path[-1]) <= schedule.error
    assert quadratic.gap(path[len(path) // 50]) > schedule.error


def test_the_numbers_are_the_formulae_s() -> None:
    rates = rates_polyak_lojasiewicz(
        error=0.01, smoothness=2.0, pl_constant=0.5, second_moment=4.0, initial_gap=1.0, bound=10.0, delta=1.0
    )
    assert rates.paper.step_size == pytest.approx(0.00125)
    assert rates.paper.updates == pytest.approx(800 * math.log(200))
    assert rates.paper.batch_size == 11
    assert rates.paper.error == pytest.approx(0.015)


def test_the_cap_on_the_batch_is_kept_and_grows_with_the_retuned_step() -> None:
    rates = rates_polyak_lojasiewicz(
        error=0.01, smoothness=2.0, pl_constant=0.5, second_moment=4.0, initial_gap=1.0, bound=1e6, delta=1.0
    )
    assert rates.paper.batch_size == 800
    assert rates.retuned.batch_size == 1600


def test_beyond_the_cap_the_bound_of_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at most 1/\(2·pl_constant\) = 1; got 1\.1"):
        gap_along(
            initial_gap=1.0,
            pl_constant=0.5,
            smoothness=1.0,
            step_size=0.1,
            batch_size=11,
            bounds=[5.0],
            second_moments=[1.0],
        )


def test_nothing_is_to_be_done_where_the_start_is_good_enough() -> None:
    rates = rates_polyak_lojasiewicz(
        error=1.0, smoothness=2.0, pl_constant=0.5, second_moment=4.0, initial_gap=0.4, bound=10.0
    )
    assert rates.paper.updates == rates.paper.iterations == 0
