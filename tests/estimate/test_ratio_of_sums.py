from __future__ import annotations

import math

import pytest
import torch

from variegrad.estimators.coherence import SKEWNESS_WEIGHT, Coherence, t_quantiles
from variegrad.estimators.ratio_of_sums import Block, RatioOfSums, ratio_limits, ratio_of_sums


def random_blocks(count: int, seed: int, *, unequal: bool = False) -> list[Block]:
    """Blocks of ρ = 1/2 whose numerator falls where the denominator rises."""
    generator = torch.Generator().manual_seed(seed)
    norm = 2 * torch.rand(count, dtype=torch.float64, generator=generator)
    noise = torch.randn(count, dtype=torch.float64, generator=generator)
    product = 0.5 * norm - (norm - 1) + 0.25 * noise
    size = 1 + 4 * torch.rand(count, dtype=torch.float64, generator=generator) if unequal else torch.ones(count)
    return [(float(w), float(w * u), float(w * v)) for w, u, v in zip(size, product, norm, strict=True)]


def with_(skewness: float = 0.0, curvature: float = 0.0) -> RatioOfSums:
    return RatioOfSums(Coherence(0.5, 0.01, 0.0, skewness, 64), curvature)


def test_the_jackknife_of_unequal_blocks_is_the_slow_loop() -> None:
    blocks = random_blocks(12, seed=1, unequal=True)
    total, z, m = sum(w for w, _, _ in blocks), [], []
    value = sum(u for _, u, _ in blocks) / sum(v for _, _, v in blocks)
    pseudo = []
    for j, (size, _, _) in enumerate(blocks):
        rest = blocks[:j] + blocks[j + 1 :]
        left_out = sum(u for _, u, _ in rest) / sum(v for _, _, v in rest)
        pseudo.append(total / size * value - (total / size - 1) * left_out)
    mean = sum(size / total * tau for (size, _, _), tau in zip(blocks, pseudo, strict=True))
    mean_norm = sum(v for _, _, v in blocks) / total
    for (size, _, norm), tau in zip(blocks, pseudo, strict=True):
        z.append((tau - mean) / math.sqrt(total / size - 1))
        m.append((norm / size - mean_norm) / math.sqrt(total / size - 1))
    variance = sum(a**2 for a in z) / 12

    found, curvature = ratio_of_sums(blocks)
    assert found.value == pytest.approx(value)
    assert found.variance == pytest.approx(variance)
    assert found.skewness == pytest.approx(sum(a**3 for a in z) / 12 / variance**1.5)
    covariance = sum(a * b for a, b in zip(z, m, strict=True)) / 12
    assert curvature == pytest.approx(covariance / (mean_norm * math.sqrt(variance)))


def test_curvature_is_the_beginning_of_fiellers_interval() -> None:
    # Fieller: all ρ with (Ū − ρM̄)² ≤ t²·Var(Ū − ρM̄). Its middle moves by −κt²·√V. Left over: O(1/K) and O(t²/K).
    blocks, t = random_blocks(2000, seed=2), 0.1
    u, v = (torch.tensor([block[i] for block in blocks], dtype=torch.float64) for i in (1, 2))
    (_, uv), (_, vv) = (torch.cov(torch.stack([u, v])) / len(u)).tolist()
    a, b = float(v.mean()) ** 2 - t**2 * vv, float(u.mean() * v.mean()) - t**2 * uv
    found, curvature = ratio_of_sums(blocks)
    middle = (b / a - found.value) / math.sqrt(found.variance)
    assert curvature < -0.005
    assert middle == pytest.approx(-curvature * t**2, rel=0.02)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_upper_limit_of_a_ratio_of_noisy_denominator_holds(seed: int) -> None:
    # 3000 runs of 16 blocks; 2.5 % should lie above the limit, with a standard error of 0.3 points.
    above = above_plain = 0
    blocks = random_blocks(16 * 3000, seed=seed)
    for k in range(3000):
        found = ratio_of_sums(blocks[16 * k : 16 * k + 16])
        above += ratio_limits(found, confidence=0.95, least=-1.0).high < 0.5
        above_plain += found.coherence.value + t_quantiles(15, 0.95)[0] * math.sqrt(found.coherence.variance) < 0.5
    assert above_plain > 0.04 * 3000  # Student's t alone does not
    assert above < 0.033 * 3000


@pytest.mark.parametrize(
    ("ratio", "below", "above"),
    [
        (with_(), 0.0, 0.0),
        (with_(skewness=-1), 1.0, 0.0),
        (with_(skewness=1), 0.0, 1.0),
        (with_(curvature=-0.05), 0.0, 0.05),
        (with_(curvature=0.05), 0.05, 0.0),
        (with_(skewness=1, curvature=0.05), 0.05, 1.0),
    ],
)
def test_each_term_lengthens_one_side_and_shortens_none(ratio: RatioOfSums, below: float, above: float) -> None:
    t, t_safe = t_quantiles(63, 0.95)

    def reach(term: float) -> float:
        return t + term * (SKEWNESS_WEIGHT * (1 + 2 * t * t) / (6 * 8) if term == 1 else t * t)

    limits = ratio_limits(ratio, confidence=0.95, least=0.0)
    assert limits.low == pytest.approx(0.5 - 0.1 * reach(below))
    assert limits.high == pytest.approx(0.5 + 0.1 * reach(above))
    assert limits.safe_high == pytest.approx(0.5 + 0.1 * max(t_safe, reach(above)))


def test_limits_are_set_around_what_can_be() -> None:
    limits = ratio_limits(RatioOfSums(Coherence(-0.2, 0.01, 0.0, 0.0, 64), 0.0), confidence=0.95, least=0.0)
    assert limits.high == pytest.approx(0.1 * t_quantiles(63, 0.95)[0])


@pytest.mark.parametrize("product", [0.5, 1e-200, 1e-130])
def test_blocks_without_any_spread_worth_a_cube_are_no_division_by_zero(product: float) -> None:
    blocks = [(1.0, product * (1 + k % 2), 1.0) for k in range(8)]
    found, curvature = ratio_of_sums(blocks)
    assert curvature == 0
    assert found.value == pytest.approx(1.5 * product)
    assert math.isfinite(found.skewness)


def test_a_block_that_holds_all_of_the_norm_cannot_be_left_out() -> None:
    found, _ = ratio_of_sums([(1.0, 0.5, 1.0)] + [(1.0, 0.0, 0.0)] * 9)
    assert found.value == 0.5
    assert math.isinf(found.variance)
