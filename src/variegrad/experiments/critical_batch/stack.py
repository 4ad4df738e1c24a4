"""Many runs of one network at once: R data orders × C settings (learning rate, start), each with weights of its own.

Runs of one data order share their batches. The gradient of each run is that of its own batch mean (`torch.func.vmap`
over both dimensions); the optimizers act per run. A run that diverges becomes NaN and disturbs no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from variegrad.experiments.critical_batch.tasks import Task
from variegrad.shapes import Float, Int

Tensors = dict[str, Tensor]
OPTIMIZERS = ("sgd", "momentum", "adamw", "sign", "muon")
MOMENTUM, BETAS, EPS, DECAY = 0.9, (0.9, 0.99), 1e-8, 0.01
MUON_MOMENTUM, NEWTON_SCHULZ = 0.95, (3.4445, -4.7750, 2.0315)
AT_ONCE = 12_288  # examples of a step over all runs: more do not fit the cache


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The state of R × C runs.

    Attributes:
        weights: name → (R, C, …).
        moments: first and second moments by name; what an optimizer does not use is absent.
        updates: made so far, (R, C).
    """

    weights: Tensors
    moments: Tensors
    updates: Float[Tensor, "R C"]

    def at(self, rows: slice | Tensor, columns: slice | Tensor) -> Runs:
        """Some of them: `rows`, then `columns`."""

        def cut(tensors: Tensors) -> Tensors:
            return {name: tensor[rows][:, columns] for name, tensor in tensors.items()}

        return Runs(weights=cut(self.weights), moments=cut(self.moments), updates=self.updates[rows][:, columns])

    def spread(self, rows: int) -> Runs:
        """The same for each of several data orders; this holds one."""

        def wide(tensor: Tensor) -> Tensor:
            return tensor.expand(rows, *tensor.shape[1:])

        return Runs(
            weights={name: wide(w) for name, w in self.weights.items()},
            moments={name: wide(m) for name, m in self.moments.items()},
            updates=wide(self.updates),
        )


class _Loss(nn.Module):
    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model, self.losses = task.model, task.losses

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.losses(self.model, (x, y)).mean()


