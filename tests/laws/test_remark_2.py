"""Remark 2: with sparse conflicts B_D(w) ≥ n/(ρ+1) for all w; sharpened to n over the largest column count."""

from __future__ import annotations

import numpy as np
import pytest

from theory.brute_force import batch_size_bound, conflict_degree, random_matrix
from variegrad import theory


def check_case(seed: int) -> None:
    generator = np.random.default_rng(seed)
    X = random_matrix(generator)
    found = theory.sparse_bound(X, paper_bound=True)
    degree = conflict_degree(X)
    assert found.conflict_degree == (degree, degree)
    assert found.paper_bound == len(X) / (degree + 1) <= found.bound
    assert found.bound == len(X) / np.count_nonzero(X, axis=0).max()
    for _ in range(5):
        gradients = generator.standard_normal(X.shape) * (X != 0)  # any gradient within the supports
        if gradients.sum(axis=0).any():
            assert batch_size_bound(gradients) >= found.bound * (1 - 1e-12)


def test_no_gradient_within_the_supports_falls_below_the_bound() -> None:
    for seed in range(400):
        check_case(seed)


@pytest.mark.slow
def test_no_gradient_within_the_supports_falls_below_the_bound_in_ten_thousand_cases() -> None:
    for seed in range(1000, 11000):
        check_case(seed)


@pytest.mark.parametrize("seed", range(30))
def test_the_search_over_many_rows_finds_the_degree_of_the_graph(seed: int) -> None:
    # More rows than one pass compares, of uneven length, so that the search must prune, and be right in doing so.
    generator = np.random.default_rng(seed)
    share = generator.choice([0.3, 1.0, 3.0]) / np.arange(1, 61)
    X = (generator.random((400, 60)) < share * generator.lognormal(-1, 0.7, (400, 1))).astype(float)
    X[generator.integers(400)] = 0
    X[0, 0] = 1
    assert theory.conflict_degree(X) == conflict_degree(X)


def test_the_search_does_not_give_up_on_a_row_that_looks_poor() -> None:
    # 256 rows (four passes of 64) repeat each other and look best; one row meets four groups of 64, one more than they.
    X = np.zeros((513, 14))
    X[:256, :10] = 1
    X[np.arange(256, 512), 10 + np.arange(256) % 4] = 1
    X[512, 10:] = 1
    assert theory.conflict_degree(X) == conflict_degree(X) == 256


def test_the_column_count_is_attained() -> None:
    generator = np.random.default_rng(1)
    for _ in range(50):
        X = random_matrix(generator)
        column = theory.sparse_bound(X).column
        gradients = np.zeros_like(X)
        gradients[X[:, column] != 0, column] = 1.0
        assert theory.sparse_bound(X).bound == pytest.approx(batch_size_bound(gradients), rel=1e-12)


def test_the_three_bounds_are_ordered_as_a_chain() -> None:
    generator = np.random.default_rng(2)
    for _ in range(100):
        X = random_matrix(generator)
        spectral = theory.glm_bound(X, centring=False).high
        sparse = theory.sparse_bound(X, paper_bound=True)
        assert spectral * (1 + 1e-9) >= sparse.bound >= sparse.paper_bound


def test_example_2_the_bound_holds_for_the_differential_bound_of_every_pair_of_weights() -> None:
    generator = np.random.default_rng(7)
    for _ in range(200):
        support = random_matrix(generator) != 0
        quadratic = np.where(support[:, :, None] & support[:, None, :], generator.standard_normal(
            (*support.shape, support.shape[1])), 0.0)  # fmt: skip
        # ∇f_i(w) = A_i·w + tanh(w) on the coordinates of example i, which need not be a linear model's.
        w, other = generator.standard_normal((2, support.shape[1]))
        differences = quadratic @ (w - other) + support * (np.tanh(w) - np.tanh(other))
        if differences.sum(axis=0).any():
            found = theory.sparse_bound(support.astype(float), paper_bound=True)
            assert batch_size_bound(differences) >= found.bound * (1 - 1e-9)
            assert found.bound >= found.paper_bound
