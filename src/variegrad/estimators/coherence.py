"""Coherence ρ = mean_{i≠j}⟨g_i, g_j⟩ / mean_i‖g_i‖² from a sample of m gradients, and how far it may be off.

U-statistics: Û = (‖Σg‖² − Σ‖g‖²)/(m(m−1)) and M̂² = Σ‖g‖²/m are both unbiased, with or without replacement, and
ρ̂ = Û/M̂². The in-batch ratio m·Σ‖g‖²/‖Σg‖² is not used: it saturates at m. Limits are set on ρ, which has moments,
and inverted afterwards: B = 1/ρ̂ has none. All functions accept leading batch dimensions, so that coverage can be
measured on thousands of samples with the released code.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from variegrad.shapes import Float

# Chosen by measurement (docs/decisions): weight of the second-order variance, and of the skewness in one tail.
SECOND_ORDER_WEIGHT = 2.0
SKEWNESS_WEIGHT = 2.0

# A nominal 99 % bound covers at least 94 % even if the jackknife is at its worst, so it is the one labelled 95 %.
BOUND_STRICTNESS = 5.0


Real = TypeVar("Real", float, Float[Tensor, "*batch"])
"""One number, or a tensor of them."""


class Coherence(NamedTuple):
    """ρ̂ of a sample and its uncertainty: plain numbers, or tensors over many samples.

    Attributes:
        value: ρ̂ ≤ 1; NaN if all gradients are zero.
        jackknife_variance: the delete-1 jackknife's variance of ρ̂.
        second_order_variance: 2·tr(Σ²)/(m(m−1)M⁴), the variance of ρ̂ at ‖∇F‖ = 0; 0 if there was no Gram matrix.
        skewness: of the jackknife's pseudo-values; a heavy tail of ‖g_i‖² makes it negative.
        rows: m.
    """

    value: float | Float[Tensor, "*batch"]
    jackknife_variance: float | Float[Tensor, "*batch"]
    second_order_variance: float | Float[Tensor, "*batch"]
    skewness: float | Float[Tensor, "*batch"]
    rows: int

    @property
    def variance(self) -> float | Float[Tensor, "*batch"]:
        """What the limits are built on: the jackknife's variance with the second-order one as a reserve."""
        return self.jackknife_variance + SECOND_ORDER_WEIGHT * self.second_order_variance


class CoherenceLimits(NamedTuple):
    """Limits of ρ: low and high at the two-sided level, safe_high for the lower confidence bound of B = 1/ρ."""

    low: float | Float[Tensor, "*batch"]
    high: float | Float[Tensor, "*batch"]
    safe_high: float | Float[Tensor, "*batch"]


def coherence_from_norms(
    sq_norms: Float[Tensor, "*batch m"],
    products_with_sum: Float[Tensor, "*batch m"],
    *,
    trace_of_squared_covariance: Float[Tensor, "*batch"] | float = 0.0,
    noise: Float[Tensor, "*batch m"] | None = None,
) -> Coherence:
    """ρ̂, its delete-1 jackknife and its skewness from a_i = ‖g_i‖² and c_i = ⟨g_i, Σg⟩ alone.

    Û₍₋ᵢ₎ = ((S−2cᵢ+aᵢ) − (A−aᵢ))/((m−1)(m−2)), M̂²₍₋ᵢ₎ = (A−aᵢ)/(m−1), rᵢ = Û₍₋ᵢ₎/M̂²₍₋ᵢ₎,
    V = (m−1)/m·Σ(rᵢ−r̄)².

    Args:
        sq_norms: a_i.
        products_with_sum: c_i, so that Σc_i = ‖Σg‖² = S.
        trace_of_squared_covariance: tr(Σ²), for the second-order variance; 0 leaves that out.
        noise: relative noise variance of row i if rows are means of different numbers of examples (1/b_i);
            each delete-1 value is then brought to the noise of the whole.

    Returns:
        The coherence of the m rows; its variances are infinite for m = 2, where no row can be left out.

    Raises:
        ValueError: if there are fewer than two rows.
    """
    a, c = sq_norms.double(), products_with_sum.double()
    m = a.shape[-1]
    if m < 2:
        raise ValueError(f"coherence is a mean over pairs and needs at least 2 gradients; got {m}. Pass more examples.")
    total, sq_sum = a.sum(-1, keepdim=True), c.sum(-1, keepdim=True)
    product, norm = (sq_sum - total) / (m * (m - 1)), total / m
    value = (product / norm).squeeze(-1)
    if m == 2:
        return Coherence(value, torch.full_like(value, torch.inf), torch.zeros_like(value), torch.zeros_like(value), m)

    product_without = ((sq_sum - 2 * c + a) - (total - a)) / ((m - 1) * (m - 2))
    norm_without = (total - a) / (m - 1)
    if noise is not None:
        noise_without = (noise.sum(-1, keepdim=True) - noise) / (m - 1)
        norm_without = product_without + (norm_without - product_without) * noise.mean(-1, keepdim=True) / noise_without
    # A row that holds all of the norm leaves 0/0 behind; zero gradients have no common direction.
    without = torch.where(norm_without > 0, product_without / norm_without, torch.zeros_like(norm_without))
    deviation = without.mean(-1, keepdim=True) - without
    spread = deviation.square().mean(-1)
    skewness = deviation.pow(3).mean(-1) / spread.pow(1.5)
    second_order = 2 * torch.as_tensor(trace_of_squared_covariance) / (m * (m - 1) * norm.squeeze(-1).square())
    return Coherence(
        value=value,
        jackknife_variance=(m - 1) * spread,
        second_order_variance=second_order.double().expand_as(value),
        skewness=torch.where(spread > 0, skewness, torch.zeros_like(skewness)),
        rows=m,
    )


