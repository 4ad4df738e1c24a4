"""One training run as one cell: `train` at fixed settings, with losses, accuracies and the exact B_D along the way.

Runs of different batch sizes draw the same samples in the same order and are measured at equal numbers of samples. A
run that diverges is a result, not an error: its losses are infinite from there on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from variegrad.experiments import data
from variegrad.experiments.networks import network
from variegrad.experiments.records import Cell
from variegrad.measurement import measure
from variegrad.mechanisms import DropConnect
from variegrad.per_example.evaluate import NotFinite
from variegrad.training import TrainConfig, train
from variegrad.training.evaluation import mean_of

BOUND_EXAMPLES = 1000  # B_D is exact over this many examples of the training set, its first ones


def run_once(cell: Cell) -> dict[str, Any]:
    """Train and measure.

    Args:
        cell: with problem, max_examples, network, r, drop, batch_size, step_size, seed, `at` (samples after which it is
            measured), `bounds` (whether B_D is measured there, too) and perhaps `target` (a training accuracy that
            ends the run).

    Returns:
        `passes`, `losses`, `accuracies`, `test_losses`, `test_accuracies`, `bounds` at the points, `online_loss`, the
        mean of the batches' losses over all updates, and `diverged`.
    """
    problem = data.problem(cell["problem"], cell["max_examples"])
    trained_on = data.replicated(cell["problem"], cell["max_examples"], cell["r"], cell["seed"])
    model = fresh(cell, data.tensors(cell["problem"], cell["max_examples"]))  # copies of a few may lack some class
    config = TrainConfig(
        batch_size=cell["batch_size"], step_size=cell["step_size"], seed=cell["seed"],
        passes=cell["at"][-1] / len(trained_on),
        mechanism=DropConnect(cell["drop"]) if cell["drop"] else None,
    )  # fmt: skip
    scored = problem.accuracy
    assert scored is not None
    found: dict[str, list[float]] = {name: [] for name in _CURVES}

    def note(passes: float) -> bool:
        found["passes"].append(passes)
        for name, score, data_set in (
            ("losses", problem.losses, trained_on), ("accuracies", scored, trained_on),
            ("test_losses", problem.losses, problem.test), ("test_accuracies", scored, problem.test),
        ):  # fmt: skip
            found[name].append(mean_of(score, model, data_set))
        whole = all(torch.isfinite(p).all() for p in model.parameters()) and math.isfinite(found["losses"][-1])
        if cell["bounds"]:
            first = TensorDataset(*(column[:BOUND_EXAMPLES] for column in trained_on.tensors))
            found["bounds"].append(measure(model, problem.losses, first).batch_size_bound if whole else math.nan)
        return whole

    target = cell.values.get("target", math.inf)
    note(0.0)
    online, updates, diverged = 0.0, 0, False
    try:
        for step in train(model, problem.losses, trained_on, config):
            online, updates = online + step.mean_loss, updates + 1
            if step.examples >= cell["at"][len(found["passes"]) - 1]:
                diverged = not note(step.passes)
                if diverged or found["accuracies"][-1] >= target:
                    break
    except NotFinite:
        diverged = True
    if diverged:
        for name in ("losses", "test_losses"):
            found[name] += [math.inf] * (len(cell["at"]) + 1 - len(found[name]))
    return {**found, "online_loss": math.inf if diverged else online / updates, "diverged": diverged}


_CURVES = ("passes", "losses", "accuracies", "test_losses", "test_accuracies", "bounds")


def aligned(passes: float, points: int, n: int, largest: int) -> list[int]:
    """Samples to measure after: whole updates of the largest batch, so that all batch sizes are compared alike.

    Args:
        passes: how long the run is.
        points: how many measurements after the start.
        n: examples in the training set.
        largest: the largest batch size; the others divide it.

    Returns:
        Numbers of samples, increasing.
    """
    updates = max(points, round(passes * n / largest))
    return [round(updates * k / points) * largest for k in range(1, points + 1)]


def fresh(cell: Mapping[str, Any] | Any, dataset: TensorDataset) -> nn.Module:
    """The cell's network at its starting weights.

    Args:
        cell: with network and seed.
        dataset: examples of every class.

    Returns:
        The network.
    """
    x, y = dataset.tensors
    return network(cell["network"], tuple(x.shape[1:]), int(y.max()) + 1, seed=cell["seed"])


def run(group: Sequence[Any]) -> list[dict[str, Any]]:
    """Each cell of a group, one after the other.

    Args:
        group: the cells.

    Returns:
        Their values.
    """
    return [run_once(cell) for cell in group]
