"""Two runs on data sets that differ in one example, with the same draws: what Theorems 9 and 10 follow, and Figure 3a.

Both start from the same weights and see the same indices, the same draws of the mechanism and the same dropout masks,
since all of these are functions of the seed and the place in the run. Only pairs (w_t, w′_t) enter the proofs, so the
smallest B_D(w_t, w′_t) met is the empirical counterpart of inf B_D(w, w′): what was seen, not a bound.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from variegrad.distributed.world import World
from variegrad.keys import torch_draws
from variegrad.measurement import measure_differential
from variegrad.mechanisms import DropConnect, Langevin
from variegrad.moments import Diversity
from variegrad.per_example.evaluate import Losses, trained_parameters, unwrap
from variegrad.problems.subset import size
from variegrad.training.cadence import Cadence
from variegrad.training.config import TrainConfig
from variegrad.training.sgd import train
from variegrad.training.update import Update


@dataclass(frozen=True, kw_only=True)
class TwinRuns:
    """Two runs side by side.

    Attributes:
        updates: after which updates the others were measured.
        passes: the same in passes over the data.
        distances: ‖w − w′‖.
        normalised_distances: √(‖w−w′‖²/(‖w‖²+‖w′‖²)), as in Figure 3a.
        bounds: B_D(w, w′); +inf if every difference of gradients is zero; empty if it was not requested.
        mechanism_bounds: B_DIM(w, w′) with the mechanism of the runs and the same draw at both weights; empty if
            there is none, or no closed form: one mask for a worker's whole sum has none.
    """

    updates: Sequence[int]
    passes: Sequence[float]
    distances: Sequence[float]
    normalised_distances: Sequence[float]
    bounds: Sequence[float]
    mechanism_bounds: Sequence[float]

    @property
    def smallest_bound(self) -> float:
        """The smallest B_D(w_t, w′_t) met: empirical, not a bound over all pairs; NaN if none was measured."""
        return min(self.bounds, default=math.nan)

    def __str__(self) -> str:
        met = f"; smallest B_D(w, w′) met {self.smallest_bound:.4g} examples (empirical, not a bound)"
        return f"twin runs: ‖w − w′‖ = {self.distances[-1]:.4g} after {self.updates[-1]:,} updates" + (
            met if self.bounds else ""
        )


def twin_runs(
    model: nn.Module,
    losses: Losses,
    data: Dataset[Any],
    neighbour: Dataset[Any],
    config: TrainConfig,
    world: World | None = None,
    *,
    every: Cadence,
    bounds: bool = True,
) -> TwinRuns:
    """Run equation (2) twice, on data sets that differ in one example, with the same draws.

    With a mechanism the gradient of an example is changed alike at both weights: the same mask (DropConnect: Δ_i →
    D_iΔ_i, so that the closed forms of Theorem 7 hold for B_D(w, w′)), or the same noise, which cancels (Langevin).

    Args:
        model: at its starting weights; it is not changed.
        losses: `losses(model, batch) → (b,)`.
        data: the first data set.
        neighbour: the second, equal to the first but for one example.
        config: of both runs; its `passes` must be finite.
        world: the workers; None for the process group that exists, or this process alone.
        every: how often the runs are compared; the last update always is.
        bounds: whether B_D(w, w′) is measured over all of `data`; distances alone are cheap.

    Returns:
        Distances and differential bounds along the runs; up to the last update before a stop that was requested.

    Raises:
        ValueError: if the data sets differ in size, the runs have no end, or as `train`.

    Source: Definition 6, Theorems 8 to 10; the protocol of Figure 3a.
    """
    n = size(data)
    if size(neighbour) != n:
        raise ValueError(f"data and neighbour must differ in one example only; got {n} and {size(neighbour)} examples.")
    if not math.isfinite(config.passes):
        raise ValueError("twin runs need an end: give config.passes a finite number.")
    twins = tuple(copy.deepcopy(unwrap(model)) for _ in range(2))
    found: list[tuple[int, float, float, float]] = []
    measured: list[Diversity | None] = []
    before = 0.0
    runs = [train(twin, losses, chosen, config, world) for twin, chosen in zip(twins, (data, neighbour), strict=True)]

    def measure(update: Update) -> None:
        gap, normalised = _distances(twins[0], twins[1])
        found.append((update.updates, update.passes, gap, normalised))
        if bounds:
            # Equal weights make every difference of gradients zero, and any batch non-expansive.
            with torch_draws(config.seed, "twins", update.updates):
                measured.append(measure_differential(twins[0], twins[1], losses, data) if gap else None)

    for update in runs[0]:
        next(runs[1])
        if every.due(update.updates, before, update.passes):
            measure(update)
        before = update.passes
    if not found or found[-1][0] != update.updates:
        measure(update)
    updates, passes, distances, normalised_distances = zip(*found, strict=True)
    return TwinRuns(
        updates=updates, passes=passes, distances=distances, normalised_distances=normalised_distances,
        bounds=[_or_infinite(None if d is None else d.batch_size_bound) for d in measured],
        mechanism_bounds=_with(config, measured),
    )  # fmt: skip


def _with(config: TrainConfig, measured: Sequence[Diversity | None]) -> list[float]:
    mechanism = config.mechanism
    if isinstance(mechanism, DropConnect) and config.granularity == "example":  # one mask for a sum is another law
        return [_or_infinite(None if d is None else d.bound_with(mechanism)) for d in measured]
    if isinstance(mechanism, Langevin):
        return [_or_infinite(None if d is None else d.batch_size_bound) for d in measured]
    return []  # not linear in the gradient: the difference of two draws has no closed form


def _or_infinite(bound: float | None) -> float:
    return math.inf if bound is None or math.isnan(bound) else bound


def _distances(first: nn.Module, second: nn.Module) -> tuple[float, float]:
    with torch.no_grad():
        w, v = (torch.cat([p.double().ravel() for p in trained_parameters(twin).values()]) for twin in (first, second))
        gap, total = float((w - v).norm()), math.sqrt(float(w @ w + v @ v))
    return gap, gap / total if total else 0.0
