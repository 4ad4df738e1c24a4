"""Certificates: the interval contains σ²_max, whichever of the three ways found it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array, csr_matrix, random

from theory.brute_force import normalised_infimum
from variegrad.theory import glm_bound, remark_1
from variegrad.theory.rows import rows_of
from variegrad.theory.spectral import WeightedGram, collatz_wielandt, gram, lanczos, lanczos_steps


def test_collatz_wielandt_bounds_from_above_at_every_step() -> None:
    X = np.random.default_rng(0).random((80, 30)) ** 4
    exact = np.linalg.norm(X, 2) ** 2
    matrix = WeightedGram(rows_of(X), np.ones(80), "")
    widths = []
    for iterations in (1, 2, 4, 16):
        found = collatz_wielandt(matrix, summands=110, tolerance=1e-14, iterations=iterations)
        assert found.low <= exact <= found.high
        widths.append(found.high / found.low - 1)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 1e-9


def test_collatz_wielandt_survives_columns_apart() -> None:
    X = np.zeros((40, 20))
    X[:30, :5], X[30:, 5:12] = 1.0, np.random.default_rng(1).random((10, 7))
    found = collatz_wielandt(WeightedGram(rows_of(X), np.ones(40), ""), summands=60, tolerance=1e-6, iterations=400)
    assert found.low <= np.linalg.norm(X, 2) ** 2 <= found.high <= 1.0001 * found.low


def test_collatz_wielandt_heeds_a_single_heavy_column() -> None:
    X = np.zeros((49, 20))
    X[:30, 0] = 1.0
    X[np.arange(30, 49), np.arange(1, 20)] = 1.0
    found = collatz_wielandt(WeightedGram(rows_of(X), np.ones(49), ""), summands=60, tolerance=1e-9, iterations=50)
    assert found.low <= 30 <= found.high <= 30.0001


def test_lanczos_bounds_from_above_except_with_the_stated_probability() -> None:
    # A lonely top of the spectrum, which a random start may miss.
    spectrum = np.concatenate([[1.0], np.linspace(0, 0.9, 199)])
    failures = 0
    for seed in range(300):
        found = lanczos(
            lambda v: spectrum * v, side=200, tolerance=1.0, failure_probability=0.05, seed=seed, basis_bytes=1 << 20
        )
        assert found.low <= 1
        failures += found.high < 1
    # 300 starts at 5 %: 15 expected at worst, standard deviation 3.8; 30 would be four of them too many.
    assert failures <= 30


def test_lanczos_reaches_its_tolerance_in_the_steps_it_announces() -> None:
    spectrum = np.linspace(0, 1, 5000)
    found = lanczos(
        lambda v: spectrum * v, side=5000, tolerance=0.01, failure_probability=1e-9, seed=0, basis_bytes=1 << 28
    )
    assert found.iterations == lanczos_steps(5000, 0.01, 1e-9)
    assert found.low <= 1 <= found.high <= 1.0101 * found.low
    short = lanczos(lambda v: spectrum * v, side=5000, tolerance=0.01, failure_probability=1e-9, seed=0, basis_bytes=1)
    assert short.high > found.high


def test_the_gram_matrix_serves_the_smaller_side() -> None:
    X = np.random.default_rng(2).standard_normal((7, 40))
    weights = np.arange(7.0)
    for side in (X, csr_matrix(X)):
        found = gram(WeightedGram(rows_of(side), weights, ""))
        exact = np.linalg.norm(np.sqrt(weights)[:, None] * X, 2) ** 2
        assert found.low <= exact <= found.high <= found.low * (1 + 1e-9)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("n", [1500, 4000])
def test_a_large_sparse_matrix_gets_an_interval_within_one_per_cent(signed: bool, n: int) -> None:
    X = random(n, 1200, density=0.01, random_state=3).tocsr()
    if signed:
        X.data -= 0.5
    found = glm_bound(X)
    exact = normalised_infimum(X.toarray())
    assert found.low <= exact <= found.high <= 1.0101 * found.low
    assert found.failure_probability == (1e-9 if signed else 0)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_the_same_matrix_in_every_container_gives_the_same_bound() -> None:
    X = np.random.default_rng(4).standard_normal((50, 6)) * (np.random.default_rng(5).random((50, 6)) < 0.5)
    expected = glm_bound(X).bound
    tensor = torch.from_numpy(X)
    containers = [X.astype(np.float32), X.tolist(), csr_matrix(X), csr_matrix(X).tocsc(), coo_array(X), tensor]
    containers += [tensor.to_sparse(), tensor.to_sparse_csr(), tensor.float().requires_grad_()]
    for container in containers:
        assert glm_bound(container).bound == pytest.approx(expected, rel=1e-6)
    assert glm_bound((tensor > 0).int()).bound == pytest.approx(glm_bound(tensor > 0).bound)
    assert glm_bound(tensor.bfloat16()).bound == pytest.approx(expected, rel=0.02)


def test_neither_matrix_nor_warnings_are_touched() -> None:
    X = csr_matrix(np.eye(4)[[0, 1, 1, 3]])
    before = X.copy()
    glm_bound(X)
    assert (before != X).nnz == 0


def test_an_intercept_and_uncentred_columns_are_pointed_out() -> None:
    generator = np.random.default_rng(6)
    X = np.hstack([generator.standard_normal((300, 20)) + 2, np.ones((300, 1))])
    found = glm_bound(X)
    assert "1 column(s) are constant, the first is column 20" in found.warnings[0]
    assert "would raise the bound from 1.2" in found.warnings[1]
    centred = glm_bound(X - X.mean(axis=0))
    assert found.centred_estimate == pytest.approx(centred.bound, rel=0.05)
    assert centred.warnings == ()
    assert "regulariser" in str(found)


def test_the_scale_of_a_row_does_not_matter_unless_its_square_leaves_float64() -> None:
    X = np.random.default_rng(7).standard_normal((20, 4))
    scales = np.exp(np.linspace(-100, 100, 20))[:, None]
    assert glm_bound(X * scales).bound == pytest.approx(glm_bound(X).bound)
    for extreme in (1e200, 1e-200):
        with pytest.raises(ValueError, match=r"row 0 .* leaves the range of float64"):
            glm_bound(np.array([[extreme, 0.0], [0.0, 1.0]]))


def test_equal_norms_spare_the_second_search() -> None:
    X = np.abs(np.random.default_rng(8).standard_normal((400, 300)))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    found = glm_bound(X, centring=False)
    assert remark_1(X) == pytest.approx(found.bound, rel=1e-5)
    assert remark_1(X) <= found.bound


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"two dimensions, one row per example; got shape \(3,\)"):
        glm_bound(np.ones(3))
    with pytest.raises(TypeError, match="must hold real numbers; got dtype complex128"):
        glm_bound(np.eye(2) * 1j)
    with pytest.raises(ValueError, match="at least one row and one column; got 0 × 3"):
        glm_bound(np.ones((0, 3)))
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        glm_bound(csr_matrix([[1.0, np.inf]]))
    with pytest.raises(ValueError, match="tolerance must lie between 0 and 1"):
        glm_bound(np.eye(2), tolerance=0.0)
    with pytest.raises(ValueError, match="failure_probability must lie between 0 and 1"):
        glm_bound(np.eye(2), failure_probability=2.0)
