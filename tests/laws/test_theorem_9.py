"""Theorem 9 (convex): with τ(B) = (B−1)/(2/(γβ) − 1 − 1/(n−1)), ε_gen ≤ 2γL²(T/n)(1−η) + 2γL²Tη."""

from __future__ import annotations

import math

import numpy as np
import pytest

from laws.least_squares_twins import expected_growth
from theory.brute_force import batch_size_bound
from variegrad.theory import (
    glm_bound,
    largest_step_size,
    least_squares_bound,
    stability_convex,
    stability_strongly_convex,
    threshold,
)

NUMBERS = {"smoothness": 2.0, "lipschitz": 3.0, "updates": 500, "examples": 101}


def test_a_batch_of_one_recovers_the_serial_bound() -> None:
    found = stability_convex(batch_size=1, step_size=0.1, **NUMBERS)
    assert found.threshold == 0
    assert found.failure_probability == 0
    assert found.error == found.serial_error == pytest.approx(2 * 0.1 * 9 * 500 / 101)


@pytest.mark.parametrize(("delta", "bound"), [(0.5, 100), (2.0, 30), (1.0, 64)])
def test_the_paper_s_corollary_meets_its_threshold_exactly(delta: float, bound: int) -> None:
    batch, step = round(1 + delta * bound), 2 / (2.0 * (1 + delta + 1 / 100))
    assert threshold(batch_size=batch, step_size=step, smoothness=2.0, examples=101) == pytest.approx(bound)
    found = stability_convex(batch_size=batch, step_size=step, bound=bound * (1 + 1e-9), **NUMBERS)
    assert found.failure_probability == 0
    assert found.error == found.serial_error
    assert found.largest_batch_size == batch


def test_a_missed_threshold_costs_the_factor_n() -> None:
    found = stability_convex(batch_size=50, step_size=0.5, bound=49.0, **NUMBERS)
    assert found.threshold == pytest.approx(49 / 0.99)
    assert found.failure_probability == 1
    assert found.error == pytest.approx(101 * found.serial_error)
    mixed = stability_convex(batch_size=50, step_size=0.5, failure_probability=0.25, **NUMBERS)
    assert mixed.error == pytest.approx(0.75 * mixed.serial_error + 0.25 * 2 * 0.5 * 9 * 500)


def test_no_diversity_suffices_where_the_denominator_is_not_positive() -> None:
    found = stability_convex(batch_size=2, step_size=0.9999, bound=1e12, **NUMBERS)
    assert found.threshold == math.inf
    assert found.failure_probability == 1
    assert "serial SGD's own guarantee" in stability_convex(batch_size=1, step_size=1.1, **NUMBERS).warnings[0]


def test_under_the_leave_one_out_threshold_no_step_of_least_squares_expands() -> None:
    generator = np.random.default_rng(3)
    X = generator.standard_normal((40, 5))
    beta = float(np.square(X).sum(axis=1).max())
    certificate = glm_bound(X).leave_one_out
    for step in (0.2 / beta, 1 / beta, 1.6 / beta):
        numbers = {**NUMBERS, "smoothness": beta, "examples": 40}
        batch = stability_convex(batch_size=2, step_size=step, leave_one_out=certificate, **numbers).largest_batch_size
        for changed in range(40):
            for u in [*generator.standard_normal((10, 5)), least_squares_bound(X).direction]:
                assert expected_growth(X, u, changed, step_size=step, batch_size=batch) <= 1 + 1e-12
        # Not an empty statement: a batch a dozen times larger expands somewhere.
        worst = least_squares_bound(X).direction
        assert expected_growth(X, worst, 0, step_size=step, batch_size=12 * batch + 12) > 1


def test_the_step_with_one_over_n_minus_one_fails_for_single_examples_but_not_on_average() -> None:
    generator = np.random.default_rng(4)
    fails = 0
    for _ in range(2000):
        differences = generator.standard_normal((6, 3)) + 0.5
        bound, batch = batch_size_bound(differences), 4
        if bound < batch or bound > 6:
            continue
        total, square = differences.sum(axis=0), np.square(differences).sum()
        numerators = [np.square(total - d).sum() for d in differences]
        denominators = [5 * (square - d @ d) for d in differences]
        limit = (batch - 1) / bound + 1 / 5
        fails += any((batch - 1) * a / b > limit for a, b in zip(numerators, denominators, strict=True))
        assert (batch - 1) * sum(numerators) / sum(denominators) <= limit + 1e-12
    assert fails > 0


