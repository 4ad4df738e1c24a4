"""Mini-batch SGD, equation (2) of the paper: one worker or many, with a mechanism or without."""

import warnings

from variegrad.training.cadence import Cadence
from variegrad.training.config import Phases, TrainConfig
from variegrad.training.evaluation import Evaluation
from variegrad.training.not_finite import Skip, Stop
from variegrad.training.projection import Ball, Box
from variegrad.training.sampling import Epochs, Stream, WithReplacement
from variegrad.training.sgd import shared_gradient, train
from variegrad.training.tuning import Arm, Tuned, tune
from variegrad.training.twins import TwinRuns, twin_runs
from variegrad.training.update import Position, Seconds, Update

__all__ = [
    "Arm",
    "Ball",
    "Box",
    "Cadence",
    "Epochs",
    "Evaluation",
    "Phases",
    "Position",
    "Seconds",
    "Skip",
    "Stop",
    "Stream",
    "TrainConfig",
    "Tuned",
    "TwinRuns",
    "Update",
    "WithReplacement",
    "shared_gradient",
    "train",
    "tune",
    "twin_runs",
]


FORMER = {"Every": Cadence, "Step": Update}


def __getattr__(name: str) -> object:
    if name not in FORMER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    new = FORMER[name]
    warnings.warn(f"variegrad.training.{name} is now {new.__name__}.", DeprecationWarning, stacklevel=2)
    return new
