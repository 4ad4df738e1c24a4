"""Constants on a real problem: certificates are bounds, estimates find what they estimate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from variegrad.theory import constants


def features(n: int = 30, d: int = 4) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, d))


def squared(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return (model(x)[:, 0] - y).square() / 2


def linear(d: int = 4) -> nn.Module:
    model = nn.Linear(d, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    return model


def test_glm_smoothness_bounds_every_hessian_of_logistic_regression() -> None:
    X = features()
    found = constants.glm_smoothness(csr_matrix(X), curvature=0.25, l2=0.1)
    assert found.certified
    for w in 3 * np.random.default_rng(1).standard_normal((50, 4)):
        p = 1 / (1 + np.exp(-X @ w))
        assert np.linalg.norm(X.T @ ((p * (1 - p))[:, None] * X) / 30 + 0.1 * np.eye(4), 2) <= found.value
    at_zero = np.linalg.norm(X.T @ X / 30 / 4 + 0.1 * np.eye(4), 2)
    assert at_zero <= found.value <= 1.01 * at_zero
    assert constants.glm_smoothness(np.zeros((2, 2)), curvature=1.0, l2=0.5).value == 0.5


def test_glm_second_moment_bounds_the_gradients_of_logistic_regression() -> None:
    X = features()
    found = constants.glm_second_moment(X, slope=1.0)
    for w in 30 * np.random.default_rng(1).standard_normal((20, 4)):
        assert np.mean(np.square(X).sum(axis=1) / (1 + np.exp(-X @ w)) ** 2) <= found.value
    assert found.value == pytest.approx(np.square(X).sum() / 30)


def test_least_squares_obeys_polyak_lojasiewicz_with_its_constant_even_without_full_rank() -> None:
    X = features(5, 9)
    found = constants.least_squares_pl(X).value
    y = np.random.default_rng(2).standard_normal(5)
    for w in np.random.default_rng(3).standard_normal((30, 9)):
        residual = X @ w - y
        assert np.square(X.T @ residual / 5).sum() / 2 >= found * np.square(residual).sum() / 10 * (1 - 1e-9)
    assert found == pytest.approx(np.linalg.svd(X)[1][-1] ** 2 / 5)


def test_smoothness_of_a_model_is_the_top_eigenvalue_of_its_hessian() -> None:
    X, y = torch.from_numpy(features()), torch.zeros(30, dtype=torch.float64)
    found = constants.smoothness(linear(), squared, [(X[:10], y[:10]), (X[10:], y[10:])])
    assert found.value == pytest.approx(np.linalg.norm(features(), 2) ** 2 / 30)
    assert not found.certified
    assert "estimate" in str(found)


def test_smoothness_copes_with_unused_parameters_and_with_linear_losses() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 1), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    X = torch.from_numpy(features()).float()
    flat = constants.smoothness(Partly(), lambda model, x: model(x)[:, 0], [X])
    assert flat.value == 0
    curved = constants.smoothness(Partly(), lambda model, x: model(x)[:, 0].square(), [X])
    ones = np.hstack([features(), np.ones((30, 1))])
    assert curved.value == pytest.approx(2 * np.linalg.norm(ones, 2) ** 2 / 30, rel=1e-5)


def test_points_of_a_run_give_estimates() -> None:
    # F = w²: ½(2w)² = 2w² = 2·F, so μ = 2.
    points = np.array([3.0, 1.0, 0.5])
    assert constants.pl_along(list(4 * points**2), list(points**2), minimum=0.0).value == pytest.approx(2)
    assert constants.pl_along([0.0], [1.0], minimum=1.0).value == math.inf
    assert constants.second_moment_along([1.0, 4.0, 2.0], margin=1.5).value == 6
    assert constants.initial_gap(2.3).value == 2.3


def test_distance_to_the_minimum_is_bounded_by_strong_convexity() -> None:
    curvatures, w = np.array([0.5, 2.0, 7.0]), np.array([1.0, -2.0, 0.3])
    found = constants.sq_distance(
        strong_convexity=0.5,
        gap=float((curvatures * w**2).sum() / 2),
        sq_gradient_norm=float(np.square(curvatures * w).sum()),
    )
    assert found.value >= w @ w
    assert found.certified


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: constants.pl_along([1.0], [], minimum=0.0), "one value for each gradient; got 0 and 1"),
        (lambda: constants.second_moment_along([]), "at least one point"),
        (lambda: constants.initial_gap(-1.0), "at least the lower bound of the loss; got -1.0 < 0.0"),
        (lambda: constants.least_squares_pl(np.zeros((2, 2))), "holds only zeros"),
        (lambda: constants.least_squares_pl(csr_matrix((5000, 5000))), "4096; got 5000 × 5000"),
        (lambda: constants.smoothness(linear(), squared, []), "at least one example; got none"),
        (lambda: constants.glm_second_moment(features(), slope=0.0), "slope must be positive and finite; got 0"),
    ],
)
def test_wrong_numbers_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("seed", range(3))
def test_smoothness_of_a_network_is_the_largest_eigenvalue_of_its_hessian_in_size(seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 1)).double()
    X, y = torch.from_numpy(features()), torch.randn(30, dtype=torch.float64)
    weights = dict(model.named_parameters())

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([w.numel() for w in weights.values()])
        taken = {name: part.view_as(w) for (name, w), part in zip(weights.items(), parts, strict=True)}
        return (torch.func.functional_call(model, taken, (X,))[:, 0] - y).square().mean()

    hessian = torch.autograd.functional.hessian(loss, torch.cat([w.detach().ravel() for w in weights.values()]))
    exact = float(torch.linalg.eigvalsh(hessian).abs().max())
    found = constants.smoothness(model, lambda m, batch: (m(batch[0])[:, 0] - batch[1]).square(), [(X, y)], steps=10)
    assert found.value == pytest.approx(exact, rel=3e-3)  # a residual of 3 %; the error is of second order
    assert found.value <= exact * (1 + 1e-9)
    assert "Hessian-vector products" in found.basis


def test_smoothness_of_a_flat_loss_of_many_parameters_is_zero() -> None:
    X = torch.from_numpy(features()).float()
    assert constants.smoothness(nn.Linear(4, 9), lambda model, x: model(x).sum(dim=1), [X], steps=5).value == 0
