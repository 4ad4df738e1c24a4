"""Least squares: the generalised eigenvalue is the infimum of B_D(w, w′), at least the bound from the rows alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import eigh
from scipy.sparse import csr_matrix

from theory.brute_force import batch_size_bound
from variegrad.theory import glm_bound, least_squares_bound


@pytest.mark.parametrize("seed", range(20))
def test_no_pair_falls_below_the_infimum_and_one_attains_it(seed: int) -> None:
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((int(generator.integers(2, 15)), int(generator.integers(1, 6))))
    found = least_squares_bound(X if seed % 2 else csr_matrix(X))
    for u in generator.standard_normal((50, X.shape[1])):
        assert batch_size_bound(X * (X @ u)[:, None]) >= found.bound * (1 - 1e-10)
    assert batch_size_bound(X * (X @ found.direction)[:, None]) == pytest.approx(found.bound, rel=1e-9)
    assert found.bound >= glm_bound(X, centring=False).bound * (1 - 1e-10)


def test_it_is_the_smallest_eigenvalue_of_the_pencil() -> None:
    X = np.random.default_rng(3).standard_normal((30, 4)) * np.arange(1, 31)[:, None]
    gram = X.T @ X
    pencil = eigh(X.T @ (np.square(X).sum(axis=1)[:, None] * X), gram @ gram, eigvals_only=True)
    assert least_squares_bound(X).bound == pytest.approx(30 * pencil[0], rel=1e-9)


def test_a_rank_deficient_matrix_is_resolved() -> None:
    X = np.random.default_rng(4).standard_normal((20, 3)) @ np.random.default_rng(5).standard_normal((3, 6))
    found = least_squares_bound(X)
    assert found.rank == 3
    assert batch_size_bound(X * (X @ found.direction)[:, None]) == pytest.approx(found.bound, rel=1e-8)
    assert "attained" in str(found)


def test_too_many_columns_and_zeros_are_refused() -> None:
    with pytest.raises(ValueError, match="d at most 4096; X has 5000 columns"):
        least_squares_bound(csr_matrix((3, 5000)))
    with pytest.raises(ValueError, match="only zeros"):
        least_squares_bound(np.zeros((3, 2)))
