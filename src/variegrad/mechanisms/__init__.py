"""Diversity-inducing mechanisms (Section 4.4), each with its law: E m(g) = c·g and Σ E‖m(g_i)‖²."""

from variegrad.mechanisms.dropconnect import DropConnect
from variegrad.mechanisms.langevin import Langevin
from variegrad.mechanisms.law import Mechanism
from variegrad.mechanisms.quantize import Quantize

__all__ = ["DropConnect", "Langevin", "Mechanism", "Quantize"]
