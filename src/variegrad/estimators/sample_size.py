"""How many examples an estimate of B_D needs: m(ε) for a relative standard error ε.

Var(B·ρ̂) ≈ [cv² + 4κ(B−1)]/m + 2(B−1)²/(d_eff·m²), with cv² = Var‖g‖²/M⁴, κ = GᵀΣG/(‖G‖²trΣ) ≤ 1 and the
effective dimension d_eff = (trΣ)²/tr(Σ²). The second term alone asks for m ≈ B·√(2/d_eff)/ε: in a high effective
dimension m ≪ B will do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from variegrad.estimators.coherence import trace_of_squared_covariance
from variegrad.shapes import Float


@dataclass(frozen=True, kw_only=True)
class GradientShape:
    """Three numbers that, with B_D, determine how hard B_D is to estimate.

    Attributes:
        norm_cv2: cv² = Var‖g‖²/M⁴, of the squared norms.
        alignment: κ ∈ [0, 1], the share of the noise along the gradient.
        effective_dimension: d_eff = (trΣ)²/tr(Σ²) ≥ 1.
    """

    norm_cv2: float
    alignment: float
    effective_dimension: float


def gradient_shape(gram: Float[Tensor, "m m"]) -> GradientShape:
    """cv², κ and d_eff as a sample of gradients shows them (plug-in estimates, for planning).

    Args:
        gram: K_ij = ⟨g_i, g_j⟩ of m ≥ 4 examples.

    Returns:
        The shape; κ = 1, its worst case, if the sample does not show a gradient direction.

    Raises:
        ValueError: for fewer than four examples, or gradients that are all equal.
    """
    m = len(gram)
    if m < 4:
        raise ValueError(f"gradient_shape needs at least 4 examples, for tr(Σ²) without bias; got {m}.")
    gram = gram.double()
    norms = gram.diagonal()
    product = float(gram.sum() - norms.sum()) / (m * (m - 1))
    noise, squared = float(norms.mean()) - product, float(trace_of_squared_covariance(gram))
    if noise <= 0 or squared <= 0:
        raise ValueError("gradient_shape: the gradients are all equal (B_D = 1), so there is no noise to describe.")
    # Row means of the off-diagonal vary by GᵀΣG plus the sampling noise tr(Σ²)/(m−1) of the other rows.
    rows = (gram.sum(1) - norms) / (m - 1)
    along = max(0.0, float(rows.var()) - squared / (m - 1))
    return GradientShape(
        norm_cv2=float(norms.var() / norms.mean().square()),
        alignment=min(1.0, along / (product * noise)) if product > 0 else 1.0,
        effective_dimension=max(1.0, noise**2 / squared),
    )


def examples_needed(relative_error: float, batch_size_bound: float, shape: GradientShape) -> int:
    """m(ε): the number of examples at which 1/B̂_D has a relative standard error of about ε.

    The root of ε² = α/m + β/m², which lies between the larger and the sum of the two terms' own sizes α/ε² and √β/ε.

    Args:
        relative_error: ε > 0, such as 0.2 for ±20 %.
        batch_size_bound: a guess for B_D ≥ 1, in examples.
        shape: cv², κ and d_eff.

    Returns:
        m ≥ 2.

    Raises:
        ValueError: if ε is not positive or B_D is below one or not finite.
    """
    if not relative_error > 0:
        raise ValueError(f"relative_error must be positive, such as 0.2 for ±20 %; got {relative_error}.")
    if not 1 <= batch_size_bound < math.inf:
        raise ValueError(f"batch_size_bound must be a finite number ≥ 1; got {batch_size_bound}. Pass a guess.")
    excess = batch_size_bound - 1
    linear = shape.norm_cv2 + 4 * shape.alignment * excess
    square = 2 * excess**2 / shape.effective_dimension
    return max(2, math.ceil((linear + math.sqrt(linear**2 + 4 * square * relative_error**2)) / (2 * relative_error**2)))


def norms_needed(relative_error: float, norm_cv2: float, examples: int) -> int:
    """How many examples of a batch to measure: m of b, so that mean‖g‖² of the m is within ε of that of all b.

    The relative variance of the mean of m of b is cv²(1/m − 1/b), drawn without replacement: m = cv²/(ε² + cv²/b).

    Args:
        relative_error: ε > 0, the allowed standard error, such as 0.1 for ±10 %.
        norm_cv2: cv² = Var‖g‖²/M⁴, as measured (`gradient_shape`).
        examples: b ≥ 1, examples in the batch.

    Returns:
        1 ≤ m ≤ b.

    Raises:
        ValueError: if ε is not positive, cv² is negative or not finite, or b is below one.
    """
    if not relative_error > 0:
        raise ValueError(f"relative_error must be positive, such as 0.1 for ±10 %; got {relative_error}.")
    if not 0 <= norm_cv2 < math.inf:
        raise ValueError(f"norm_cv2 must be a finite number ≥ 0; got {norm_cv2}.")
    if examples < 1:
        raise ValueError(f"examples must be at least 1; got {examples}.")
    if not norm_cv2:
        return 1
    return min(examples, max(1, math.ceil(norm_cv2 / (relative_error**2 + norm_cv2 / examples))))
