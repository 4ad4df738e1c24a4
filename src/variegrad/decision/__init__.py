"""From a number to a decision: what limits the batch at the learning rate in use, and the direct measurement of it."""

from variegrad.decision.branching import BranchResult, Tested, Trial, Verdict, branch
from variegrad.decision.limits import BatchChange, BatchLimit, Limit, StepLimits
from variegrad.decision.many_workers import AtWorkers, Link
from variegrad.decision.measured import step_limits
from variegrad.decision.planning import Plan, PlanLimit, plan
from variegrad.decision.rules import LearningRateRule
from variegrad.decision.schedule import BatchSchedule, Stage
from variegrad.decision.timing import StepTime, stated_step_time, step_time

__all__ = [
    "AtWorkers",
    "BatchChange",
    "BatchLimit",
    "BatchSchedule",
    "BranchResult",
    "LearningRateRule",
    "Limit",
    "Link",
    "Plan",
    "PlanLimit",
    "Stage",
    "StepLimits",
    "StepTime",
    "Tested",
    "Trial",
    "Verdict",
    "branch",
    "plan",
    "stated_step_time",
    "step_limits",
    "step_time",
]
