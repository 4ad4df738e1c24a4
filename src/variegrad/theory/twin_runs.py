"""Differential diversity where Theorems 9 and 10 use it: along two runs on data sets that differ in one example.

Both runs draw the same indices and start from the same weights. Only pairs (w_t, w′_t) enter the proof, so the smallest
B_D(w_t, w′_t) met is the empirical counterpart of inf B_D(w, w′): what was seen, not a bound.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from variegrad.theory.arguments import at_least_one, positive

Losses = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True, kw_only=True)
class TwinRuns:
    """Two runs side by side.

    Attributes:
        steps: after which iterations the others were measured.
        distances: ‖w − w′‖.
        normalised_distances: √(‖w−w′‖²/(‖w‖²+‖w′‖²)), as in Figure 3a.
        bounds: B_D(w, w′); +inf where the runs still agree and every difference of gradients is zero.
    """

    steps: Sequence[int]
    distances: Sequence[float]
    normalised_distances: Sequence[float]
    bounds: Sequence[float]

    @property
    def smallest_bound(self) -> float:
        """The smallest B_D(w_t, w′_t) met: empirical, not a bound over all pairs."""
        return min(self.bounds)

    def __str__(self) -> str:
        return (
            f"twin runs: ‖w − w′‖ = {self.distances[-1]:.4g} after {self.steps[-1]:,} iterations; smallest B_D(w, "
            f"w′) met "
            f"{self.smallest_bound:.4g} examples (empirical, not a bound)"
        )


def twin_runs(
    model: nn.Module,
    losses: Losses,
    data: Dataset[Any],
    neighbour: Dataset[Any],
    bound: Callable[[nn.Module, nn.Module], float],
    *,
    batch_size: int,
    step_size: float,
    iterations: int,
    every: int,
    seed: int,
) -> TwinRuns:
    """Run equation (2) twice, on data sets that differ in one example, with the same draws.

    Args:
        model: at its starting weights; it is not changed.
        losses: one loss for each example of a batch.
        data: the first data set.
        neighbour: the second, equal to the first but for one example.
        bound: B_D(w, w′) of two models, such as a call of `variegrad.measure_differential`.
        batch_size: B, drawn with replacement.
        step_size: γ, sum-normalised.
        iterations: how many steps.
        every: measure after every so many steps.
        seed: of the draws.

    Returns:
        Distances and differential bounds along the runs.

    Raises:
        ValueError: if a number is out of range, or the data sets differ in size.

    Source: Definition 6 and Theorem 9; the protocol of Figure 3a.
    """
    positive(step_size=step_size, iterations=iterations)
    at_least_one(batch_size=batch_size, every=every)
    n = len(data)  # type: ignore[arg-type]
    if len(neighbour) != n:  # type: ignore[arg-type]
        raise ValueError(f"data and neighbour must differ in one example only; got {n} and {len(neighbour)} examples.")  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    twins = (copy.deepcopy(model), copy.deepcopy(model))
    steps, distances, normalised, bounds = [], [], [], []
    for k in range(1, iterations + 1):
        indices = torch.randint(n, (batch_size,), generator=generator).tolist()
        for twin, examples in zip(twins, (data, neighbour), strict=True):
            _step(twin, losses, default_collate([examples[i] for i in indices]), step_size)
        if k % every == 0 or k == iterations:
            first, second = (torch.cat([p.detach().double().ravel() for p in twin.parameters()]) for twin in twins)
            gap = float((first - second).norm())
            size = math.sqrt(float(first @ first + second @ second))
            steps.append(k)
            distances.append(gap)
            normalised.append(gap / size if size else 0.0)
            # Equal weights make every difference of gradients zero, and any batch non-expansive.
            bounds.append(bound(*twins) if gap else math.inf)
    return TwinRuns(steps=steps, distances=distances, normalised_distances=normalised, bounds=bounds)


def _step(model: nn.Module, losses: Losses, batch: Any, step_size: float) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(losses(model, batch).sum(), trained, allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(trained, gradients, strict=True):
            if gradient is not None:
                parameter.sub_(gradient, alpha=step_size)
