"""The paper's statements as functions: bounds from the data, convergence, the worst case, stability."""

from __future__ import annotations

from variegrad.theory import constants
from variegrad.theory.glm import GLMBound, glm_bound, remark_1
from variegrad.theory.least_squares import LeastSquaresBound, least_squares_bound
from variegrad.theory.lemma import expected_sq_distance
from variegrad.theory.random_features import (
    gaussian_bound,
    gaussian_failure_probability,
    gaussian_limit,
    sub_gaussian_bound,
)
from variegrad.theory.rates import Rates, Schedule, convex, polyak_lojasiewicz, smooth, strongly_convex
from variegrad.theory.sparse import SparseBound, conflict_degree, remark_2, sparse_bound
from variegrad.theory.speed import BatchChoice, LocalStep, best_batch_size, efficiency, local_step, speed_up
from variegrad.theory.stability import (
    Stability,
    resampling_failure_probability,
    stability_convex,
    stability_strongly_convex,
    threshold,
)
from variegrad.theory.trajectory import average_gap_along, distance_along, gap_along, gradient_along
from variegrad.theory.worst_case_rates import WorstCase, largest_delta, worst_case

__all__ = [
    "BatchChoice",
    "GLMBound",
    "LeastSquaresBound",
    "LocalStep",
    "Rates",
    "Schedule",
    "SparseBound",
    "Stability",
    "WorstCase",
    "average_gap_along",
    "best_batch_size",
    "conflict_degree",
    "constants",
    "convex",
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
    "least_squares_bound",
    "local_step",
    "polyak_lojasiewicz",
    "remark_1",
    "remark_2",
    "resampling_failure_probability",
    "smooth",
    "sparse_bound",
    "speed_up",
    "stability_convex",
    "stability_strongly_convex",
    "strongly_convex",
    "sub_gaussian_bound",
    "threshold",
    "worst_case",
]
