"""The paper's experiments, one file a figure or table: PROFILES, cells, run, plot, summary (`Experiment`)."""

from variegrad.experiments.experiment import Experiment
from variegrad.experiments.registry import experiment, names

__all__ = ["Experiment", "experiment", "names"]