class Stack:
    """A task's runs with one optimizer.

    Args:
        task: what is trained.
        optimizer: one of `OPTIMIZERS`.
    """

    def __init__(self, task: Task, optimizer: str) -> None:
        self.task, self.optimizer = task, optimizer
        whole = _Loss(task)

        def loss(weights: Tensors, x: Tensor, y: Tensor) -> Tensor:
            found: Tensor = functional_call(whole, {f"model.{name}": w for name, w in weights.items()}, (x, y))
            return found

        self._gradient = vmap(vmap(grad(loss), in_dims=(0, None, None)), in_dims=(0, 0, 0))
        self._loss = vmap(vmap(loss, in_dims=(0, None, None)), in_dims=(0, None, None))

    def start(self, columns: int) -> Runs:
        """One data order × C settings at the starting weights."""
        weights = {name: p.detach().expand(1, columns, *p.shape) for name, p in self.task.model.named_parameters()}
        names = {"sgd": (), "momentum": ("first",), "sign": ()}.get(self.optimizer, ("first", "second"))
        moments = {f"{kind} {name}": torch.zeros_like(w) for kind in names for name, w in weights.items()}
        return Runs(weights=weights, moments=moments, updates=torch.zeros(1, columns))

    @torch.no_grad()
    def train(
        self,
        runs: Runs,
        rates: Float[Tensor, " C"],
        *,
        seeds: Sequence[int],
        batch_size: int,
        examples: int,
        skipped: int = 0,
    ) -> Runs:
        """Train each data order's examples `skipped` … `examples`, in batches.

        Args:
            runs: R × C.
            rates: learning rate of each setting.
            seeds: of the data orders, R of them.
            batch_size: B.
            examples: last example of the order, a multiple of B.
            skipped: examples of the order that were used before, a multiple of B.

        Returns:
            The runs afterwards.
        """
        x, y = self.task.train
        order = [_order(seed, examples, len(x))[skipped:].reshape(-1, batch_size) for seed in seeds]
        together = max(1, AT_ONCE // (batch_size * len(rates)))
        parts = []
        for first in range(0, len(seeds), together):
            chosen = torch.stack(order[first : first + together], 1)  # (updates, R, B)
            part = runs.at(slice(first, first + together), slice(None))
            for rows in chosen:
                part = self._update(part, self._gradient(part.weights, x[rows], y[rows]), rates)
            parts.append(part)
        return _joined(parts)

    @torch.no_grad()
    def losses(self, runs: Runs) -> Float[Tensor, "R C"]:
        """The loss of each run on the evaluated examples; +inf once it has diverged."""
        x, y = self.task.evaluated
        total = torch.zeros_like(runs.updates)
        for part, labels in zip(x.split(256), y.split(256), strict=True):
            total += self._loss(runs.weights, part, labels) * len(part)
        return (total / len(x)).nan_to_num(nan=torch.inf)

    def _update(self, runs: Runs, gradients: Tensors, rates: Float[Tensor, " C"]) -> Runs:
        updates = runs.updates + 1
        weights: Tensors = {}
        moments: Tensors = {}
        for name, w in runs.weights.items():
            g = gradients[name]
            eta = rates.reshape(1, -1, *[1] * (w.ndim - 2))
            t = updates.reshape(*updates.shape, *[1] * (w.ndim - 2))
            old = {kind: runs.moments.get(f"{kind} {name}") for kind in ("first", "second")}
            weights[name], new = step(self.optimizer, w, g, old, eta, t)
            moments |= {f"{kind} {name}": m for kind, m in new.items()}
        return Runs(weights=weights, moments=moments, updates=updates)


def step(
    optimizer: str, w: Tensor, g: Tensor, old: dict[str, Any], eta: Tensor, t: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """One update of one parameter of R × C runs.

    Args:
        optimizer: one of `OPTIMIZERS`.
        w: (R, C, …).
        g: its gradient.
        old: its moments, "first" and "second", where the optimizer has them.
        eta: learning rates that broadcast against w.
        t: the number of this update, from 1, likewise.

    Returns:
        New weights and moments.
    """
    if optimizer == "sgd":
        return w - eta * g, {}
    if optimizer == "sign":
        return w - eta * g.sign(), {}
    if optimizer == "momentum":
        first = MOMENTUM * old["first"] + g
        return w - eta * first, {"first": first}
    if optimizer == "muon" and w.ndim >= 4 and min(w.shape[2], w[0, 0, 0].numel()) > 1:
        first = MUON_MOMENTUM * old["first"] + (1 - MUON_MOMENTUM) * g
        matrix = torch.lerp(first, g, 1 - MUON_MOMENTUM).flatten(3)  # Nesterov
        scale = 0.2 * max(matrix.shape[-2:]) ** 0.5
        return (1 - eta * DECAY) * w - eta * scale * _orthogonal(matrix).reshape(w.shape), {
            "first": first, "second": old["second"],
        }  # fmt: skip
    first = BETAS[0] * old["first"] + (1 - BETAS[0]) * g
    second = BETAS[1] * old["second"] + (1 - BETAS[1]) * g * g
    root = (second / (1 - BETAS[1] ** t)).sqrt() + EPS
    return (1 - eta * DECAY) * w - eta * first / (1 - BETAS[0] ** t) / root, {"first": first, "second": second}


def _orthogonal(matrix: Tensor) -> Tensor:
    """The orthogonal factor of each matrix, by five steps of Newton and Schulz (Jordan et al. 2024)."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[-2] > matrix.shape[-1]
    X = matrix.transpose(-1, -2) if tall else matrix
    X = X / (X.flatten(-2).norm(dim=-1)[..., None, None] + 1e-7)
    for _ in range(5):
        A = X @ X.transpose(-1, -2)
        X = a * X + (b * A + c * A @ A) @ X
    found: Tensor = X.mT if tall else X
    return found


def second_moments(runs: Runs) -> dict[str, Tensor]:
    """v̂ of each parameter of the first AdamW run."""
    t = float(runs.updates[0, 0])
    return {name: runs.moments[f"second {name}"][0, 0] / (1 - BETAS[1] ** t) for name in runs.weights}


def _order(seed: int, examples: int, count: int) -> Int[Tensor, " m"]:
    """The examples of a data order: draws with replacement; a longer order begins with the shorter one."""
    drawn = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randint(count, (1024,), generator=drawn) for _ in range(-(-examples // 1024))])[:examples]


def _joined(parts: Sequence[Runs]) -> Runs:
    if len(parts) == 1:
        return parts[0]
    return replace(
        parts[0],
        weights={name: torch.cat([part.weights[name] for part in parts]) for name in parts[0].weights},
        moments={name: torch.cat([part.moments[name] for part in parts]) for name in parts[0].moments},
        updates=torch.cat([part.updates for part in parts]),
    )
