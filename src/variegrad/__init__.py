"""variegrad: gradient diversity for PyTorch. How large may a mini-batch be, and what raises that limit?

One way in: `losses(model, batch) → (b,)`, one loss per example. See the README for a first measurement and
`docs/understand/paper.md` for which function stands for which statement of the paper.
"""

from variegrad import theory
from variegrad.distributed.workers import workers
from variegrad.estimate import BatchSizeEstimate, estimate
from variegrad.measure import measure, measure_differential
from variegrad.mechanisms import DropConnect, Langevin, Mechanism, MomentMatched, Quantize, backward
from variegrad.moments import Diversity, GradientMoments
from variegrad.monitor import Monitor, Reading
from variegrad.per_example import example_gradients, example_sq_norms, explain, sign_probe
from variegrad.training import TrainConfig, train, tune

__version__ = "0.1.0"

__all__ = [
    "BatchSizeEstimate",
    "Diversity",
    "DropConnect",
    "GradientMoments",
    "Langevin",
    "Mechanism",
    "MomentMatched",
    "Monitor",
    "Quantize",
    "Reading",
    "TrainConfig",
    "backward",
    "estimate",
    "example_gradients",
    "example_sq_norms",
    "explain",
    "measure",
    "measure_differential",
    "sign_probe",
    "theory",
    "train",
    "tune",
    "workers",
]
