"""How many updates a run on P workers needs to an accuracy: computed in one process, wherever it is convenient.

The number does not depend on the machine. The draws of P workers are functions of seed, sample and rank, so that one
process makes the same updates as P, up to the order of summation; a test compares the two. Seconds are this number
times the time per update (`timed_run`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from variegrad.batches import Batch
from variegrad.distributed.world import World
from variegrad.experiments import data
from variegrad.experiments.records import Cell
from variegrad.experiments.training_run import fresh
from variegrad.mechanisms import DropConnect
from variegrad.mechanisms.backward_step import backward
from variegrad.per_example.evaluate import Losses, NotFinite
from variegrad.training import WithReplacement
from variegrad.training.evaluation import mean_of

GROWTH = 1.15  # of the examples from one evaluation to the next


def run_once(cell: Cell) -> dict[str, Any]:
    """Train until the accuracy reaches the cell's target, or for the cell's number of examples.

    Args:
        cell: with problem, max_examples, network, drop, granularity ("example", "worker", or "half": plain gradients,
            summed over workers in float16), workers, batch_size, step_size, seed, target, most_examples, `first`
            (examples before the first evaluation) and `scored` (accuracy is that of the first examples, this many).

    Returns:
        `updates` and `accuracies` at each evaluation, and whether the run `diverged`.
    """
    problem = data.problem(cell["problem"], cell["max_examples"])
    examples = data.tensors(cell["problem"], cell["max_examples"])
    model = fresh(cell, examples)
    score = problem.accuracy
    assert score is not None
    scored = TensorDataset(*(column[: cell["scored"]] for column in examples.tensors))
    updates: list[int] = []
    accuracies: list[float] = []
    size, sampling, diverged = cell["batch_size"], WithReplacement(), False
    for number in range(1, math.ceil(cell["most_examples"] / size) + 1):
        position = (number - 1) * size
        indices = sampling.samples(cell["seed"], range(position, position + size), len(examples))
        try:
            _update(cell, model, problem.losses, tuple(column[indices] for column in examples.tensors), position)
        except NotFinite:
            diverged = True
            break
        if evaluated(position, position + size, cell["first"]):
            updates.append(number)
            accuracies.append(mean_of(score, model, scored))
            if accuracies[-1] >= cell["target"]:
                break
    return {"updates": updates, "accuracies": accuracies, "diverged": diverged}


def evaluated(before: int, after: int, first: int) -> bool:
    """Whether the accuracy is taken after an update: at `first` examples, and at every 15 % more.

    Args:
        before: examples seen before the update.
        after: and after it.
        first: examples before the first evaluation.

    Returns:
        Whether an evaluation fell due within it.
    """

    def due(examples: int) -> int:
        return 0 if examples < first else 1 + math.floor(math.log(examples / first) / math.log(GROWTH))

    return due(after) > due(before)


def run(group: Sequence[Cell]) -> list[dict[str, Any]]:
    """Each cell of a group, one after the other.

    Args:
        group: the cells.

    Returns:
        Their values.
    """
    return [run_once(cell) for cell in group]


def updates_to(values: Mapping[str, Any], target: float) -> float:
    """Updates until the training accuracy first reaches a target, interpolated linearly between two evaluations.

    Args:
        values: `updates` and `accuracies` of a run.
        target: the accuracy.

    Returns:
        A number of updates; +inf if the run does not reach the target.
    """
    before, below = 0.0, 0.0
    for updates, accuracy in zip(values["updates"], values["accuracies"], strict=True):
        if accuracy >= target:
            return float(before + (target - below) / (accuracy - below) * (updates - before))
        before, below = updates, accuracy
    return math.inf


def _update(cell: Cell, model: nn.Module, losses: Losses, batch: Batch, position: int) -> None:
    """W ← w − γ·Σ_r m(Σ_i ∇f_i), the share of one worker r after the other."""
    apart = cell["granularity"] != "example"
    mechanism = DropConnect(cell["drop"]) if cell["drop"] else None
    sums: dict[nn.Parameter, Tensor] = {}
    for rank in range(cell["workers"] if apart else 1):
        share = World(rank=rank, size=cell["workers"]).share(cell["batch_size"]) if apart else range(cell["batch_size"])
        part = tuple(column[share.start : share.stop] for column in batch)
        backward(
            model, losses, part, mechanism=mechanism, granularity="worker" if apart else "example", seed=cell["seed"],
            samples_seen=position, positions=share, total=cell["batch_size"], worker=rank,
        )  # fmt: skip
        for weight in model.parameters():
            assert weight.grad is not None
            mine = weight.grad
            if cell["granularity"] == "half":  # of the mean, as DDP's hook sends it
                mine = (mine / cell["batch_size"]).half()
            sums[weight] = sums[weight] + mine if weight in sums else mine
            weight.grad = None
    scale = cell["step_size"] * (cell["batch_size"] if cell["granularity"] == "half" else 1)
    with torch.no_grad():
        for weight, gradient in sums.items():
            weight.sub_(gradient.float(), alpha=scale)