def coherence_from_gram(gram: Float[Tensor, "*batch m m"], noise: Float[Tensor, "*batch m"] | None = None) -> Coherence:
    """ρ̂ and its uncertainty from the Gram matrix K = G·Gᵀ, the second-order variance included.

    Args:
        gram: K_ij = ⟨g_i, g_j⟩.
        noise: see `coherence_from_norms`.

    Returns:
        The coherence of the m rows of G.

    Raises:
        ValueError: if there are fewer than two rows.
    """
    gram = gram.double()
    trace = trace_of_squared_covariance(gram) if gram.shape[-1] >= 4 else 0.0
    return coherence_from_norms(
        gram.diagonal(dim1=-2, dim2=-1), gram.sum(-1), trace_of_squared_covariance=trace, noise=noise
    )


def trace_of_squared_covariance(gram: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch"]:
    """tr(Σ²), unbiased and never negative, from the off-diagonal of the Gram matrix.

    Σ_{i≠j} k̃_ij²/(m(m−3)) with k̃ the U-centred matrix: every row of its off-diagonal sums to zero.

    Args:
        gram: K_ij = ⟨g_i, g_j⟩ with m ≥ 4.

    Returns:
        The estimate of tr(Σ²).

    Source: Székely and Rizzo (2014), U-centring; the kernel ⟨g_i, g_j⟩ in the place of a distance.
    """
    m = gram.shape[-1]
    off = gram - torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1))
    rows = off.sum(-1)
    centred = (
        off
        - (rows / (m - 2)).unsqueeze(-1)
        - (rows / (m - 2)).unsqueeze(-2)
        + (rows.sum(-1) / ((m - 1) * (m - 2)))[..., None, None]
    )
    return (centred.square().sum((-2, -1)) - centred.diagonal(dim1=-2, dim2=-1).square().sum(-1)) / (m * (m - 3))


def coherence_limits(
    coherence: Coherence, *, confidence: float = 0.95, least: float = 0.0, sampled_fraction: float = 0.0
) -> CoherenceLimits:
    """Limits of ρ: ρ̂ ∓ t·√V with Student's t_{m−1}, cautious on both sides.

    ρ̂ is raised to its least possible value in the limits, never in the point estimate: negative values are noise.
    The lower limit reaches further if pseudo-values are left-skewed, as the heavy tail of a mean demands:
    t + w·max(0, −skewness)·(1+2t²)/(6√m), the first Edgeworth term of a studentised mean, weighted by w.

    Args:
        coherence: ρ̂ and its uncertainty.
        confidence: of the two-sided interval; the safe limit uses a fifth of the remaining error, on one side.
        least: the smallest ρ that can be: 0 for fresh data, −1/(n−1) for a population of n.
        sampled_fraction: m/n, for the finite-population correction √(1 − m/n); 0 for fresh data.

    Returns:
        The limits of ρ.
    """
    m = coherence.rows
    standard_error = (coherence.variance * (1 - sampled_fraction)) ** 0.5
    t, t_safe = t_quantiles(m - 1, confidence)
    lean = SKEWNESS_WEIGHT * _at_least(-coherence.skewness, 0.0) * (1 + 2 * t**2) / (6 * m**0.5)
    centre = _at_least(coherence.value, least)
    return CoherenceLimits(
        low=centre - (t + lean) * standard_error,
        high=centre + t * standard_error,
        safe_high=centre + t_safe * standard_error,
    )


@lru_cache(maxsize=256)
def t_quantiles(freedom: int, confidence: float) -> tuple[float, float]:
    """Student's t of the two-sided limits and of the safe one.

    Args:
        freedom: degrees of freedom.
        confidence: of the two-sided interval.

    Returns:
        Both quantiles.
    """
    safe = 1 - (1 - confidence) / BOUND_STRICTNESS
    from scipy.special import stdtrit  # noqa: PLC0415 - only if an interval is made

    return float(stdtrit(freedom, (1 + confidence) / 2)), float(stdtrit(freedom, safe))


def _at_least(value: Any, least: float) -> Any:
    return value.clamp(min=least) if isinstance(value, Tensor) else max(value, least)  # NaN stays


def inverse_bound(coherence: Real, population: int | None) -> Real:
    """1/B_D from ρ: ρ itself for fresh data, 1/n + (1−1/n)ρ for a population of n.

    Args:
        coherence: ρ.
        population: n, or None for fresh data.

    Returns:
        1/B_D; zero or less if B_D has no bound.
    """
    return coherence if population is None else 1 / population + (1 - 1 / population) * coherence


def least_coherence(population: int | None) -> float:
    """The smallest possible ρ, at which all gradients sum to zero.

    Args:
        population: n, or None for fresh data.

    Returns:
        −1/(n−1); 0 for fresh data.
    """
    return 0.0 if population is None else -1 / max(population - 1, 1)
