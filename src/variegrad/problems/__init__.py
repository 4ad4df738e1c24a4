"""Problems to measure and train on: data in its published formats, the models of the paper, and data-set transforms."""

from variegrad.data_root import DataNotFound
from variegrad.problems.fetch import fetch
from variegrad.problems.models import cuda_convnet, group_norm, logistic_regression, mlp, mnist_cnn, resnet20
from variegrad.problems.neighbours import Neighbours, neighbours
from variegrad.problems.problem import Losses, Problem
from variegrad.problems.registry import load, names
from variegrad.problems.replicate import replicate

__all__ = [
    "DataNotFound",
    "Losses",
    "Neighbours",
    "Problem",
    "cuda_convnet",
    "fetch",
    "group_norm",
    "load",
    "logistic_regression",
    "mlp",
    "mnist_cnn",
    "names",
    "neighbours",
    "replicate",
    "resnet20",
]
