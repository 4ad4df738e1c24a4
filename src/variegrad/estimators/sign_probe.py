"""Σ‖g_i‖² of a batch from balanced sign probes: one extra backward each, on any architecture.

Σε_iℓ_i with exactly half of the signs +1 has E‖Σεg‖² = (bΣ‖g‖² − ‖Σg‖²)/(b−1). The interval is over probes of the
*same* batch: it says what the batch's own Σ‖g‖² is, and nothing of other batches. For B_D pool
`moments_from_sign_probe` over steps, where the sampling of examples shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor

from variegrad.estimators.step_moments import moments_from_sign_probe


@dataclass(frozen=True, kw_only=True)
class SignProbeEstimate:
    """Σ‖g_i‖² of one batch, estimated by balanced sign probes.

    Attributes:
        sum_sq_norms: ((b−1)·S̄ + ‖Σg‖²)/b, unbiased.
        low: lower end of the interval, at least ‖Σg‖²/b, below which Σ‖g‖² cannot lie.
        high: upper end; +inf after a single probe.
        standard_error: of `sum_sq_norms` over probes; inf after a single one.
        probes: how many.
        confidence: nominal level of the interval.
    """

    sum_sq_norms: float
    low: float
    high: float
    standard_error: float
    probes: int
    confidence: float


def estimate_from_sign_probes(
    probe_sq_norms: Float[Tensor, " r"], sq_norm_of_sum: float, count: int, *, confidence: float = 0.95
) -> SignProbeEstimate:
    """Σ‖g_i‖² from r probes of one batch, with Student's interval over the probes.

    Args:
        probe_sq_norms: S_k = ‖Σε_i g_i‖², one a probe, each with fresh balanced signs.
        sq_norm_of_sum: ‖Σg_i‖².
        count: b, examples in the batch; even.
        confidence: nominal level.

    Returns:
        The estimate.

    Raises:
        ValueError: if there is no probe, or b is odd or below two.
    """
    probes = probe_sq_norms.double()
    r = len(probes)
    if r == 0:
        raise ValueError("probe_sq_norms is empty: one probe at least is needed, two for an interval.")
    moments = moments_from_sign_probe(float(probes.mean()), sq_norm_of_sum, count)
    total, floor = moments.mean_sq_norm * count, sq_norm_of_sum / count
    error = (count - 1) / count * float(probes.std()) / math.sqrt(r) if r > 1 else math.inf
    width = float(stdtrit(r - 1, (1 + confidence) / 2)) * error if r > 1 else math.inf
    return SignProbeEstimate(
        sum_sq_norms=total,
        low=max(floor, total - width),
        high=total + width,
        standard_error=error,
        probes=r,
        confidence=confidence,
    )


def balanced_signs(count: int, generator: torch.Generator) -> Float[Tensor, " b"]:
    """Signs ε ∈ {±1}^b, exactly half of each, uniformly among all such.

    Args:
        count: b, even.
        generator: where the randomness comes from.

    Returns:
        ε, in float64.

    Raises:
        ValueError: if b is odd or below two.
    """
    if count < 2 or count % 2:
        raise ValueError(f"a balanced sign probe needs an even number of examples, at least 2; got {count}.")
    signs = torch.ones(count, dtype=torch.float64)
    signs[torch.randperm(count, generator=generator)[: count // 2]] = -1
    return signs
