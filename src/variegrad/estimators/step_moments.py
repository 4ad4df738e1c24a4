"""Unbiased estimates of ‖∇F‖² and M² from one step, from norms or from workers.

Each source gives the pair (Û, M̂²) with E Û = mean_{i≠j}⟨g_i, g_j⟩ and E M̂² = mean‖g_i‖², with or without replacement.
Pairs of many steps are pooled as a ratio of sums (`variegrad.estimators.pooled`); a mean of ratios would be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class StepMoments(NamedTuple):
    """What one step says about single examples.

    Attributes:
        mean_product: Û, an unbiased estimate of mean_{i≠j}⟨g_i, g_j⟩ (of ‖∇F‖², for fresh data); it may be negative.
        mean_sq_norm: M̂², an unbiased estimate of mean‖g_i‖².
    """

    mean_product: float
    mean_sq_norm: float


def moments_from_norms(sum_sq_norms: float, sq_norm_of_sum: float, count: int) -> StepMoments:
    """Û = (‖Σg‖² − Σ‖g‖²)/(m(m−1)) and M̂² = Σ‖g‖²/m of one batch.

    Args:
        sum_sq_norms: Σ‖g_i‖² over the batch.
        sq_norm_of_sum: ‖Σg_i‖².
        count: m ≥ 2 examples.

    Returns:
        The pair.

    Raises:
        ValueError: if there are fewer than two examples.
    """
    if count < 2:
        raise ValueError(f"count must be at least 2 examples: coherence is a mean over pairs; got {count}.")
    return StepMoments((sq_norm_of_sum - sum_sq_norms) / (count * (count - 1)), sum_sq_norms / count)


def moments_from_workers(
    sq_norms_of_sums: Sequence[float], sizes: Sequence[int], sq_norm_of_total: float
) -> StepMoments:
    """(Û, M̂²) from the gradient *sums* s_j of P workers or micro-batches of b_j examples, and their total.

    With N = Σb_j:  Û = (‖Σs_j‖² − Σ‖s_j‖²)/(N² − Σb_j²),  M̂² = (Σ‖s_j‖² − (Σb_j² − N)·Û)/N. Only sums enter, so that
    norms can use an existing all-reduce. For equal b this is |G|² = (B_big·S_big − b·S_small)/(B_big − b) and
    trΣ = (S_small − S_big)/(1/b − 1/B_big) of worker means. A mean gradient ḡ_j is s_j/b_j.

    Args:
        sq_norms_of_sums: ‖s_j‖², one per worker.
        sizes: b_j ≥ 1, examples of each.
        sq_norm_of_total: ‖Σs_j‖².

    Returns:
        The pair, in terms of single examples.

    Raises:
        ValueError: for a single worker (not identifiable), unequal lengths or a size below one.

    Source: McCandlish et al. (2018), Appendix A, for two batch sizes.
    """
    sizes = _checked_sizes(sizes, len(sq_norms_of_sums))
    total, squares, norms = sum(sizes), sum(b * b for b in sizes), math.fsum(sq_norms_of_sums)
    product = (sq_norm_of_total - norms) / (total**2 - squares)
    return StepMoments(product, (norms - (squares - total) * product) / total)


def _checked_sizes(sizes: Sequence[int], workers: int) -> list[int]:
    if len(sizes) != workers:
        raise ValueError(f"sizes must name the examples of each of the {workers} workers; got {len(sizes)} sizes.")
    if workers < 2:
        raise ValueError(
            "B_D is not identifiable from a single worker: signal and noise cannot be separated in one gradient. "
            "Use at least 2 workers or micro-batches, or per-example norms."
        )
    if min(sizes) < 1:
        raise ValueError(f"sizes must be at least 1 example each; got {min(sizes)}. Leave empty workers out.")
    return [int(b) for b in sizes]
