"""Mini-batch SGD, equation (2) of the paper: one worker or many, with a mechanism or without."""

from variegrad.training.config import TrainConfig
from variegrad.training.evaluation import Evaluation
from variegrad.training.every import Every
from variegrad.training.not_finite import Skip, Stop
from variegrad.training.projection import Ball, Box
from variegrad.training.sampling import Epochs, WithReplacement
from variegrad.training.sgd import train
from variegrad.training.step import Seconds, Step
from variegrad.training.tuning import Arm, Tuned, tune
from variegrad.training.twin_runs import TwinRuns, twin_runs

__all__ = [
    "Arm",
    "Ball",
    "Box",
    "Epochs",
    "Evaluation",
    "Every",
    "Seconds",
    "Skip",
    "Step",
    "Stop",
    "TrainConfig",
    "Tuned",
    "TwinRuns",
    "WithReplacement",
    "train",
    "tune",
    "twin_runs",
]
