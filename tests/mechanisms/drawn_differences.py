"""Differential diversity with a mechanism (Definition 6, Section 5.2): the same draws at both weights.

With one mask for an example at w and at w′, DropConnect makes D_iΔ_i of Δ_i = ∇f_i(w) − ∇f_i(w′), so its closed form
holds for the Δ_i as it does for gradients. Langevin noise that is shared cancels: B_D(w, w′) does not change.
"""

from __future__ import annotations

import torch
from torch import nn

from variegrad.batches import Batch
from variegrad.mechanisms.draws import Draws
from variegrad.mechanisms.example_gradients import ExampleGradients
from variegrad.mechanisms.finite import FiniteChecks
from variegrad.mechanisms.law import Mechanism
from variegrad.moments import GradientMoments
from variegrad.per_example.evaluate import Losses, evaluate, left_as_found, trained_parameters, unwrap


def drawn_differences(
    model: nn.Module,
    other: nn.Module,
    losses: Losses,
    batch: Batch,
    mechanism: Mechanism,
    *,
    seed: int = 0,
    samples_seen: int = 0,
) -> GradientMoments:
    """The moments of m(∇f_i(w)) − m(∇f_i(w′)), the draws for an example being the same at both weights.

    Average them over steps to compare with a closed form; `measure_differential(...).bound_with(mechanism)` is that of
    DropConnect. The models are left as they were found, and see the same draws of their own (dropout masks).

    Args:
        model: the model at w.
        other: the same model at w′.
        losses: `losses(model, batch) → (b,)`.
        batch: any nesting of tensors whose first dimension is the example; b×d numbers are held.
        mechanism: m.
        seed: of the draws.
        samples_seen: the number of the first example; others have fresh draws.

    Returns:
        n, Σ‖·‖² and Σ(·) over the examples of the batch.

    Raises:
        ValueError: if the models differ in their trained parameters, or a gradient is not finite.
    """
    model, other = unwrap(model), unwrap(other)
    parameters, others = trained_parameters(model), trained_parameters(other)
    if {n: p.shape for n, p in parameters.items()} != {n: p.shape for n, p in others.items()}:
        raise ValueError("drawn_differences compares one model at two weights; their trained parameters differ.")
    random_state = torch.get_rng_state()
    with left_as_found(model), left_as_found(other):
        here = _drawn_rows(model, losses, batch, mechanism, seed, samples_seen)
        torch.set_rng_state(random_state)
        there = _drawn_rows(other, losses, batch, mechanism, seed, samples_seen)
    differences = {name: rows.double() - there[name].double() for name, rows in here.items()}
    return GradientMoments(
        count=len(next(iter(differences.values()))),
        sum_sq_norms={name: float(rows.square().sum()) for name, rows in differences.items()},
        gradient_sum={name: rows.sum(0) for name, rows in differences.items()},
    )


def _drawn_rows(
    model: nn.Module, losses: Losses, batch: Batch, mechanism: Mechanism, seed: int, samples_seen: int
) -> dict[str, torch.Tensor]:
    parameters = trained_parameters(model)
    found = ExampleGradients(model, losses, batch, evaluate(model, losses, batch), parameters, FiniteChecks())
    norms = found.norms() if mechanism.needs_norms else None
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in parameters}
    with torch.no_grad():
        for tile in found.tiles():
            stop = tile.start + len(tile.rows)
            here = None if norms is None else norms[tile.start : stop]
            numbers = range(samples_seen + tile.start, samples_seen + stop)
            draws = Draws.keyed(seed, tile.name, parameters[tile.name], numbers, norms=here)
            rows[tile.name].append(mechanism.draw(tile.rows, draws))
    return {name: torch.cat(parts) for name, parts in rows.items()}
