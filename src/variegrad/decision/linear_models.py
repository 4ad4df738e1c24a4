"""What is certain of a linear model from its data alone: β, M², a lower bound of B_D, and the bound of Theorem 9."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.sparse import hstack, issparse
from torch import nn

from variegrad.batches import passes_over
from variegrad.problems import Problem
from variegrad.problems.classification import logistic_losses, softmax_losses
from variegrad.problems.sparse_rows import SparseRows
from variegrad.theory import Stability, constants, glm_bound, stability_convex
from variegrad.theory.constants import Constant

# sup ℓ″ and sup |ℓ′| of the losses for which a linear model has certificates.
KNOWN_LOSSES: dict[Callable[..., Any], tuple[float, float]] = {
    logistic_losses: (0.25, 1.0),
    softmax_losses: (0.5, math.sqrt(2)),
}


def certificates(problem: Problem, l2: float) -> tuple[dict[str, Constant], Any]:
    """β, M² and inf B_D from the data, if the problem is a linear model with a known loss and no L2 term.

    Args:
        problem: which.
        l2: λ of its L2 term.

    Returns:
        The constants by symbol, and the design matrix; none and None for another problem.
    """
    if not certified(problem, l2):
        return {}, None
    curvature, slope = KNOWN_LOSSES[problem.losses]
    X = _features(problem)
    if any(name.endswith("bias") for name, _ in problem.model.named_parameters()):
        ones = np.ones((X.shape[0], 1))
        X = hstack([X, ones], format="csr") if issparse(X) else np.hstack([X, ones])
    data_only = glm_bound(X, centring=False)
    basis = "n/σ²_max of the normalised rows, the intercept's column included; " + data_only.certificate
    return {
        "β": constants.glm_smoothness(X, curvature=curvature),
        "M²": constants.glm_second_moment(X, slope=slope),
        "inf B_D, any w": Constant(value=data_only.bound, certified=True, basis=basis),
        "inf B_D, any w, one example left out": Constant(
            value=data_only.leave_one_out, certified=True, basis="(n−1)/σ²_max of the normalised rows"
        ),
    }, X


def certified(problem: Problem, l2: float) -> bool:
    """Whether the problem is one linear layer with a known loss and no L2 term.

    Args:
        problem: which.
        l2: λ of its L2 term.

    Returns:
        Whether it is.
    """
    layers = [layer for layer in problem.model.modules() if not isinstance(layer, nn.Sequential | nn.Flatten)]
    return problem.losses in KNOWN_LOSSES and len(layers) == 1 and isinstance(layers[0], nn.Linear) and not l2 > 0


def _features(problem: Problem) -> Any:
    """The design matrix in float64: sparse if the data are."""
    if isinstance(problem.train, SparseRows):
        return problem.train.features.astype(np.float64)
    return np.concatenate([batch[0].flatten(1).double().numpy() for batch in passes_over(problem.train, 4096)])


def stability(
    problem: Problem, X: Any, *, leave_one_out: float, batch_size: int, step_size: float, updates: int
) -> Stability | None:
    """Theorem 9 at a plan's batch size.

    Args:
        problem: a linear model with a known loss.
        X: its design matrix, of `certificates`.
        leave_one_out: inf B_D without any one example.
        batch_size: B.
        step_size: γ of the summed gradient.
        updates: single-example updates of the run.

    Returns:
        The bound; None without a design matrix.
    """
    if X is None or X.shape[0] < 2:
        return None
    curvature, slope = KNOWN_LOSSES[problem.losses]
    largest = float((X.multiply(X) if issparse(X) else np.square(X)).sum(axis=1).max())
    return stability_convex(
        batch_size=batch_size,
        step_size=step_size,
        smoothness=curvature * largest,
        lipschitz=slope * math.sqrt(largest),
        updates=updates,
        examples=X.shape[0],
        leave_one_out=leave_one_out,
    )
