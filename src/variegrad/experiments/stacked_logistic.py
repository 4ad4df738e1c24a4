"""Many runs of logistic regression at once: equation (2) for a stack of weight vectors that draw the same examples.

Runs that differ only in step size and mechanism share every batch: with the batch X_b (B × d) and stacked weights W
(runs × d) a step is two matrix products, P = ℓ′(W·X_bᵀ) and W ← W − diag(γ)·P·X_b. DropConnect per example is exact: a
mask M (B × d) of its own for every example of the batch turns the second product into P·(M∘X_b). The runs of a stack
share masks with one another, never two examples of a run. Each run is, up to rounding, what it would be alone, and
without a mechanism what `train` makes of it: sample number ℓ is the same at every batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from variegrad.keys import generator
from variegrad.shapes import Float, Int
from variegrad.training import WithReplacement


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One run, measured at equal numbers of samples.

    Attributes:
        losses: mean loss over the data; +inf or NaN once a run has diverged.
        bounds: the exact B_D, in examples.
        online_loss: mean over all updates of the batch's loss before the update. Its draws are independent of the
            weights, so that it is an unbiased estimate of the mean of F over all iterations, none left out.
    """

    losses: list[float]
    bounds: list[float]
    online_loss: float


def run_stack(
    features: Float[Tensor, "m d"],
    signs: Float[Tensor, " m"],
    weights: Float[Tensor, " d"],
    positions: Int[Tensor, " n"],
    *,
    batch_size: int,
    step_sizes: Sequence[float],
    drops: Sequence[float],
    at: Sequence[int],
    seed: int,
) -> list[Curve]:
    """Run mini-batch SGD with replacement for every (step size, drop probability) of the stack.

    Args:
        features: x_i, one per row.
        signs: y_i = ±1; the loss is log(1 + exp(−y_i⟨w, x_i⟩)).
        weights: w_0 of every run.
        positions: which row each of the n examples is: 0 … m−1, or with copies where the data are replicated.
        batch_size: B.
        step_sizes: γ of the summed gradient, one per run.
        drops: p of DropConnect on each example's gradient, rescaled by 1/(1−p), one per run; 0 for none.
        at: the updates after which losses and bounds are measured, increasing.
        seed: of draws and masks: functions of (seed, update), common to all runs.

    Returns:
        One curve a run, in their order.

    Raises:
        ValueError: if step sizes and drop probabilities differ in number.
    """
    if len(step_sizes) != len(drops):
        raise ValueError(f"one drop probability a step size is needed; got {len(drops)} and {len(step_sizes)}.")
    order = sorted(range(len(drops)), key=lambda run: drops[run])  # runs of one mechanism stand side by side
    first = {p: [drops[run] for run in order].index(p) for p in sorted(set(drops))}
    parts = [(p, slice(start, start + list(drops).count(p))) for p, start in first.items()]
    W = weights.repeat(len(order), 1)
    gammas = torch.tensor([step_sizes[run] for run in order], dtype=features.dtype)[:, None]
    rows, counts = positions.unique(return_counts=True)
    data = _Distinct(features[rows], signs[rows], counts)
    losses, bounds = data.measured(W)
    curves = [([loss], [bound]) for loss, bound in zip(losses, bounds, strict=True)]
    sampling = WithReplacement()
    targets, online, updates = set(at), torch.zeros(len(order), dtype=torch.float64), max(at, default=0)
    for update in range(updates):
        drawn = positions[sampling.batch(seed, update * batch_size, batch_size, len(positions))]
        X, y = features[drawn], signs[drawn]
        against = (W @ X.T).mul_(-y)  # −y·⟨w, x⟩ for each run and example
        online += softplus(against).mean(1)
        P = against.sigmoid_().mul_(y).mul_(gammas)  # −γ·ℓ′
        for p, runs in parts:
            W[runs].addmm_(P[runs], X if p == 0 else masked(X, p, seed, update))
        if update + 1 in targets:
            losses, bounds = data.measured(W)
            for (earlier_losses, earlier_bounds), loss, bound in zip(curves, losses, bounds, strict=True):
                earlier_losses.append(loss)
                earlier_bounds.append(bound)
    means = (online / max(updates, 1)).tolist()
    found = {
        run: Curve(losses=losses, bounds=bounds, online_loss=mean)
        for run, (losses, bounds), mean in zip(order, curves, means, strict=True)
    }
    return [found[run] for run in range(len(order))]


def masked(X: Float[Tensor, "b d"], p: float, seed: int, update: int) -> Float[Tensor, "b d"]:
    """The rows with each entry kept with probability 1−p and divided by 1−p, independently.

    For a logistic loss this is DropConnect on ∇f_i = ℓ′·x_i, coordinate by coordinate.

    Args:
        X: features of a batch.
        p: the drop probability.
        seed: of the run.
        update: the number of the update, from 0.

    Returns:
        The masked rows.
    """
    b, d = X.shape
    draws = generator(seed, "dropconnect", update)
    if p == 0.5:  # one random bit a coordinate is exact, and costs a thirtieth of a uniform number
        bits = np.unpackbits(np.frombuffer(draws.bytes(-(-b * d // 8)), dtype=np.uint8), count=b * d)
    else:
        bits = (draws.random(b * d) >= p).view(np.uint8)
    return X * torch.from_numpy(bits).reshape(b, d).to(X.dtype).div_(1 - p)


class _Distinct:
    """The distinct examples of a data set, each with its number of copies."""

    def __init__(self, features: Float[Tensor, "m d"], signs: Float[Tensor, " m"], counts: Int[Tensor, " m"]) -> None:
        self.features, self.signs, self.counts = features, signs, counts
        self.sq_norms = torch.linalg.vector_norm(features, dim=1).double().square() * counts

    def measured(self, W: Float[Tensor, "runs d"]) -> tuple[list[float], list[float]]:
        """Mean loss and exact B_D = n·Σ‖g_i‖²/‖Σg_i‖² of every run, with g_i = ℓ′_i·x_i."""
        count = int(self.counts.sum())
        against = (W @ self.features.T).mul_(-self.signs)
        slopes = against.sigmoid()
        parts = slopes.double().square() @ self.sq_norms
        total = ((slopes * (self.signs * self.counts)) @ self.features).double().square().sum(1)
        losses = softplus(against).double() @ self.counts.double() / count
        return losses.tolist(), (count * parts / total).tolist()
