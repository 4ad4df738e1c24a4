"""Definitions 4-6: Δ_D = Σ‖g‖²/‖Σg‖² and B_D = n·Δ_D, of gradients or of their differences; 1 ≤ B_D."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from theory.brute_force import batch_size_bound
from variegrad.moments import GradientMoments


def test_the_moments_give_the_definition() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        g = generator.standard_normal(generator.integers(1, 8, size=2))
        found = GradientMoments.from_gradients(torch.from_numpy(g)).diversity
        assert found.batch_size_bound == pytest.approx(batch_size_bound(g))
        assert found.diversity == pytest.approx(batch_size_bound(g) / len(g))
        assert found.batch_size_bound >= 1 - 1e-12


def test_the_second_form_of_the_definition_is_the_first() -> None:
    g = np.random.default_rng(1).standard_normal((6, 4))
    parts = sum(float(a @ a) for a in g)
    cross = sum(float(g[i] @ g[j]) for i in range(6) for j in range(6) if i != j)
    assert parts / (parts + cross) == pytest.approx(batch_size_bound(g) / 6)


def test_equal_gradients_have_bound_one_and_orthogonal_ones_have_bound_n() -> None:
    assert batch_size_bound(np.ones((7, 3))) == pytest.approx(1)
    assert batch_size_bound(np.eye(7)) == pytest.approx(7)


def test_differences_of_gradients_obey_the_same_bounds() -> None:
    generator = np.random.default_rng(2)
    differences = generator.standard_normal((6, 4)) - generator.standard_normal((6, 4))
    found = GradientMoments.from_gradients(torch.from_numpy(differences)).diversity.batch_size_bound
    assert found == pytest.approx(batch_size_bound(differences))
    assert found >= 1
