"""Theorem 6: a λ-strongly convex problem on which a batch beyond 1+δE[B_D] costs E‖w_T−w*‖² ≥ c′(1+δ)γM²/λ."""

from __future__ import annotations

import numpy as np
import pytest

from theory.brute_force import batch_size_bound
from variegrad.theory.worst_case_figure import plot
from variegrad.theory.worst_case_rates import largest_delta, simulate, worst_case


@pytest.mark.parametrize("delta", [0.5, 1.0, 8.5, 90.0, 900.0])
def test_the_error_carries_the_factor_one_plus_delta(delta: float) -> None:
    case = worst_case(step_size=2.5e-5, delta=delta)
    assert case.delta == pytest.approx(delta, rel=0.2)
    assert case.within_cap
    assert case.errors[-1] >= 0.1 * (1 + case.delta) * case.step_size * case.second_moment / case.strong_convexity


def test_the_stationary_error_is_the_theorem_with_its_constant() -> None:
    for kappa, batch in ((1.0, 300), (2.0, 900), (4.0, 1800), (4.0, 19_000)):
        case = worst_case(step_size=2.5e-5, batch_size=batch, curvature_ratio=kappa)
        moment = case.smoothness**2 * (case.variance + case.stationary_error)
        assert case.stationary_error == pytest.approx(
            (1 + case.delta) * case.step_size * moment / (2 * case.smoothness)
        )


def test_the_recurrence_is_that_of_projected_mini_batch_sgd() -> None:
    case = worst_case(step_size=5e-4, batch_size=900, iterations=60, initial_error=0.01)
    distances, projected = simulate(case, runs=1000, seed=0)
    # 1000 runs in 64 dimensions: the standard error of the mean is about e·√(2/64/1000) = 0.6 %.
    assert distances.mean() == pytest.approx(case.errors[-1], rel=0.03)
    assert projected == 0


def test_one_step_agrees_with_the_gradients_of_the_construction() -> None:
    case = worst_case(step_size=1e-2, batch_size=20, dimension=3, iterations=1, initial_error=0.25)
    w = np.array([0.5, 0.0, 0.0])
    gradients = case.smoothness * (w - case.points)
    assert batch_size_bound(gradients) == pytest.approx(1 + case.variance / 0.25)
    mean = gradients.mean(axis=0)
    step = case.step_size
    noise = np.square(gradients).sum() / 6 - mean @ mean
    after = np.square(w - step * 20 * mean).sum() + step**2 * 20 * noise
    assert case.errors[1] == pytest.approx(after)


@pytest.mark.parametrize(("kappa", "limit"), [(1.0, 1 / 3), (2.0, 1.0), (3.0, 3.0), (3.9, 39.0), (4.0, np.inf)])
def test_the_cap_limits_delta_by_the_curvature_ratio(kappa: float, limit: float) -> None:
    assert largest_delta(kappa) == pytest.approx(limit)
    if np.isfinite(limit):
        assert worst_case(step_size=1e-6, delta=0.97 * limit, curvature_ratio=kappa).within_cap
        assert not worst_case(step_size=1e-6, delta=1.03 * limit, curvature_ratio=kappa).within_cap


def test_from_beyond_the_limit_the_error_never_falls_below_it() -> None:
    case = worst_case(step_size=1e-3, batch_size=100, initial_error=5.0)
    assert (case.errors >= case.stationary_error).all()


def test_the_penalty_belongs_to_a_fixed_step() -> None:
    serial = worst_case(step_size=1e-4, batch_size=1)
    fixed = worst_case(step_size=1e-4, delta=20.0)
    retuned = worst_case(step_size=1e-4 / (1 + fixed.delta), batch_size=fixed.batch_size)
    assert fixed.stationary_error > 20 * serial.stationary_error
    assert retuned.stationary_error < 1.1 * serial.stationary_error


def test_a_step_without_a_stationary_error_is_refused() -> None:
    with pytest.raises(ValueError, match="the errors grow without bound"):
        worst_case(step_size=1e-3, batch_size=600)
    with pytest.raises(ValueError, match="exactly one of delta and batch_size"):
        worst_case(step_size=1e-3)
    with pytest.raises(ValueError, match="at least 1, as β ≥ λ"):
        largest_delta(0.5)


def test_the_picture_shows_every_case_with_its_floor() -> None:
    figure = plot([worst_case(step_size=1e-3, delta=delta, initial_error=1.0) for delta in (0.5, 2.0, 8.0)])
    assert len(figure.axes[0].lines) == 6


@pytest.mark.parametrize("seed", range(3))
def test_batches_that_vary_pay_the_penalty_of_the_least_of_them(seed: int) -> None:
    sizes = np.random.default_rng(seed).integers(1800, 1980, 60).tolist()
    case = worst_case(step_size=2.5e-4, batch_size=sizes)
    alone = worst_case(step_size=2.5e-4, batch_size=min(sizes))
    assert (case.delta, case.stationary_error) == (alone.delta, alone.stationary_error)
    assert case.within_cap
    assert (case.errors >= case.stationary_error * (1 - 1e-12)).all()
    assert case.errors[-1] >= 0.1 * (1 + case.delta) * case.step_size * case.second_moment / case.strong_convexity


def test_the_recurrence_of_batches_that_vary_is_that_of_projected_mini_batch_sgd() -> None:
    sizes = [300, 900] * 15
    case = worst_case(step_size=5e-4, batch_size=sizes, initial_error=0.01)
    assert len(case.errors) == 31
    distances, projected = simulate(case, runs=1000, seed=0)
    assert distances.mean() == pytest.approx(case.errors[-1], rel=0.03)  # as above: 0.6 % is one standard error
    assert projected == 0
    np.testing.assert_allclose(
        worst_case(step_size=5e-4, batch_size=[300] * 30, initial_error=0.01).errors,
        worst_case(step_size=5e-4, batch_size=300, iterations=30, initial_error=0.01).errors,
    )


def test_batches_that_are_not_one_for_each_iteration_are_refused() -> None:
    with pytest.raises(ValueError, match="one number for each iteration, at least one; got 2 for 3 iterations"):
        worst_case(step_size=1e-3, batch_size=[2, 3], iterations=3)
    with pytest.raises(TypeError, match=r"batch_size must be a whole number; got 2\.5"):
        worst_case(step_size=1e-3, batch_size=2.5)
    with pytest.raises(ValueError, match="the errors grow without bound"):
        worst_case(step_size=1e-3, batch_size=[1, 600])
