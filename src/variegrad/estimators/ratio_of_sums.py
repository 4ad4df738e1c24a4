"""A ratio of sums over blocks, ρ̂ = ΣÛ/ΣM̂², and its limits: delete-block jackknife, Student's t, first Edgeworth terms.

Blocks of unequal size enter by the delete-m_j jackknife: with h_j = N/N_j, pseudo-values τ_j = h_jρ̂ − (h_j−1)ρ̂₍₋ⱼ₎,
their mean τ̄ = Στ_j/h_j and z_j = (τ_j − τ̄)/√(h_j−1), V = (1/K)Σz_j² is the usual jackknife if the blocks are equal.

T = (ρ̂ − ρ)/√V is not Student's t exactly. Û is nearly a squared length and right-skewed: when it is low, so is V.
And √V is measured at ρ̂, in units of a random M̂²: T ≈ T₀ + κT₀², T₀ that of the linear ΣÛ − ρΣM̂². To first order

    quantile of T at ∓t:  ∓t − γ(1+2t²)/(6√K) + κt²,      κ = Cov(ρ̂, M̂²)/(M̂²·√V),      γ = Σz_j³/(K·V^{3/2}).

The term of κ is the beginning of Fieller's interval of a ratio.

Source: Busing, Meijer and van der Leeden (1999), unequal blocks; Hall (1992), the expansion of a studentised mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from variegrad.estimators.coherence import SKEWNESS_WEIGHT, Coherence, CoherenceLimits, t_quantiles

Block = tuple[float, float, float]
"""Steps of a block (or another weight), ΣÛ and ΣM̂² over them, weighted likewise."""


class RatioOfSums(NamedTuple):
    """ρ̂ of K blocks and what its limits are made of.

    Attributes:
        coherence: ρ̂, V and γ.
        curvature: κ, negative if a low M̂² makes ρ̂ high, and V with it.
    """

    coherence: Coherence
    curvature: float


def ratio_of_sums(blocks: Sequence[Block]) -> RatioOfSums:
    """ρ̂ with its delete-block jackknife, in plain numbers.

    A monitored step of a small model takes less time than a dozen tensor operations.

    Args:
        blocks: K of them.

    Returns:
        The ratio; its variance is infinite if no block can be left out, and ρ̂ NaN if ΣM̂² = 0.
    """
    count = len(blocks)
    size, product, norm = (sum(column) for column in zip(*blocks, strict=True))
    value = product / norm if norm else math.nan
    if count < 2 or not norm - max(block_norm for _, _, block_norm in blocks) > 0:
        return RatioOfSums(Coherence(value, math.inf, 0.0, 0.0, count), 0.0)
    share = [size / block_size for block_size, _, _ in blocks]
    pseudo = [
        h * value - (h - 1) * (product - block_product) / (norm - block_norm)
        for h, (_, block_product, block_norm) in zip(share, blocks, strict=True)
    ]
    mean, mean_norm = sum(tau / h for h, tau in zip(share, pseudo, strict=True)), norm / size
    squares = cubes = products = 0.0
    for h, tau, (block_size, _, block_norm) in zip(share, pseudo, blocks, strict=True):
        z = (tau - mean) / math.sqrt(h - 1)  # of one variance where a block's noise goes with one over its size
        squares += z * z
        cubes += z * z * z
        products += z * (block_norm / block_size - mean_norm) / math.sqrt(h - 1)
    error = math.sqrt(squares / count)
    if not (error**3):
        return RatioOfSums(Coherence(value, error**2, 0.0, 0.0, count), 0.0)
    skewness, curvature = cubes / count / error**3, products / count / mean_norm / error
    return RatioOfSums(Coherence(value, error**2, 0.0, skewness, count), curvature)


def ratio_limits(ratio: RatioOfSums, *, confidence: float, least: float) -> CoherenceLimits:
    """Limits of ρ: Student's t_{K−1}, each first-order term on the side where it lengthens, none where it shortens.

    Few blocks understate their skewness, so γ has the weight that it has for single samples.

    Args:
        ratio: ρ̂ of K ≥ 2 blocks.
        confidence: of the two-sided interval.
        least: the smallest ρ that can be; ρ̂ is raised to it, in the limits.

    Returns:
        The limits; the safe one, of a fifth of the error, never inside the two-sided ones.
    """
    coherence, curvature = ratio
    t, t_safe = t_quantiles(coherence.rows - 1, confidence)
    skew = SKEWNESS_WEIGHT * coherence.skewness * (1 + 2 * t * t) / (6 * coherence.rows**0.5)
    bend = curvature * t * t
    below = t + max(0.0, -skew) + max(0.0, bend)
    above = t + max(0.0, skew) + max(0.0, -bend)
    centre, standard_error = max(coherence.value, least), coherence.variance**0.5
    return CoherenceLimits(
        low=centre - below * standard_error,
        high=centre + above * standard_error,
        safe_high=centre + max(t_safe, above) * standard_error,
    )
