from __future__ import annotations

import json
import math

import pytest
import torch

from variegrad.estimators import PooledCoherence, StepMoments, moments_from_norms


def steps(count: int, bound: float, m: int, seed: int) -> list[StepMoments]:
    generator = torch.Generator().manual_seed(seed)
    d = 20
    mean = torch.full((d,), math.sqrt(1 / (bound - 1)), dtype=torch.float64)
    rows = mean + torch.randn(count, m, d, dtype=torch.float64, generator=generator)
    norms, totals = rows.square().sum((1, 2)), rows.sum(1).square().sum(1)
    return [moments_from_norms(float(a), float(s), m) for a, s in zip(norms, totals, strict=True)]


def pooled(moments, **kwargs) -> PooledCoherence:
    pool = PooledCoherence(**kwargs)
    for step in moments:
        pool.add(step)
    return pool


def test_the_pool_is_the_ratio_of_sums_with_a_delete_one_step_jackknife() -> None:
    moments = steps(30, 10, 4, seed=1)
    u, v = [s.mean_product for s in moments], [s.mean_sq_norm for s in moments]
    left_out = [(sum(u) - a) / (sum(v) - b) for a, b in zip(u, v, strict=True)]
    centre = sum(left_out) / 30
    found = pooled(moments).estimate()
    assert found.coherence == pytest.approx(sum(u) / sum(v))
    assert found.standard_error**2 == pytest.approx(29 / 30 * sum((r - centre) ** 2 for r in left_out))
    assert found.count == 30


def test_blocks_that_merge_keep_the_point_and_stay_bounded() -> None:
    moments = steps(1000, 10, 4, seed=2)
    fine, coarse = pooled(moments, max_blocks=1000), pooled(moments, max_blocks=16)
    assert coarse.steps == 1000
    assert len(coarse.state_dict()["blocks"]) <= 16
    assert coarse.estimate().batch_size_bound == pytest.approx(fine.estimate().batch_size_bound)
    assert coarse.estimate().standard_error == pytest.approx(fine.estimate().standard_error, rel=0.6)


def test_ten_thousand_steps_are_a_few_kilobytes() -> None:
    pool = pooled([StepMoments(1.0, 3.0)] * 10_000)
    assert len(json.dumps(pool.state_dict())) < 4096
    assert pool.steps == 10_000


@pytest.mark.parametrize("bound", [5, 60])
def test_the_interval_covers_with_two_examples_a_step(bound: int) -> None:
    # 250 runs of 41 steps (so that the last of 16 blocks is unequal); 0.90 is 3.6 standard errors below 0.95.
    inside = below = 0
    for seed in range(250):
        found = pooled(steps(41, bound, 2, seed=100 + seed), max_blocks=16).estimate()
        inside += found.low <= bound <= found.high
        below += found.lower_confidence_bound <= bound
    assert inside >= 225
    assert below >= 235


def test_a_checkpoint_in_the_middle_changes_nothing() -> None:
    moments = steps(100, 10, 4, seed=3)
    resumed = PooledCoherence.from_state_dict(json.loads(json.dumps(pooled(moments[:37], max_blocks=16).state_dict())))
    for step in moments[37:]:
        resumed.add(step)
    assert resumed.state_dict() == pooled(moments, max_blocks=16).state_dict()
    assert resumed.estimate() == pooled(moments, max_blocks=16).estimate()


def test_few_steps_cannot_tell() -> None:
    found = pooled(steps(5, 10, 4, seed=4)).estimate()
    assert found.cannot_tell
    assert found.unbounded_above


def test_zero_gradients_are_undefined_and_a_finite_population_is_mapped() -> None:
    assert pooled([StepMoments(0.0, 0.0)] * 20).estimate().undefined
    found = pooled([StepMoments(1.0, 2.0)] * 20).estimate(population=11)
    assert found.batch_size_bound == pytest.approx(1 / (1 / 11 + 10 / 11 / 2))


def test_a_non_finite_step_is_refused_and_leaves_the_pool_alone() -> None:
    pool = pooled([StepMoments(1.0, 2.0)] * 9)
    before = pool.state_dict()
    with pytest.raises(ValueError, match="moments must be finite"):
        pool.add(StepMoments(math.nan, 1.0))
    assert pool.state_dict() == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PooledCoherence(15), r"even and at least 16.* got 15"),
        (lambda: PooledCoherence().estimate(), r"nothing was pooled yet"),
        (lambda: PooledCoherence.from_state_dict({"a": 1}), r"got the keys \['a'\]"),
        (lambda: moments_from_norms(1.0, 1.0, 1), r"at least 2 examples"),
    ],
)
def test_misuse_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
