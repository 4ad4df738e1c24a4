from __future__ import annotations

import math

import pytest
import torch

from estimate.populations import SIX, population, true_bound
from variegrad.estimators import estimate_from_gram, estimate_from_norms
from variegrad.estimators.batch_size_estimate import BatchSizeEstimate


def of(gradients, **kwargs) -> BatchSizeEstimate:
    gradients = torch.as_tensor(gradients, dtype=torch.float64)
    return estimate_from_gram(gradients @ gradients.T, **kwargs)


def test_the_first_golden_example() -> None:
    g = [[1, 0], [0, 1], [1, 1]]
    fresh, finite = of(g), of(g, population=3)
    assert (fresh.coherence, fresh.batch_size_bound) == pytest.approx((0.5, 2.0))
    assert finite.batch_size_bound == finite.low == finite.high == pytest.approx(1.5)
    assert finite.exact
    assert "exact:" in finite.in_words()


def test_below_eight_examples_there_is_a_point_but_no_interval() -> None:
    found = of(SIX)
    assert found.batch_size_bound == pytest.approx(1.6489362, abs=1e-7)
    assert (found.low, found.high, found.lower_confidence_bound) == (1, math.inf, 1)
    assert math.isinf(found.standard_error)
    assert found.cannot_tell
    assert found.unbounded_above
    assert "cannot tell" in str(found)


def test_a_census_is_exact_and_equals_the_definition() -> None:
    gradients = population(12, 5, seed=1)
    found = of(gradients, population=12)
    assert found.batch_size_bound == pytest.approx(true_bound(gradients), rel=1e-12)
    assert found.standard_error == 0
    assert found.low == found.high == found.lower_confidence_bound == found.batch_size_bound


def test_a_census_of_cancelling_gradients_is_infinite_but_never_its_lower_bound() -> None:
    half = population(4, 3, seed=2)
    found = of(torch.cat([half, -half]), population=8)
    assert found.batch_size_bound == math.inf
    assert found.lower_confidence_bound == 1


def test_all_zero_gradients_are_undefined() -> None:
    found = of(torch.zeros(10, 3))
    assert found.undefined
    assert found.cannot_tell
    assert math.isnan(found.batch_size_bound)
    assert found.lower_confidence_bound == 1
    assert "the batch size does not matter" in str(found)


def test_equal_gradients_have_bound_one_and_we_can_tell() -> None:
    found = of(torch.ones(10, 3))
    assert (found.batch_size_bound, found.low, found.high) == (1, 1, 1)
    assert not found.cannot_tell


def test_negative_coherence_is_never_printed_as_a_negative_bound() -> None:
    # Balanced signs along one axis: Û < 0.
    found = of([[1.0, 0.1], [-1.0, 0.1]] * 10)
    assert found.coherence < 0
    assert found.batch_size_bound == math.inf
    assert found.unbounded_above
    assert 1 <= found.lower_confidence_bound < math.inf
    assert "-" not in str(found)
    assert "≥" in str(found)


def test_a_huge_point_value_comes_with_the_flag() -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(200):
        found = of(torch.randn(16, 30, dtype=torch.float64, generator=generator))
        assert found.batch_size_bound >= 1
        assert found.unbounded_above or found.high < math.inf
        if found.batch_size_bound > 1000:
            assert found.unbounded_above
        assert 1 <= found.lower_confidence_bound <= found.low <= found.batch_size_bound <= found.high


def test_more_confidence_widens_the_interval() -> None:
    gradients = population(40, 5, seed=4)
    narrow, wide = of(gradients, confidence=0.8), of(gradients, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert wide.lower_confidence_bound < narrow.lower_confidence_bound


def test_scaling_the_loss_changes_nothing() -> None:
    gradients = population(20, 5, seed=5)
    one, other = of(gradients), of(gradients * 1e-4)
    assert one.low == pytest.approx(other.low)
    assert one.high == pytest.approx(other.high)


def test_norms_alone_agree_on_the_point() -> None:
    gradients = population(20, 5, seed=6)
    found = estimate_from_norms(gradients.square().sum(1), gradients @ gradients.sum(0), population=100)
    assert found.batch_size_bound == pytest.approx(of(gradients, population=100).batch_size_bound)


def test_a_bound_beyond_the_population_is_called_conflicting() -> None:
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(400, 30, dtype=torch.float64, generator=generator)
    gradients = noise - noise.mean(0)
    found = of(gradients[:390], population=400)
    assert found.conflicting == (found.low > 400)
    assert not of(population(20, 3, seed=7), population=400).conflicting


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: of(torch.ones(9, 2), population=8), r"population must be at least .* population=8 for 9 examples"),
        (lambda: of(torch.ones(1, 2)), r"at least 2 examples \(8 for an interval\); got 1"),
        (lambda: of(torch.ones(9, 2), confidence=1.0), r"confidence must lie strictly between 0 and 1; got 1.0"),
        (lambda: of([[1.0], [math.nan], [1.0]]), r"gradients must be finite; that of example"),
        (
            lambda: estimate_from_norms(torch.tensor([1.0, 2.0, math.inf]), torch.ones(3)),
            r"that of example 2 is not",
        ),
    ],
)
def test_impossible_samples_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
