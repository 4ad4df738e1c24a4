"""Random features: the explicit constants hold in simulation, and depend on v/σ²."""

from __future__ import annotations

import numpy as np
import pytest

from variegrad.theory import (
    gaussian_bound,
    gaussian_failure_probability,
    gaussian_limit,
    glm_bound,
    remark_1,
    resampling_failure_probability,
    sub_gaussian_bound,
    sub_gaussian_failure_probability,
)


def test_gaussian_data_meet_their_bound() -> None:
    promised = gaussian_bound(examples=500, dimension=80, failure_probability=0.05)
    assert promised > 1
    for seed in range(10):
        X = np.random.default_rng(seed).standard_normal((500, 80))
        assert remark_1(X) >= promised


def test_the_known_value() -> None:
    assert gaussian_bound(examples=2000, dimension=200, failure_probability=0.05) == pytest.approx(55.4, abs=0.05)


def test_the_failure_probability_inverts_the_bound() -> None:
    bound = gaussian_bound(examples=2000, dimension=200, failure_probability=1e-4)
    assert gaussian_failure_probability(examples=2000, dimension=200, bound=bound) == pytest.approx(1e-4, rel=1e-6)
    assert gaussian_failure_probability(examples=2000, dimension=200, bound=200.0) == 1
    assert gaussian_failure_probability(examples=100, dimension=10**7, bound=2.0) < 1e-300


def test_sub_gaussian_data_meet_their_bound_and_its_constant_depends_on_the_variance() -> None:
    promised = sub_gaussian_bound(
        examples=1000, dimension=1000, variance=1.0, variance_proxy=1.0, failure_probability=0.05
    )
    assert promised > 1
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(1000, 1000))
    assert remark_1(signs) >= promised
    sparse = {"examples": 1000, "dimension": 1000, "failure_probability": 0.05}
    assert sub_gaussian_bound(variance=0.01, variance_proxy=1.0, **sparse) == 0


def test_sparse_signs_defeat_remark_1_but_not_its_row_normalised_form() -> None:
    generator = np.random.default_rng(1)
    X = generator.choice([-1.0, 1.0], size=(2000, 200)) * (generator.random((2000, 200)) < 0.01)
    assert remark_1(X) == 0
    assert glm_bound(X).bound > 80


@pytest.mark.parametrize("factor", [1, 4])
def test_normalised_gaussian_rows_approach_their_limit(factor: int) -> None:
    X = np.random.default_rng(2).standard_normal((250 * factor, 250))
    assert glm_bound(X).bound == pytest.approx(gaussian_limit(examples=250 * factor, dimension=250), rel=0.06)


def test_resampling_shows_no_more_than_three_in_r() -> None:
    assert resampling_failure_probability(data_sets=100) == pytest.approx(1 - 0.05**0.01)
    assert resampling_failure_probability(data_sets=10_000) == pytest.approx(3 / 10_000, rel=0.01)
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1"):
        resampling_failure_probability(data_sets=3, confidence=1.0)


def test_numbers_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="at least 1; got 0 × 3"):
        gaussian_bound(examples=0, dimension=3, failure_probability=0.1)
    with pytest.raises(ValueError, match=r"failure_probability must lie between 0 and 1; got 1\.5"):
        gaussian_bound(examples=3, dimension=3, failure_probability=1.5)
    with pytest.raises(ValueError, match="variance_proxy must be at least the variance"):
        sub_gaussian_bound(examples=3, dimension=3, variance=2.0, variance_proxy=1.0, failure_probability=0.1)


@pytest.mark.parametrize("eta", [1e-100, 1e-9, 1e-3, 0.5])
def test_the_sub_gaussian_failure_probability_inverts_its_bound(eta: float) -> None:
    numbers = {"examples": 2000, "dimension": 20_000, "variance": 0.9, "variance_proxy": 1.0}
    bound = sub_gaussian_bound(**numbers, failure_probability=eta)
    assert bound > 0
    assert sub_gaussian_failure_probability(**numbers, bound=bound) == pytest.approx(eta, rel=1e-6)
    assert sub_gaussian_failure_probability(**numbers, bound=1e6) == 1


def test_the_sub_gaussian_bound_says_nothing_at_ordinary_dimensions() -> None:
    numbers = {"examples": 10_000, "variance": 1.0, "variance_proxy": 1.0, "failure_probability": 0.05}
    assert sub_gaussian_bound(dimension=412, **numbers) == 0
    assert sub_gaussian_bound(dimension=413, **numbers) > 0


def test_former_names_of_arguments_work_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match=r"gaussian_limit\(rows=\) is now gaussian_limit\(examples=\)"):
        assert gaussian_limit(rows=100, dimension=25) == gaussian_limit(examples=100, dimension=25)
    with pytest.raises(TypeError, match="give examples alone; rows is its former name"):
        gaussian_limit(rows=100, examples=100, dimension=25)