def test_two_sources_of_eta_are_refused() -> None:
    with pytest.raises(ValueError, match="at most one of bound, leave_one_out and failure_probability"):
        stability_convex(batch_size=2, step_size=0.1, bound=3.0, leave_one_out=2.0, **NUMBERS)


@pytest.mark.parametrize(("delta", "bound"), [(0.5, 100), (2.0, 30), (1.0, 64)])
def test_the_largest_step_size_is_the_corollary_s_and_meets_the_threshold(delta: float, bound: int) -> None:
    batch = round(1 + delta * bound)
    step = largest_step_size(batch_size=batch, bound=bound, smoothness=2.0, examples=101)
    assert step == pytest.approx(2 / (2.0 * (1 + delta + 1 / 100)))
    assert threshold(batch_size=batch, step_size=step, smoothness=2.0, examples=101) == pytest.approx(bound)
    assert threshold(batch_size=batch, step_size=step * 1.001, smoothness=2.0, examples=101) > bound
    found = stability_convex(batch_size=batch, step_size=0.1, bound=bound, **NUMBERS)
    assert found.largest_step_size == step
    assert f"largest stable γ at this batch: {step:.6g}" in str(found)
    assert stability_convex(batch_size=batch, step_size=0.1, **NUMBERS).largest_step_size is None


def test_at_the_largest_step_size_without_any_one_example_no_step_of_least_squares_expands() -> None:
    generator = np.random.default_rng(5)
    X = generator.standard_normal((40, 5))
    beta, certificate = float(np.square(X).sum(axis=1).max()), glm_bound(X).leave_one_out
    for batch in (1, 2, 7, 30):
        step = largest_step_size(batch_size=batch, leave_one_out=certificate, smoothness=beta, examples=40)
        for changed in range(0, 40, 5):
            for u in [*generator.standard_normal((10, 5)), least_squares_bound(X).direction]:
                assert expected_growth(X, u, changed, step_size=step, batch_size=batch) <= 1 + 1e-12
    assert largest_step_size(batch_size=1, leave_one_out=3.0, smoothness=beta, examples=40) == 2 / beta


def test_theorem_10_also_caps_the_largest_step_size() -> None:
    capped = {"batch_size": 40, "smoothness": 2.0, "strong_convexity": 0.5, "examples": 101}
    assert largest_step_size(**capped, bound=1e6) == 1 / (2 * 0.5 * 40)
    free = {**capped, "strong_convexity": 1e-9}
    assert largest_step_size(**free, bound=30.0) == pytest.approx(2 / (2.0 * (1 + 39 / 30 + 1 / 100)))
    found = stability_strongly_convex(**capped, step_size=1e-3, lipschitz=1.0, updates=10, bound=30.0)
    assert found.largest_step_size == largest_step_size(**capped, bound=30.0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"bound": None}, ValueError, "exactly one of bound and leave_one_out; got None and None"),
        ({"leave_one_out": 2.0}, ValueError, "exactly one of bound and leave_one_out"),
        ({"bound": 0.5}, ValueError, r"bound must be at least 1; got 0\.5"),
        ({"batch_size": 2.5}, TypeError, r"batch_size must be a whole number; got 2\.5"),
        ({"examples": 1}, ValueError, "examples must be at least 2, as two data sets differ in one of n; got 1"),
    ],
)
def test_a_largest_step_size_of_nothing_is_refused(change: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        largest_step_size(**{"batch_size": 4, "bound": 9.0, "smoothness": 2.0, "examples": 101, **change})


def test_a_threshold_of_one_example_is_refused_by_its_own_number() -> None:
    with pytest.raises(ValueError, match="examples must be at least 2, as two data sets differ in one of n; got 1"):
        threshold(batch_size=2, step_size=0.1, smoothness=1.0, examples=1)
