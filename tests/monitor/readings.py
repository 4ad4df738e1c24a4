"""Readings to append, print and draw: an ordinary one and every odd one."""

import math

from variegrad.estimators import BatchSizeEstimate
from variegrad.monitor import Reading


def an_estimate(bound=100.0, low=60.0, high=200.0, lower=50.0, population=None):
    return BatchSizeEstimate(
        batch_size_bound=bound,
        low=low,
        high=high,
        lower_confidence_bound=lower,
        coherence=math.nan if math.isnan(bound) else 1 / bound,
        standard_error=0.001,
        confidence=0.95,
        count=30,
        population=population,
    )


def a_reading(step=16, *, batch_size=64, skipped=0, **of_estimate):
    return Reading.from_estimate(
        an_estimate(**of_estimate),
        step=step,
        first_step=1,
        examples=16,
        batch_size=batch_size,
        source="subset of 16 examples",
        pooled_steps=max(1, step // 16),
        skipped=skipped,
    )


ODD = {
    "ordinary": {},
    "population": {"population": 1500},
    "unbounded above": {"bound": math.inf, "high": math.inf},
    "unbounded above with a point estimate": {"high": math.inf},
    "cannot tell": {"bound": math.inf, "low": 1.0, "high": math.inf, "lower": 1.0},
    "cannot tell, bounded above": {"bound": 3.0, "low": 1.0, "lower": 1.0},
    "undefined": {"bound": math.nan, "low": 1.0, "high": math.inf, "lower": 1.0},
    "huge": {"bound": 1e12, "low": 1e11, "high": 1e13, "lower": 1e11},
}
