from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import t as student

from estimate.populations import SIX, mean_product, mean_sq_norm, population, with_replacement, without_replacement
from variegrad.estimators.coherence import (
    Coherence,
    coherence_from_gram,
    coherence_from_norms,
    coherence_limits,
    inverse_bound,
    trace_of_squared_covariance,
)


def norms_and_products(gradients):
    return gradients.square().sum(1), gradients @ gradients.sum(0)


def test_the_golden_example_has_its_coherence_jackknife_interval_and_bound() -> None:
    a, c = norms_and_products(SIX)
    assert (float(a.sum()), float(c.sum())) == (31, 125)
    found = coherence_from_norms(a, c)
    rho, error = float(found.value), math.sqrt(float(found.jackknife_variance))
    assert rho == pytest.approx(0.6064516129, abs=1e-10)
    assert error == pytest.approx(0.0656811418, abs=1e-10)
    assert 1 / rho == pytest.approx(1.6489362, abs=1e-7)
    t = student.ppf(0.975, 5)
    assert [1 / (rho + t * error), 1 / (rho - t * error)] == pytest.approx([1.2898394, 2.2851248], abs=1e-7)
    assert 1 / (rho + student.ppf(0.95, 5) * error) == pytest.approx(1.3535420, abs=1e-7)


def test_the_jackknife_is_a_loop_over_samples_with_one_gradient_left_out() -> None:
    gradients = population(9, 4, seed=1)
    left_out = []
    for i in range(9):
        rest = torch.cat([gradients[:i], gradients[i + 1 :]])
        left_out.append(mean_product(rest) / mean_sq_norm(rest))
    centre = sum(left_out) / 9
    expected = 8 / 9 * sum((r - centre) ** 2 for r in left_out)
    found = coherence_from_gram(gradients @ gradients.T)
    assert float(found.value) == pytest.approx(mean_product(gradients) / mean_sq_norm(gradients))
    assert float(found.jackknife_variance) == pytest.approx(expected)


def test_numerator_and_denominator_are_unbiased_with_and_without_replacement() -> None:
    gradients = population(5, 3, seed=2)
    total = gradients.sum(0)
    square_of_mean = float(total @ total) / 25
    for samples, expected in (
        (list(with_replacement(gradients, 3)), square_of_mean),
        (list(without_replacement(gradients, 3)), mean_product(gradients)),
    ):
        assert sum(map(mean_product, samples)) / len(samples) == pytest.approx(expected)
        assert sum(map(mean_sq_norm, samples)) / len(samples) == pytest.approx(mean_sq_norm(gradients))


def test_the_trace_of_the_squared_covariance_is_unbiased_and_never_negative() -> None:
    gradients = population(5, 2, seed=3)
    centred = gradients - gradients.mean(0)
    covariance = centred.T @ centred / 5
    found = [float(trace_of_squared_covariance(g @ g.T)) for g in with_replacement(gradients, 4)]
    assert min(found) >= 0
    assert sum(found) / len(found) == pytest.approx(float((covariance @ covariance).trace()))


def test_the_second_order_variance_is_the_variance_of_rho_at_zero_mean() -> None:
    # 4,000 draws of m = 16 standard normals in 6 dimensions: such a sample variance has a standard error of about 4 %.
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(4000, 16, 6, dtype=torch.float64, generator=generator)
    found = coherence_from_gram(rows @ rows.mT)
    assert float(found.second_order_variance.mean()) == pytest.approx(float(found.value.var()), rel=0.12)


def test_equal_gradients_are_coherent_without_any_doubt() -> None:
    found = coherence_from_gram(torch.full((8, 8), 3.0))
    assert float(found.value) == 1
    assert float(found.variance) == 0
    assert float(found.skewness) == 0


def test_a_single_non_zero_gradient_leaves_no_nan_behind() -> None:
    gram = torch.zeros(8, 8, dtype=torch.float64)
    gram[3, 3] = 2.0
    found = coherence_from_gram(gram)
    assert float(found.value) == 0
    assert float(found.variance) == 0


def test_batched_samples_are_their_single_selves() -> None:
    rows = torch.stack([population(8, 3, seed=s) for s in range(4)])
    together = coherence_from_gram(rows @ rows.mT)
    for index, sample in enumerate(rows):
        alone = coherence_from_gram(sample @ sample.T)
        for both, one in zip(together[:-1], alone[:-1], strict=True):
            assert float(both[index]) == pytest.approx(float(one))


def test_norms_alone_give_the_same_jackknife_but_no_second_order_term() -> None:
    gradients = population(10, 4, seed=5)
    full, short = coherence_from_gram(gradients @ gradients.T), coherence_from_norms(*norms_and_products(gradients))
    assert float(short.value) == pytest.approx(float(full.value))
    assert float(short.jackknife_variance) == pytest.approx(float(full.jackknife_variance))
    assert float(short.second_order_variance) == 0 < float(full.second_order_variance)


def scalar(value: float, variance: float, skewness: float, rows: int) -> Coherence:
    number = lambda x: torch.tensor(x, dtype=torch.float64)  # noqa: E731
    return Coherence(number(value), number(variance), number(0.0), number(skewness), rows)


def test_limits_are_student_limits_where_nothing_leans() -> None:
    limits = coherence_limits(scalar(0.5, 0.01, 0.3, 20))
    assert float(limits.low) == pytest.approx(0.5 - 0.1 * student.ppf(0.975, 19))
    assert float(limits.high) == pytest.approx(0.5 + 0.1 * student.ppf(0.975, 19))
    assert float(limits.safe_high) == pytest.approx(0.5 + 0.1 * student.ppf(0.99, 19))


def test_a_lean_to_the_left_lowers_the_lower_limit_only() -> None:
    even, lean = coherence_limits(scalar(0.5, 0.01, 0.0, 20)), coherence_limits(scalar(0.5, 0.01, -1.0, 20))
    t = student.ppf(0.975, 19)
    assert float(even.low - lean.low) == pytest.approx(0.1 * 2 * (1 + 2 * t**2) / (6 * math.sqrt(20)))
    assert (lean.high, lean.safe_high) == (even.high, even.safe_high)


def test_a_value_below_the_least_possible_is_raised_in_the_limits() -> None:
    fresh = coherence_limits(scalar(-0.2, 0.01, 0.0, 20))
    assert float(fresh.high) == pytest.approx(0.1 * student.ppf(0.975, 19))
    finite = coherence_limits(scalar(-0.2, 0.01, 0.0, 20), least=-1 / 40)
    assert float(finite.high) == pytest.approx(-1 / 40 + 0.1 * student.ppf(0.975, 19))


def test_a_sampled_quarter_shrinks_the_interval_by_root_three_quarters() -> None:
    fresh, finite = (coherence_limits(scalar(0.5, 0.01, 0.0, 20), sampled_fraction=f) for f in (0.0, 0.25))
    assert float(finite.high - finite.low) == pytest.approx(float(fresh.high - fresh.low) * math.sqrt(0.75))


def test_the_whole_population_gives_the_inverse_of_its_bound() -> None:
    gradients = population(7, 3, seed=6)
    rho = coherence_from_gram(gradients @ gradients.T).value
    total = gradients.sum(0)
    assert float(inverse_bound(rho, 7)) == pytest.approx(float(total @ total) / (7 * float(gradients.square().sum())))


def test_one_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a mean over pairs and needs at least 2 gradients; got 1"):
        coherence_from_gram(torch.ones(1, 1))
