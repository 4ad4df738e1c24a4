"""Theorem 10 (strongly convex): as Theorem 9 with β+λ, B ≤ 1/(2γλ), and ε_gen ≤ (4L²/(λn))(1−η) + 2γL²Tη."""

from __future__ import annotations

import numpy as np
import pytest

from variegrad.theory import stability_strongly_convex, threshold

NUMBERS = {"smoothness": 2.0, "strong_convexity": 0.01, "lipschitz": 3.0, "updates": 500, "examples": 101}


def test_a_batch_of_one_recovers_the_serial_bound() -> None:
    found = stability_strongly_convex(batch_size=1, step_size=0.1, **NUMBERS)
    assert found.error == found.serial_error == pytest.approx(4 * 9 / (0.01 * 101))


def test_the_threshold_is_theorem_9_s_with_the_sum_of_both_curvatures() -> None:
    found = stability_strongly_convex(batch_size=30, step_size=0.1, bound=3.5, **NUMBERS)
    assert found.threshold == threshold(batch_size=30, step_size=0.1, smoothness=2.01, examples=101)
    assert found.threshold == pytest.approx(29 / (2 / 0.201 - 1.01))
    assert found.failure_probability == 0
    missed = stability_strongly_convex(batch_size=30, step_size=0.1, bound=3.2, **NUMBERS)
    assert missed.error == pytest.approx(2 * 0.1 * 9 * 500)


def test_the_cap_on_the_batch_is_required() -> None:
    with pytest.raises(ValueError, match=r"requires batch_size ≤ 1/\(2γλ\) = 500; got 501"):
        stability_strongly_convex(batch_size=501, step_size=0.1, **NUMBERS)
    assert stability_strongly_convex(batch_size=2, step_size=0.1, bound=1e6, **NUMBERS).largest_batch_size == 500


def test_under_the_threshold_a_strongly_convex_step_contracts_by_its_rate() -> None:
    # f_i = ½(x_iᵀw)² + (λ/2)‖w‖²: E‖u⁺‖² ≤ (1 − 2γBβλ/(β+λ))‖u‖² once 1+(B−1)/B_D ≤ 2/(γ(β+λ)), drawn from all n.
    generator = np.random.default_rng(0)
    X = generator.standard_normal((40, 5))
    curvature = 0.3
    beta = float(np.square(X).sum(axis=1).max()) + curvature
    for _ in range(300):
        u = generator.standard_normal(5)
        steps = X * (X @ u)[:, None] + curvature * u
        bound = 40 * np.square(steps).sum() / np.square(steps.sum(axis=0)).sum()
        batch = 3
        step = 2 / ((beta + curvature) * (1 + (batch - 1) / bound))
        mean = steps.mean(axis=0)
        variance = np.square(steps).sum() / 40 - mean @ mean
        moved = np.square(u - step * batch * mean).sum() + batch * step**2 * variance
        assert moved <= (1 - 2 * step * batch * beta * curvature / (beta + curvature)) * (u @ u) + 1e-12
