"""The paper's statements as functions: bounds from the data, convergence, the worst case, stability.

Each has a name that says what it computes; the statements with a number are found by it, too: `theorem_2` is
`rates_smooth`.
"""

from __future__ import annotations

import warnings
from typing import Any

from variegrad.theory import constants
from variegrad.theory.glm import GLMBound, glm_bound, remark_1
from variegrad.theory.least_squares import LeastSquaresBound, least_squares_bound
from variegrad.theory.lemma import expected_sq_distance
from variegrad.theory.mechanism_speed import MechanismTime, communication_that_pays, mechanism_time, updates_factor
from variegrad.theory.random_features import (
    gaussian_bound,
    gaussian_failure_probability,
    gaussian_limit,
    sub_gaussian_bound,
    sub_gaussian_failure_probability,
)
from variegrad.theory.rates import (
    Rates,
    Schedule,
    rates_convex,
    rates_polyak_lojasiewicz,
    rates_smooth,
    rates_strongly_convex,
)
from variegrad.theory.sparse import SparseBound, conflict_degree, remark_2, sparse_bound
from variegrad.theory.speed import BatchChoice, LocalStep, best_batch_size, efficiency, local_step, speed_up
from variegrad.theory.stability import (
    Stability,
    largest_step_size,
    resampling_failure_probability,
    stability_convex,
    stability_strongly_convex,
    threshold,
)
from variegrad.theory.trajectory import average_gap_along, distance_along, gap_along, gradient_along
from variegrad.theory.worst_case_rates import WorstCase, largest_delta, worst_case

lemma_1 = expected_sq_distance
theorem_2, theorem_3 = rates_smooth, rates_polyak_lojasiewicz
theorem_4, theorem_5 = rates_convex, rates_strongly_convex
theorem_6 = worst_case
theorem_9, theorem_10 = stability_convex, stability_strongly_convex

FORMER = {name: f"rates_{name}" for name in ("smooth", "polyak_lojasiewicz", "convex", "strongly_convex")}


def __getattr__(name: str) -> Any:
    """A function by its former name, with a warning."""
    if name not in FORMER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"theory.{name} is now theory.{FORMER[name]}.", DeprecationWarning, stacklevel=2)
    return globals()[FORMER[name]]


__all__ = [
    "BatchChoice",
    "GLMBound",
    "LeastSquaresBound",
    "LocalStep",
    "MechanismTime",
    "Rates",
    "Schedule",
    "SparseBound",
    "Stability",
    "WorstCase",
    "average_gap_along",
    "best_batch_size",
    "communication_that_pays",
    "conflict_degree",
    "constants",
    "distance_along",
    "efficiency",
    "expected_sq_distance",
    "gap_along",
    "gaussian_bound",
    "gaussian_failure_probability",
    "gaussian_limit",
    "glm_bound",
    "gradient_along",
    "largest_delta",
    "largest_step_size",
    "least_squares_bound",
    "lemma_1",
    "local_step",
    "mechanism_time",
    "rates_convex",
    "rates_polyak_lojasiewicz",
    "rates_smooth",
    "rates_strongly_convex",
    "remark_1",
    "remark_2",
    "resampling_failure_probability",
    "sparse_bound",
    "speed_up",
    "stability_convex",
    "stability_strongly_convex",
    "sub_gaussian_bound",
    "sub_gaussian_failure_probability",
    "theorem_2",
    "theorem_3",
    "theorem_4",
    "theorem_5",
    "theorem_6",
    "theorem_9",
    "theorem_10",
    "threshold",
    "updates_factor",
    "worst_case",
]
