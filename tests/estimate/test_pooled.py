from __future__ import annotations

import math

import pytest
import torch

from variegrad.estimators import StepMoments, moments_from_norms, pooled_estimate


def steps(count: int, bound: float, m: int, seed: int) -> list[StepMoments]:
    generator = torch.Generator().manual_seed(seed)
    d = 20
    mean = torch.full((d,), math.sqrt(1 / (bound - 1)), dtype=torch.float64)
    rows = mean + torch.randn(count, m, d, dtype=torch.float64, generator=generator)
    norms, totals = rows.square().sum((1, 2)), rows.sum(1).square().sum(1)
    return [moments_from_norms(float(a), float(s), m) for a, s in zip(norms, totals, strict=True)]


def pooled(moments, population=None):
    return pooled_estimate([(1.0, *step) for step in moments], population=population, confidence=0.95)


def test_the_pool_is_the_ratio_of_sums_with_a_delete_one_step_jackknife() -> None:
    moments = steps(30, 10, 4, seed=1)
    u, v = [s.mean_product for s in moments], [s.mean_sq_norm for s in moments]
    left_out = [(sum(u) - a) / (sum(v) - b) for a, b in zip(u, v, strict=True)]
    centre = sum(left_out) / 30
    found = pooled(moments)
    assert found.coherence == pytest.approx(sum(u) / sum(v))
    assert found.standard_error**2 == pytest.approx(29 / 30 * sum((r - centre) ** 2 for r in left_out))
    assert found.count == 30


@pytest.mark.parametrize("bound", [5, 60])
def test_the_interval_covers_with_two_examples_a_step(bound: int) -> None:
    # 250 runs of 41 steps; 0.90 is 3.6 standard errors below 0.95.
    inside = below = 0
    for seed in range(250):
        found = pooled(steps(41, bound, 2, seed=100 + seed))
        inside += found.low <= bound <= found.high
        below += found.lower_confidence_bound <= bound
    assert inside >= 225
    assert below >= 235


def test_few_steps_cannot_tell() -> None:
    found = pooled(steps(5, 10, 4, seed=4))
    assert found.cannot_tell
    assert found.unbounded_above


def test_zero_gradients_are_undefined_and_a_finite_population_is_mapped() -> None:
    assert pooled([StepMoments(0.0, 0.0)] * 20).undefined
    found = pooled([StepMoments(1.0, 2.0)] * 20, population=11)
    assert found.batch_size_bound == pytest.approx(1 / (1 / 11 + 10 / 11 / 2))


def test_a_single_example_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 examples"):
        moments_from_norms(1.0, 1.0, 1)
