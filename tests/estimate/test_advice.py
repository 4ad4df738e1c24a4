from __future__ import annotations

import math

import pytest

from variegrad.estimators import BatchSizeEstimate, Regime, adam_step_size_factor, advise, sgd_step_size_factor


def known(bound: float, low: float, high: float, lower: float) -> BatchSizeEstimate:
    return BatchSizeEstimate(
        batch_size_bound=float(bound),
        low=float(low),
        high=float(high),
        lower_confidence_bound=float(lower),
        coherence=0.0 if math.isinf(bound) else 1 / bound,
        standard_error=0.01,
        confidence=0.95,
        count=64,
    )


@pytest.mark.parametrize(
    ("batch", "regime"), [(1, Regime.WELL_BELOW), (26, Regime.WELL_BELOW), (27, Regime.NEAR),
                          (101, Regime.NEAR), (102, Regime.BEYOND)]
)  # fmt: skip
def test_the_regimes_change_at_efficiencies_of_80_and_50_percent(batch: int, regime: Regime) -> None:
    advice = advise(known(100, 100, 100, 100), batch)
    assert advice.regime is regime
    assert advice.certain
    assert advice.efficiency == pytest.approx(1 / (1 + (batch - 1) / 100))


def test_efficiency_carries_the_interval_of_the_bound() -> None:
    advice = advise(known(100, 60, 200, 50), 101)
    assert (advice.low, advice.efficiency, advice.high) == pytest.approx((1 / 3, 1 / 2, 2 / 3))
    assert not advice.certain
    assert "probably near the limit" in str(advice)


def test_an_interval_from_beyond_to_well_below_the_limit_is_undecided() -> None:
    advice = advise(known(math.inf, 1, math.inf, 1), 64)
    assert advice.regime is Regime.UNDECIDED
    assert advice.high == 1
    assert "undecided" in str(advice)


def test_the_old_names_of_the_regimes_warn() -> None:
    with pytest.warns(DeprecationWarning, match="WELL_BELOW"):
        assert Regime.PERFECT_SCALING is Regime.WELL_BELOW  # type: ignore[comparison-overlap]
    with pytest.raises(AttributeError):
        _ = Regime.EXCELLENT


def test_undefined_means_any_batch_is_harmless() -> None:
    assert advise(known(math.nan, 1, math.inf, 1), 64).efficiency == 1


def test_the_sgd_rule_is_linear_capped_from_one_example() -> None:
    assert sgd_step_size_factor(1, 8, 50.0) == pytest.approx(8 * 50 / (50 + 8 - 1))
    assert sgd_step_size_factor(1, 8, math.inf) == 8
    assert sgd_step_size_factor(1, 10**9, 50.0) == pytest.approx(50)
    assert sgd_step_size_factor(32, 64, 1.0) == pytest.approx(1)


def test_the_sgd_rule_composes_over_changes_of_batch() -> None:
    both = sgd_step_size_factor(16, 64, 100.0) * sgd_step_size_factor(64, 512, 100.0)
    assert both == pytest.approx(sgd_step_size_factor(16, 512, 100.0))
    assert sgd_step_size_factor(512, 16, 100.0) == pytest.approx(1 / sgd_step_size_factor(16, 512, 100.0))


def test_it_is_the_gain_of_a_batch_taken_as_the_unit() -> None:
    # AdaScale: (σ² + μ²)/(σ²/S + μ²) with μ² = 1 and σ² the variance of a batch of 8: (B_D − 1)/8.
    sigma = (100 - 1) / 8
    assert sgd_step_size_factor(8, 32, 100.0) == pytest.approx((sigma + 1) / (sigma / 4 + 1))


def test_adam_takes_the_square_root() -> None:
    assert adam_step_size_factor(16, 64) == pytest.approx(2)
    advice = advise(known(100, 60, 200, 50), 16)
    assert advice.adam_step_size_factor(64) == pytest.approx(2)
    assert advice.sgd_step_size_factor(64) == pytest.approx(sgd_step_size_factor(16, 64, 50.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: advise(known(2, 1, 3, 1), 0), "batch_size must be at least 1"),
        (lambda: sgd_step_size_factor(0, 2, 5.0), "batch sizes must be at least 1"),
        (lambda: sgd_step_size_factor(1, 2, math.nan), "batch_size_bound must be at least 1"),
        (lambda: adam_step_size_factor(1, 0), "batch sizes must be at least 1"),
    ],
)
def test_impossible_batches_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
