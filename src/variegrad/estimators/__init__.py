"""B_D from a sample, with an honest interval: from examples, workers, sign probes, and pooled over steps."""

from variegrad.advice import (
    Advice,
    Limited,
    Regime,
    StepSizeRule,
    adam_step_size_factor,
    advise,
    sgd_step_size_factor,
)
from variegrad.estimators.batch_size_estimate import BatchSizeEstimate
from variegrad.estimators.dual_norm import (
    DualNormEstimate,
    FoldTerms,
    dual_norm_estimate,
    estimate_in_dual_norm,
    terms_of_groups,
)
from variegrad.estimators.from_batch import by_group, by_layer, by_parameter, estimate
from variegrad.estimators.geometry import Euclidean, Preconditioned, Sign, Spectral, geometry_of
from variegrad.estimators.pooled import pooled_estimate
from variegrad.estimators.sample import estimate_from_gram, estimate_from_norms
from variegrad.estimators.sample_size import GradientShape, examples_needed, gradient_shape, norms_needed
from variegrad.estimators.signed_probe import SignProbe, sign_probe
from variegrad.estimators.step_moments import (
    StepMoments,
    moments_from_norms,
    moments_from_workers,
)
from variegrad.estimators.workers import estimate_from_workers

__all__ = [
    "Advice",
    "BatchSizeEstimate",
    "DualNormEstimate",
    "Euclidean",
    "FoldTerms",
    "GradientShape",
    "Limited",
    "Preconditioned",
    "Regime",
    "Sign",
    "SignProbe",
    "Spectral",
    "StepMoments",
    "StepSizeRule",
    "adam_step_size_factor",
    "advise",
    "by_group",
    "by_layer",
    "by_parameter",
    "dual_norm_estimate",
    "estimate",
    "estimate_from_gram",
    "estimate_from_norms",
    "estimate_from_workers",
    "estimate_in_dual_norm",
    "examples_needed",
    "geometry_of",
    "gradient_shape",
    "moments_from_norms",
    "moments_from_workers",
    "norms_needed",
    "pooled_estimate",
    "sgd_step_size_factor",
    "sign_probe",
    "terms_of_groups",
]
