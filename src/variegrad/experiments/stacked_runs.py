"""Training runs of one configuration side by side: seeds and step sizes stacked, differentiated together by torch.func.

Worth it where one update keeps a device idle, as on a GPU; convolutions on a CPU gain nothing, so that there each run
is alone. A stacked run is the run of `training_run.run_once` up to the order of summation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from variegrad.experiments import data
from variegrad.experiments.records import Cell
from variegrad.experiments.training_run import TrainingRun, config, run_once
from variegrad.per_example.evaluate import Losses


def run(group: Sequence[Cell], device: torch.device = data.CPU) -> list[dict[str, Any]]:
    """The cells of a group: one, or a stack.

    Args:
        group: the cells; more than one are equal but for seed and step size.
        device: where they are trained.

    Returns:
        Their values.
    """
    return [run_once(group[0], device)] if len(group) == 1 else run_stack(group, device)


def stack(cell: Cell) -> object:
    """Which cells may be stacked: those of SGD for which it is equal; a mechanism draws for one model at a time.

    Args:
        cell: of a training run.

    Returns:
        A key.
    """
    if cell.values.get("drop") or cell.values.get("optimizer"):
        return cell.key
    rest = {name: value for name, value in cell.values.items() if name not in ("seed", "step_size")}
    return json.dumps(rest, sort_keys=True)


def run_stack(cells: Sequence[Cell], device: torch.device) -> list[dict[str, Any]]:
    """Runs that differ in seed and step size alone, without a mechanism.

    Losses are read from the device at points only. A run that diverged or arrived stays in the stack, unread.

    Args:
        cells: of the runs.
        device: where they are trained.

    Returns:
        Their values.
    """
    runs = [TrainingRun(cell, device) for cell in cells]
    n, size, at = len(runs[0].examples), cells[0]["batch_size"], cells[0]["at"]
    sampling = config(cells[0], n).sampling
    for one in runs:
        one.note(0.0)
    state, _ = stack_module_state([one.model for one in runs])
    weights = {f"model.{name}": value.detach() for name, value in state.items()}
    gammas = torch.tensor([cell["step_size"] for cell in cells], device=device)
    steps = {name: gammas.view(-1, *[1] * (w.dim() - 1)).to(w.dtype) for name, w in weights.items()}
    differentiate = vmap(grad_and_value(_total(runs[0].model, runs[0].problem.losses)))
    diverged: list[bool | None] = [None] * len(runs)  # None while a run goes on
    unread: list[Tensor] = []
    for position in range(0, at[-1], size):
        drawn = [sampling.samples(cell["seed"], range(position, position + size), n).to(device) for cell in cells]
        columns = zip(*(one.examples.tensors for one in runs), strict=True)
        batch = tuple(torch.stack([c[rows] for c, rows in zip(column, drawn, strict=True)]) for column in columns)
        gradients, sums = differentiate(weights, batch)
        weights = {name: w - steps[name] * gradients[name] for name, w in weights.items()}
        unread.append(sums.detach())
        if position + size < at[max(one.points for one in runs)]:
            continue
        losses = (torch.stack(unread, 1) / size).tolist()
        unread = []
        for place, one in enumerate(runs):
            if diverged[place] is None:
                diverged[place] = _noted(one, losses[place], size, weights, place, (position + size) / n)
        if None not in diverged:
            break
    return [one.values(diverged=bool(ended)) for one, ended in zip(runs, diverged, strict=True)]


def _noted(
    one: TrainingRun, losses: Sequence[float], size: int, weights: dict[str, Tensor], place: int, passes: float
) -> bool | None:
    """Measure one run of the stack; whether it diverged, None if it goes on."""
    for loss in losses:
        if not math.isfinite(loss):
            return True
        one.took(loss, size)
    with torch.no_grad():
        for name, parameter in one.model.named_parameters():
            parameter.copy_(weights[f"model.{name}"][place])
    if not one.note(passes):
        return True
    return False if one.ended else None


class _Losses(nn.Module):
    """`losses(model, batch)` as a module, so that its weights can be given from outside."""

    def __init__(self, model: nn.Module, losses: Losses) -> None:
        super().__init__()
        self.model, self.losses = model, losses

    def forward(self, batch: tuple[Tensor, ...]) -> Tensor:
        return self.losses(self.model, batch).sum()


def _total(model: nn.Module, losses: Losses) -> Any:
    wrapped = _Losses(model, losses)
    return lambda one, batch: functional_call(wrapped, one, (batch,))
