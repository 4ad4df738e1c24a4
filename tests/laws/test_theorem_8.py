"""Theorem 8 (informal): for B below B_D(w, w′) mini-batch runs drift apart no faster than serial ones may."""

from __future__ import annotations

import numpy as np

from laws.least_squares_twins import expected_growth
from variegrad.theory import least_squares_bound


def test_below_the_differential_bound_a_step_does_not_expand() -> None:
    generator = np.random.default_rng(0)
    X = generator.standard_normal((60, 6))
    beta = float(np.square(X).sum(axis=1).max())
    delta = 1.0
    for changed in range(60):
        bound = least_squares_bound(np.delete(X, changed, axis=0)).bound
        batch, step = int(1 + delta * bound), 2 / (beta * (1 + delta))
        for _ in range(20):
            u = generator.standard_normal(6)
            assert expected_growth(X, u, changed, step_size=step, batch_size=batch) <= 1 + 1e-12


def test_far_above_it_a_step_expands() -> None:
    generator = np.random.default_rng(1)
    X = generator.standard_normal((60, 6))
    beta = float(np.square(X).sum(axis=1).max())
    found = least_squares_bound(X)
    batch = int(1 + 40 * found.bound)
    assert expected_growth(X, found.direction, 0, step_size=1 / beta, batch_size=batch) > 1
