"""Remark 1: for generalised linear functions B_D(w) ≥ n·min‖x_i‖²/σ²_max(X) for all w; sharpened to n/σ²_max(X̂)."""

from __future__ import annotations

import numpy as np
import pytest

from theory.brute_force import batch_size_bound, normalised_infimum, random_matrix
from variegrad.theory import glm_bound, remark_1


def check_case(seed: int) -> None:
    generator = np.random.default_rng(seed)
    X = random_matrix(generator)
    found = glm_bound(X, centring=False)
    exact = normalised_infimum(X)
    # The oracle itself rounds.
    assert found.low * (1 - 1e-12) <= exact <= found.high * (1 + 1e-12)
    assert found.paper_bound <= found.bound * (1 + 1e-9)
    norms = np.linalg.norm(X, axis=1)
    assert found.paper_bound <= len(X) * norms.min() ** 2 / np.linalg.norm(X, 2) ** 2 * (1 + 1e-12)
    for _ in range(5):
        derivatives = generator.standard_normal(len(X))
        assert batch_size_bound(derivatives[:, None] * X) >= found.bound * (1 - 1e-12)
        other = generator.standard_normal(len(X))  # differences of derivatives are as arbitrary (Definition 6)
        assert batch_size_bound((derivatives - other)[:, None] * X) >= found.bound * (1 - 1e-12)
        several = generator.standard_normal((len(X), 3))  # softmax: g_i = p_i ⊗ x_i
        assert batch_size_bound((several[:, :, None] * X[:, None, :]).reshape(len(X), -1)) >= found.bound * (1 - 1e-12)


def test_no_gradient_of_a_glm_falls_below_the_bound() -> None:
    for seed in range(400):
        check_case(seed)


@pytest.mark.slow
def test_no_gradient_of_a_glm_falls_below_the_bound_in_ten_thousand_cases() -> None:
    for seed in range(1000, 11000):
        check_case(seed)


def test_the_bound_is_attained() -> None:
    generator = np.random.default_rng(1)
    for _ in range(50):
        X = random_matrix(generator)
        norms = np.linalg.norm(X, axis=1)
        unit = np.divide(X, norms[:, None], out=np.zeros_like(X), where=norms[:, None] > 0)
        b = np.linalg.svd(unit)[0][:, 0]
        derivatives = np.divide(b, norms, out=np.zeros_like(b), where=norms > 0)
        worst = batch_size_bound(derivatives[:, None] * X)
        assert glm_bound(X, centring=False).bound == pytest.approx(worst, rel=1e-9)


def test_the_paper_s_number_can_be_vacuous_where_the_sharper_one_is_not() -> None:
    generator = np.random.default_rng(3)
    X = generator.standard_normal((200, 20)) * np.exp(generator.standard_normal((200, 1)))
    assert remark_1(X) < 1 < 8 < glm_bound(X).bound <= 20


def test_the_bound_lies_between_one_and_the_rank() -> None:
    generator = np.random.default_rng(4)
    for _ in range(50):
        X = np.abs(generator.standard_normal((30, 8))) + 0.01
        assert 1 <= glm_bound(X, centring=False).bound <= np.linalg.matrix_rank(X)


def test_an_l2_term_inside_the_loss_voids_the_bound() -> None:
    generator = np.random.default_rng(5)
    X = generator.standard_normal((100, 40))
    weights = 10 * generator.standard_normal(40)
    slopes = -1 / (1 + np.exp(X @ weights))
    assert batch_size_bound(slopes[:, None] * X) >= glm_bound(X).bound
    assert batch_size_bound(slopes[:, None] * X + weights) < glm_bound(X).bound


LINK_DERIVATIVES = {
    "logistic": lambda z: -1 / (1 + np.exp(z)),
    "least squares": lambda z: z - 1,
    "squared hinge": lambda z: -2 * np.maximum(0, 1 - z),
    "hinge (a subgradient)": lambda z: -(z < 1).astype(float),
}


@pytest.mark.parametrize("loss", LINK_DERIVATIVES)
def test_example_1_the_bound_holds_for_the_differential_bound_of_every_pair_of_weights(loss: str) -> None:
    generator = np.random.default_rng(6)
    for _ in range(100):
        X = random_matrix(generator)
        w, other = 3 * generator.standard_normal((2, X.shape[1]))
        change = LINK_DERIVATIVES[loss](X @ w) - LINK_DERIVATIVES[loss](X @ other)
        differences = change[:, None] * X
        if differences.sum(axis=0).any():
            assert batch_size_bound(differences) >= glm_bound(X).bound * (1 - 1e-9)
            assert batch_size_bound(differences) >= remark_1(X) * (1 - 1e-9)
