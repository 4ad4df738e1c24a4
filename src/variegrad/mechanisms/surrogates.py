"""Σ_i m(∇f_i) by parameter, for a part of a step: draws for each example, one draw for a worker, and a step's noise.

The mechanism is applied to the whole gradient of a *parameter*, all its uses summed. Never b×d memory: a tile of
examples at a time, and not even that for linear layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from variegrad.batches import Batch
from variegrad.mechanisms.draws import Draws
from variegrad.mechanisms.example_gradients import ExampleGradients, Product, Tile, as_reals, not_finite
from variegrad.mechanisms.finite import FiniteChecks, finite
from variegrad.mechanisms.law import Composed, Mechanism
from variegrad.mechanisms.moment_matched import MomentMatched
from variegrad.mechanisms.one_draw import WorkerKey, norm_of, row_of, surrogate, wide_of
from variegrad.per_example.evaluate import Losses, NotFinite, trained_parameters
from variegrad.shapes import Float

Totals = dict[str, Tensor]


@dataclass(frozen=True)
class StepKey:
    """What the draws of a part of a step are functions of, beside the parameter.

    Attributes:
        seed: the run's seed.
        samples_seen: before the step.
        places: of the examples in the step's whole batch.
        total: B, the examples of the step over all parts.
        worker: the rank.
        noise_part: (rank, size): this part's share of the step's noise; None for none of it.
    """

    seed: int
    samples_seen: int
    places: Sequence[int]
    total: int
    worker: int
    noise_part: tuple[int, int] | None


def surrogates(
    mechanism: Mechanism,
    granularity: str,
    model: nn.Module,
    losses: Losses,
    batch: Batch,
    per_example: Float[Tensor, " b"],
    key: StepKey,
) -> tuple[Totals, FiniteChecks]:
    """Σ_i m(∇f_i) by parameter, and whether all of it is finite, which is not read yet.

    Args:
        mechanism: m.
        granularity: "example" or "worker".
        model: unwrapped.
        losses: the user's function.
        batch: the batch.
        per_example: `losses(model, batch)`; its backward pass is run here.
        key: of the draws.

    Returns:
        The sums in the parameters' types, and the checks that must hold before they are used.

    Raises:
        NotFinite: if a norm that the draws need is not finite.
    """
    parameters, checks = trained_parameters(model), FiniteChecks()
    if granularity == "worker":
        totals = _summed(per_example, parameters)
        for name, g in totals.items():
            checks.note(finite(g), partial(not_finite, None, name))
        norm = norm_of(totals) if mechanism.needs_norms else None
        if norm is not None:
            _check_norms(norm, checks)
        totals = surrogate(totals, mechanism, WorkerKey(key.seed, key.samples_seen, key.worker), norm)
    else:
        core, noise = without_noise(mechanism)
        with _noise(noise, parameters, key) as drawn:
            if core is None:
                totals = _summed(per_example, parameters)  # noise does not hide what is not finite: checked below
            else:
                found = ExampleGradients(model, losses, batch, per_example, parameters, checks)
                draw = _moment_matched if isinstance(core, MomentMatched) else _drawn
                with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused by `checks`
                    totals = draw(core, found, parameters, key)  # type: ignore[arg-type]
            for noise_of in drawn:
                for name, values in noise_of().items():
                    totals[name] += values
    totals = {
        name: torch.view_as_complex(totals[name].contiguous()) if p.is_complex() else totals[name].to(p.dtype)
        for name, p in parameters.items()
    }
    for name, sums in totals.items():
        checks.note(finite(sums), partial(_overflow, mechanism, name))
    return totals, checks


def _overflow(mechanism: Mechanism, name: str) -> NotFinite:
    if without_noise(mechanism)[0] is None:
        why = ": their sum is not, or overflows with the noise"
    else:
        why = ", although they are: an overflow, or a draw that divides by zero"
    return NotFinite(
        f"what {mechanism} made of the gradients with respect to {name!r} is not finite{why}. Nothing was added to "
        ".grad."
    )


@contextmanager
def _noise(
    noise: Sequence[Mechanism], parameters: Mapping[str, nn.Parameter], key: StepKey
) -> Iterator[list[Callable[[], Totals]]]:
    """Draw this part's share of the step's noise: it depends on no gradient.

    In a thread beside the backward pass if that has one thread for itself; else afterwards, by all of torch's threads,
    which wait for each other wherever one of them has to share its processor.
    """
    if not noise or key.noise_part is None:
        yield []
        return
    rank, size = key.noise_part

    def draw() -> Totals:
        totals: Totals = {}
        for place, (name, parameter) in enumerate(parameters.items()):
            for number, each in enumerate(noise):
                part = (rank - place) % size, size  # parameters begin with one worker after the other
                draws = Draws.keyed(
                    key.seed, name, as_reals(parameter), [number], purpose="noise", at=key.samples_seen, part=part
                )
                values = each.noise_of_sum(key.total, draws)
                totals[name] = totals[name] + values if name in totals else values
        return totals

    if torch.get_num_threads() > 1:
        yield [draw]
        return
    with ThreadPoolExecutor(1) as thread:
        yield [thread.submit(draw).result]


def _check_norms(norms: Tensor, checks: FiniteChecks) -> None:
    """Refuse what is not finite before a draw that cannot take it: the one read that comes early."""
    checks.note(finite(norms), lambda: NotFinite(
        "the squared norm of a gradient is beyond float64, and a quantiser would make that gradient zero. Nothing was "
        "added to .grad. Scale the loss down."
    ))  # fmt: skip
    checks.refuse()


def _drawn(
    mechanism: Mechanism, found: ExampleGradients, parameters: Mapping[str, nn.Parameter], key: StepKey
) -> Totals:
    totals: Totals = {}
    numbers = [key.samples_seen + place for place in key.places]
    norms = found.norms() if mechanism.needs_norms else None
    if norms is not None:
        _check_norms(norms, found.checks)

    def draws(name: str, start: int, stop: int) -> Draws:
        here = None if norms is None else norms[start:stop]
        return Draws.keyed(key.seed, name, as_reals(parameters[name]), numbers[start:stop], norms=here)

    def add(name: str, drawn: Tensor) -> None:
        totals[name] = totals[name].add_(drawn) if name in totals else drawn

    def add_tile(tile: Tile) -> None:
        here = draws(tile.name, tile.start, tile.start + len(tile.rows))
        drawn = mechanism.sum_of_rows(tile.rows, here)
        if drawn is None:
            # A copy: rows may be a view of what the graph holds, and a mechanism may write into what it is given.
            drawn = row_of(mechanism, tile.rows.clone(), here).sum(0)
        add(tile.name, drawn)

    with torch.no_grad():
        for part in found:
            if isinstance(part, Tile):
                add_tile(part)
                continue
            drawn = mechanism.sum_of_outer(part.rows, part.columns, draws(part.name, 0, len(part.rows)))
            if drawn is not None:
                add(part.name, drawn)
            else:
                for tile in part.tiles():
                    add_tile(tile)
    return {name: totals[name] for name in parameters}


def _moment_matched(
    mechanism: MomentMatched,
    found: ExampleGradients,
    parameters: Mapping[str, nn.Parameter],
    key: StepKey,
) -> Totals:
    first_number = [key.samples_seen + key.places[0]]
    sums = {name: [torch.zeros_like(wide_of(as_reals(p))) for _ in range(2)] for name, p in parameters.items()}
    with torch.no_grad():
        for part in found:
            first, second = sums[part.name]
            if isinstance(part, Product):
                first.addmm_(part.rows.t(), part.columns)
                second.addmm_(part.rows.square().t(), part.columns.square())
            else:
                first += part.rows.sum(0)
                second += part.rows.square().sum(0)
        return {
            name: mechanism.draw_of_sum(
                total, squares, Draws.keyed(key.seed, name, as_reals(parameters[name]), first_number, purpose="moments")
            )
            for name, (total, squares) in sums.items()
        }


def _summed(per_example: Tensor, parameters: Mapping[str, nn.Parameter]) -> Totals:
    held = {name: p.grad for name, p in parameters.items()}
    try:
        for p in parameters.values():
            p.grad = None
        # `backward`, not `grad`: it goes into re-entrant checkpoints as well.
        per_example.sum().backward()
        totals = {}
        for name, p in parameters.items():
            gradient = torch.zeros_like(p) if p.grad is None else p.grad
            gradient = gradient.to_dense() if gradient.is_sparse else gradient
            gradient = as_reals(gradient)
            totals[name] = gradient.to(wide_of(gradient).dtype)
    finally:
        for name, p in parameters.items():
            p.grad = held[name]
    return totals


def without_noise(mechanism: Mechanism) -> tuple[Mechanism | None, list[Mechanism]]:
    """What is applied to each example's gradient, and what is added to the sum afterwards.

    Args:
        mechanism: m.

    Returns:
        The first, None if there is none; the second, innermost last.
    """
    noise: list[Mechanism] = []
    while isinstance(mechanism, Composed) and mechanism.second.adds_noise:
        noise.append(mechanism.second)
        mechanism = mechanism.first
    if mechanism.adds_noise:
        return None, [*noise, mechanism]
    return mechanism, noise


def takes_examples_apart(mechanism: Mechanism, granularity: str) -> bool:
    """Whether a mechanism is applied to each example's gradient, so that their sum is not enough.

    Args:
        mechanism: m.
        granularity: "example" or "worker".

    Returns:
        False for one draw per worker, and for noise alone.
    """
    return granularity == "example" and without_noise(mechanism)[0] is not None


def add_to_grad(totals: Totals, parameters: Mapping[str, nn.Parameter]) -> None:
    """Add to `.grad`, as a backward pass does.

    Args:
        totals: by parameter, in its type.
        parameters: the trained parameters.
    """
    with torch.no_grad():
        for name, parameter in parameters.items():
            total = totals[name]
            if parameter.grad is None:
                parameter.grad = total.contiguous()
            elif parameter.grad.is_sparse:
                parameter.grad = parameter.grad + total
            else:
                parameter.grad += total
