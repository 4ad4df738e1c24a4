"""variegrad: gradient diversity for PyTorch. How large can a mini-batch be, and what raises that limit?

One way in: `losses(model, batch) → (b,)`, one loss per example. See the README for a first measurement and
`docs/understand/paper.md` for the function that implements each statement of the paper.

Every name below is imported when it is first used, so that `import variegrad` costs nothing and a command loads only
what it needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from variegrad.former_names import keep
from variegrad.versions import __version__ as __version__

if TYPE_CHECKING:
    from variegrad import theory
    from variegrad.decision import BranchResult, LearningRateRule, Plan, StepLimits, Trial, branch, plan, step_limits
    from variegrad.distributed.comm_hook import MechanismHook
    from variegrad.distributed.workers import workers
    from variegrad.estimators import BatchSizeEstimate, advise, estimate, examples_needed, sign_probe
    from variegrad.measurement import measure, measure_differential
    from variegrad.mechanisms import DropConnect, Langevin, Mechanism, MomentMatched, Quantize, backward
    from variegrad.moments import Diversity, GradientMoments
    from variegrad.monitor import Monitor, Reading
    from variegrad.per_example import example_gradients, example_sq_norms, explain
    from variegrad.problems import Problem
    from variegrad.reports import report
    from variegrad.training import TrainConfig, shared_gradient, train, tune

keep()

_HOMES = {
    "BatchSizeEstimate": "estimators",
    "BranchResult": "decision",
    "Diversity": "moments",
    "DropConnect": "mechanisms",
    "GradientMoments": "moments",
    "Langevin": "mechanisms",
    "LearningRateRule": "decision",
    "Mechanism": "mechanisms",
    "MechanismHook": "distributed.comm_hook",
    "MomentMatched": "mechanisms",
    "Monitor": "monitor",
    "Plan": "decision",
    "Problem": "problems",
    "Quantize": "mechanisms",
    "Reading": "monitor",
    "StepLimits": "decision",
    "TrainConfig": "training",
    "Trial": "decision",
    "advise": "estimators",
    "backward": "mechanisms",
    "branch": "decision",
    "estimate": "estimators",
    "example_gradients": "per_example",
    "example_sq_norms": "per_example",
    "examples_needed": "estimators",
    "explain": "per_example",
    "measure": "measurement",
    "measure_differential": "measurement",
    "plan": "decision",
    "report": "reports",
    "shared_gradient": "training",
    "sign_probe": "estimators",
    "step_limits": "decision",
    "theory": "theory",
    "train": "training",
    "tune": "training",
    "workers": "distributed.workers",
}

__all__ = [
    "BatchSizeEstimate",
    "BranchResult",
    "Diversity",
    "DropConnect",
    "GradientMoments",
    "Langevin",
    "LearningRateRule",
    "Mechanism",
    "MechanismHook",
    "MomentMatched",
    "Monitor",
    "Plan",
    "Problem",
    "Quantize",
    "Reading",
    "StepLimits",
    "TrainConfig",
    "Trial",
    "advise",
    "backward",
    "branch",
    "estimate",
    "example_gradients",
    "example_sq_norms",
    "examples_needed",
    "explain",
    "measure",
    "measure_differential",
    "plan",
    "report",
    "shared_gradient",
    "sign_probe",
    "step_limits",
    "theory",
    "train",
    "tune",
    "workers",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'variegrad' has no attribute {name!r}")
    home = import_module(f"variegrad.{_HOMES[name]}")
    found = globals()[name] = home if name == "theory" else getattr(home, name)
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
