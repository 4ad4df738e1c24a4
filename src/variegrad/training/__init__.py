"""Mini-batch SGD, equation (2) of the paper."""

from variegrad.training.sgd import Update, descend

__all__ = ["Update", "descend"]
