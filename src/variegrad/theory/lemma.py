"""Lemma 1, exactly: what one step of mini-batch SGD does to the expected distance to any point."""

from __future__ import annotations

import numpy as np

from variegrad.shapes import Float
from variegrad.theory.arguments import positive, whole_number


def expected_sq_distance(
    gradients: Float[np.ndarray, "n d"],
    weights: Float[np.ndarray, " d"],
    target: Float[np.ndarray, " d"],
    *,
    step_size: float,
    batch_size: int,
    replacement: bool = True,
) -> float:
    """E‖w⁺ − w*‖² = ‖w−w*‖² − 2Bγ⟨∇F(w), w−w*⟩ + (1+δ)Bγ²M², an identity for w⁺ = w − γ·Σ of B drawn gradients.

    δ = (B−1)/B_D(w) for drawing with replacement, and (B−1)ρ without, ρ the mean inner product of two different
    gradients over M². A projection onto a convex set that holds w* can only lower the left side.

    Args:
        gradients: ∇f_i(w), one per row.
        weights: w.
        target: w*, a minimiser or any other point.
        step_size: γ, sum-normalised.
        batch_size: B.
        replacement: whether the B indices are drawn independently, or as B different ones.

    Returns:
        The expectation over the draw.

    Raises:
        ValueError: if γ or B is out of range, B exceeds n without replacement, or shapes do not fit.
        TypeError: if B is no whole number.

    Source: Lemma 1.
    """
    positive(step_size=step_size)
    whole_number(batch_size=batch_size)
    gradients, weights, target = (np.asarray(array, dtype=np.float64) for array in (gradients, weights, target))
    if gradients.ndim != 2 or len(gradients) == 0 or not weights.shape == target.shape == gradients.shape[1:]:
        raise ValueError(
            "gradients must have the shape (n, d), and weights and target (d,); got "
            f"{gradients.shape}, {weights.shape} and {target.shape}."
        )
    n = len(gradients)
    if not replacement and batch_size > n:
        raise ValueError(f"batch_size must be at most n = {n} without replacement; got {batch_size}.")
    sum_sq_norms = float(np.square(gradients).sum())
    total = gradients.sum(axis=0)
    sq_norm_of_sum = float(total @ total)
    away = weights - target
    # (1+δ)·M² written without a division by ‖Σg‖², which may vanish.
    if replacement:
        excess = (batch_size - 1) * sq_norm_of_sum / n**2
    else:
        excess = (batch_size - 1) * (sq_norm_of_sum - sum_sq_norms) / (n * (n - 1)) if n > 1 else 0.0
    noise = batch_size * step_size**2 * (sum_sq_norms / n + excess)
    return float(away @ away) - 2 * batch_size * step_size * float(total @ away) / n + noise
