"""Diversity-inducing mechanisms (Section 4.4), each a law and a draw, applied to gradients by `backward`."""

from variegrad.mechanisms.backward_step import backward
from variegrad.mechanisms.description import Description
from variegrad.mechanisms.draws import Draws
from variegrad.mechanisms.dropconnect import DropConnect
from variegrad.mechanisms.langevin import Langevin
from variegrad.mechanisms.law import Composed, Mechanism
from variegrad.mechanisms.moment_matched import MomentMatched
from variegrad.mechanisms.quantize import Quantize

__all__ = [
    "Composed",
    "Description",
    "Draws",
    "DropConnect",
    "Langevin",
    "Mechanism",
    "MomentMatched",
    "Quantize",
    "backward",
]
