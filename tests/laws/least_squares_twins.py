"""Least squares on two data sets that differ in one example: expectations over the draw, exactly."""

from __future__ import annotations

import numpy as np


def expected_growth(X: np.ndarray, u: np.ndarray, changed: int, *, step_size: float, batch_size: int) -> float:
    """E‖u⁺‖²/‖u‖² of the difference u = w − w′, given that the changed example is not drawn.

    u⁺ = u − γ·Σ_b x_b x_bᵀu over B draws from the n−1 others.
    """
    others = np.delete(X, changed, axis=0)
    steps = others * (others @ u)[:, None]
    mean = steps.mean(axis=0)
    variance = float(np.square(steps).sum() / len(steps) - mean @ mean)
    moved = u - step_size * batch_size * mean
    return float(moved @ moved + batch_size * step_size**2 * variance) / float(u @ u)
