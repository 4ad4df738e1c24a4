"""Experiments by name: what is typed after `variegrad experiment`."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module

from variegrad.experiments.experiment import Experiment

NAMES = (
    "figure-1a", "figure-1b", "figure-2a", "figure-2b", "figure-2c", "figure-3a", "figure-3bc", "table-1", "theorem-6",
    "mechanisms", "structure", "critical-batch",
)  # fmt: skip
ALSO = {"figure-3b": "figure-3bc", "figure-3c": "figure-3bc"}  # one experiment serves both


def names() -> tuple[str, ...]:
    """The experiments that `experiment` knows.

    Returns:
        Their names, in the order of the paper.
    """
    return NAMES


def experiment(name: str) -> Experiment:
    """The experiment of this name.

    Args:
        name: one of `names()`, or figure-3b or figure-3c, which are one experiment.

    Returns:
        The experiment.

    Raises:
        ValueError: if there is none.
    """
    name = ALSO.get(name, name)
    if name not in NAMES:
        near = get_close_matches(name, NAMES, n=1)
        raise ValueError(
            f"unknown experiment {name!r}{f'; did you mean {near[0]!r}?' if near else '.'} "
            f"Known are {', '.join(NAMES)}."
        )
    found = import_module(f"variegrad.experiments.{name.replace('-', '_')}").EXPERIMENT
    assert isinstance(found, Experiment)
    return found
