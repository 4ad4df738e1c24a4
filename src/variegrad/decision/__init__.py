"""From a number to a decision: what limits the batch at the learning rate in use, and the direct measurement of it."""

from variegrad.decision.branch import BranchResult, Tested, Trial, Verdict, branch
from variegrad.decision.limits import BatchLimit, Limit, StepLimits, step_limits
from variegrad.decision.rules import LearningRateRule

__all__ = [
    "BatchLimit",
    "BranchResult",
    "LearningRateRule",
    "Limit",
    "StepLimits",
    "Tested",
    "Trial",
    "Verdict",
    "branch",
    "step_limits",
]
