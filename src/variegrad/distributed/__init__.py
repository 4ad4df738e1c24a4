"""Several workers: who they are (`workers`), what they agree on, and what travels between them (`wire`)."""

from variegrad.distributed.comm_hook import AccumulatesReduced, GradientNotFinite, MechanismHook, mechanism_hook
from variegrad.distributed.refused import Refused

__all__ = ["AccumulatesReduced", "GradientNotFinite", "MechanismHook", "Refused", "mechanism_hook"]
