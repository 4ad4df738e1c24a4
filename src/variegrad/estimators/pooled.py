"""B_D pooled over many steps: a ratio of sums, with a delete-block jackknife.

ρ̂ = ΣÛ_k/ΣM̂²_k over steps k; a mean of the steps' own ratios would be far off. Limits, also from blocks of unequal
weight: `variegrad.estimators.ratio_of_sums`.
"""

from __future__ import annotations

from collections.abc import Sequence

from variegrad.estimators.batch_size_estimate import BatchSizeEstimate, estimate_from_coherence
from variegrad.estimators.coherence import least_coherence
from variegrad.estimators.ratio_of_sums import Block, ratio_limits, ratio_of_sums


def pooled_estimate(blocks: Sequence[Block], *, population: int | None, confidence: float) -> BatchSizeEstimate:
    """B̂_D from blocks of unequal size.

    Args:
        blocks: the size of each (steps, or another weight), and ΣÛ and ΣM̂² over it, weighted likewise.
        population: n, or None for fresh data.
        confidence: nominal level of the two-sided interval.

    Returns:
        The estimate, with `count` = blocks.
    """
    ratio = ratio_of_sums(blocks)
    return estimate_from_coherence(
        ratio.coherence,
        population=population,
        confidence=confidence,
        sampled_fraction=0.0,
        limits=ratio_limits(ratio, confidence=confidence, least=least_coherence(population)),
    )
