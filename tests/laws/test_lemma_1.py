"""Lemma 1: E‖w⁺−w*‖² = ‖w−w*‖² − 2Bγ⟨∇F, w−w*⟩ + (1+δ)Bγ²M², δ = (B−1)/B_D(w); with projections, ≤."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from theory.brute_force import batch_size_bound
from variegrad.theory import expected_sq_distance


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("replacement", [True, False])
def test_the_identity_holds_for_the_average_over_all_draws(batch_size: int, replacement: bool) -> None:
    generator = np.random.default_rng(batch_size)
    gradients, w, target = generator.standard_normal((4, 3)), generator.standard_normal(3), generator.standard_normal(3)
    draws = product(range(4), repeat=batch_size) if replacement else permutations(range(4), batch_size)
    distances = [np.square(w - 0.3 * gradients[list(draw)].sum(axis=0) - target).sum() for draw in draws]
    found = expected_sq_distance(gradients, w, target, step_size=0.3, batch_size=batch_size, replacement=replacement)
    assert found == pytest.approx(np.mean(distances), rel=1e-12)


def test_the_formula_is_the_paper_s() -> None:
    generator = np.random.default_rng(7)
    gradients, w, target = generator.standard_normal((5, 3)), generator.standard_normal(3), generator.standard_normal(3)
    B, gamma, delta = 11, 0.05, 10 / batch_size_bound(gradients)
    mean, second_moment = gradients.mean(axis=0), np.square(gradients).sum() / 5
    printed = np.square(w - target).sum() - 2 * B * gamma * mean @ (w - target)
    printed += (1 + delta) * B * gamma**2 * second_moment
    assert expected_sq_distance(gradients, w, target, step_size=gamma, batch_size=B) == pytest.approx(
        printed, rel=1e-12
    )


def test_a_projection_onto_a_convex_set_around_the_target_only_helps() -> None:
    generator = np.random.default_rng(8)
    gradients, w = generator.standard_normal((4, 3)), np.array([0.9, 0.0, 0.0])
    projected = []
    for draw in product(range(4), repeat=2):
        after = w - 0.5 * gradients[list(draw)].sum(axis=0)
        projected.append(np.square(after / max(1.0, np.linalg.norm(after))).sum())
    assert np.mean(projected) <= expected_sq_distance(gradients, w, np.zeros(3), step_size=0.5, batch_size=2)


def test_gradients_that_cancel_leave_the_noise_of_a_serial_step() -> None:
    gradients = np.array([[1.0, 0.0], [-1.0, 0.0]])
    found = expected_sq_distance(gradients, np.zeros(2), np.zeros(2), step_size=0.1, batch_size=8)
    assert found == pytest.approx(8 * 0.01)


def test_more_different_examples_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match="at most n = 2 without replacement; got 3"):
        expected_sq_distance(np.eye(2), np.ones(2), np.ones(2), step_size=1.0, batch_size=3, replacement=False)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weights": np.ones(3)}, ValueError, r"shape \(n, d\).*got \(2, 2\), \(3,\) and \(2,\)"),
        ({"gradients": np.ones(2)}, ValueError, r"got \(2,\), \(2,\) and \(2,\)"),
        ({"gradients": np.ones((0, 2))}, ValueError, r"got \(0, 2\)"),
        ({"batch_size": 2.5}, TypeError, r"batch_size must be a whole number; got 2\.5"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change: dict, error: type, message: str) -> None:
    numbers = {"gradients": np.eye(2), "weights": np.ones(2), "target": np.ones(2), "batch_size": 2, **change}
    with pytest.raises(error, match=message):
        expected_sq_distance(**numbers, step_size=1.0)
