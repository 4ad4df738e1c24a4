"""Measuring costs at most a tenth of training: counted over every cell of a profile, as if no run stopped early.

An example costs three forward passes to train on, one to evaluate, and four for its part of an exact B_D. Where B_D
itself is the question (structure, mechanisms), measuring is the work.
"""

import math

import pytest

from variegrad.experiments import experiment
from variegrad.experiments.records import Record
from variegrad.experiments.training_run import BOUND_EXAMPLES


def filled(chosen, settings):
    """All records that an experiment asks for; every configuration is best at the middle of its grid."""
    records = {}
    middle = sorted(settings["grid"])[len(settings["grid"]) // 2] / 4
    while missing := [cell for cell in chosen.cells(settings, records) if cell.key not in records]:
        for cell in missing:
            off = 1 + abs(math.log2(cell["step_size"] * cell["batch_size"]) - middle)
            values = {"diverged": False, "needed": off, "online_loss": off, "end_loss": off}
            records[cell.key] = Record(cell=cell, values=values, seconds=0)
    return records


def cost(cell, n, twins):
    """Forward passes of an example, (trained, measured)."""
    trained, points = 3 * cell["at"][-1], len(cell["at"])
    bounded = min(n, BOUND_EXAMPLES)
    if "replaced" in cell.values:  # its share of the unchanged run; B_D(w, w') at every second point, at two weights
        bounds = 0 if cell["replaced"] else 2 * 4 * n * (points // 2)
        return trained * (1 + 1 / twins), bounds + n * (points + 1) / twins
    every = cell.values.get("bounds_every", 0)
    return trained, n * (points + 1) + (4 * bounded * (points // every + 1) if every else 0)


@pytest.mark.parametrize("profile", ["small", "paper"])
@pytest.mark.parametrize("name", ["figure-1b", "figure-2b", "figure-2c", "figure-3a", "figure-3bc"])
def test_measuring_is_at_most_a_tenth_of_training(name, profile):
    chosen = experiment(name)
    settings = {**chosen.profiles[profile], "seed_offset": 0, "data": "none"}
    n = settings["examples"] = settings["max_examples"] or 50_000
    costs = [cost(r.cell, n, settings.get("replaced", 1)) for r in filled(chosen, settings).values()]
    trained, measured = map(sum, zip(*costs, strict=True))
    assert 0 < measured <= 0.1 * trained
