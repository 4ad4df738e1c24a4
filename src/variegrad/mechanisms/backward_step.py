"""Σ_i m(∇f_i) into `.grad`: what `loss.sum().backward()` would leave there, with a mechanism in between (Section 4.4).

Sum convention: gradients are those of the summed loss; divide by the number of examples for those of the mean. Draws
are keyed by (seed, number of the sample in the run, parameter): the result does not depend on how samples are cut into
steps, calls, tiles or workers, up to the order of summation.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from operator import index

from torch import Tensor, nn

from variegrad.batches import Batch
from variegrad.mechanisms.example_gradients import first_not_finite
from variegrad.mechanisms.law import Mechanism
from variegrad.mechanisms.surrogates import StepKey, add_to_grad, surrogates, takes_examples_apart, without_noise
from variegrad.per_example.evaluate import Losses, NotFinite, evaluate, trained_parameters, unwrap
from variegrad.shapes import Float


def backward(
    model: nn.Module,
    losses: Losses,
    batch: Batch,
    *,
    mechanism: Mechanism | None = None,
    seed: int = 0,
    samples_seen: int = 0,
    granularity: str = "example",
    positions: Sequence[int] | None = None,
    total: int | None = None,
    worker: int = 0,
    step: int | None = None,
) -> Float[Tensor, " b"]:
    """Add Σ_i m(∇f_i) to `.grad`, as `losses(model, batch).sum().backward()` adds Σ_i ∇f_i.

    Add the number of examples of each step to `samples_seen` before the next one: a sample's draws are a function of
    its number in the run, so that every step has fresh ones, whatever its size. With `granularity="worker"` it is
    m(Σ_i ∇f_i), one draw for the whole call: cheaper, with another distribution (the variance grows with the squared
    norm of the sum, not with the sum of squared norms). A step that is split over several calls or workers names the
    `positions` of each part; noise that does not depend on the gradients (Langevin) is drawn once per step, as one
    Gaussian, by the part that holds position 0, which therefore also needs `total`.

    Args:
        model: the model; its mode, and everything but `.grad`, is left alone.
        losses: `losses(model, batch) → (b,)`, one loss per example, not averaged.
        batch: any nesting of tensors whose first dimension is the example.
        mechanism: m; None for an ordinary backward pass.
        seed: the run's seed.
        samples_seen: the examples of all steps before this one; a step of B examples has the numbers from
            `samples_seen` to `samples_seen` + B − 1.
        granularity: "example", one draw for each example, or "worker", one for the sum.
        positions: the place of each example in the step's whole batch, from 0; None for 0 … b−1.
        total: B, the examples of the step over all parts; None if this call is the whole step.
        worker: the rank, for `granularity="worker"`: each has draws of its own.
        step: deprecated: the number of the step, which stands for `samples_seen` = step·B.

    Returns:
        The losses, detached.

    Raises:
        TypeError: if `mechanism` is none, or `losses` returns no floating-point tensor.
        ValueError: if a setting is out of range, a gradient is not finite (then nothing is added to any `.grad`), or
            for what `example_sq_norms` refuses.

    Source: Section 4.4, equation (2).
    """
    refuse_settings(mechanism, granularity, seed, samples_seen if step is None else step, worker)
    model = unwrap(model)
    parameters = trained_parameters(model)
    apart = mechanism is not None and takes_examples_apart(mechanism, granularity)
    per_example = evaluate(model, losses, batch, apart=apart)
    count = len(per_example)
    places, whole = _placed(positions, total, count, mechanism)
    if step is not None:
        warnings.warn("backward(step=) is now backward(samples_seen=): step·B.", DeprecationWarning, stacklevel=2)
        samples_seen = step * whole
    if not count:
        return per_example.detach()
    if mechanism is None:
        per_example.sum().backward()
        return per_example.detach()
    key = StepKey(seed, samples_seen, places, whole, worker, (0, 1) if 0 in places else None)
    try:
        totals, checks = surrogates(mechanism, granularity, model, losses, batch, per_example, key)
        checks.refuse()
    except NotFinite as error:
        # Within the batch one infinite derivative spoils every example (0·∞ is NaN): alone, each shows its own.
        raise first_not_finite(model, losses, batch, parameters) or error from None
    add_to_grad(totals, parameters)
    return per_example.detach()


def _placed(
    positions: Sequence[int] | None, total: int | None, count: int, mechanism: Mechanism | None
) -> tuple[Sequence[int], int]:
    try:
        places: Sequence[int] = range(count) if positions is None else [index(k) for k in positions]
    except TypeError as error:
        raise TypeError(f"positions must be whole numbers, one for each example; got {positions!r}.") from error
    if len(places) != count:
        raise ValueError(f"positions must name one place for each of the {count} examples; got {len(places)}.")
    if len(set(places)) != count or any(not 0 <= k < 2**63 for k in places):
        raise ValueError(
            "positions must be different places from 0 on, one for each example of the step: two examples at one place "
            f"would share their draws; got {list(places)[:8]}."
        )
    if total is None:
        adds = mechanism is not None and bool(without_noise(mechanism)[1])
        if adds and positions is not None and set(places) != set(range(count)):
            raise ValueError(
                f"{mechanism} draws the noise of a whole step at once, and these positions are a part of one: say "
                "total=, the number of examples of the step over all workers."
            )
        return places, count
    if total < 1 or (count and total <= max(places)):
        raise ValueError(f"total must exceed every position, for it counts all examples of the step; got {total}.")
    return places, total


def refuse_settings(mechanism: object, granularity: object, seed: object, samples_seen: object, worker: object) -> None:
    """Refuse what `backward` cannot mean.

    Args:
        mechanism: a mechanism or None.
        granularity: "example" or "worker".
        seed: an integer.
        samples_seen: an integer.
        worker: a rank.

    Raises:
        TypeError: if one is of another type.
        ValueError: if one is out of its range.
    """
    if mechanism is not None and not isinstance(mechanism, Mechanism):
        raise TypeError(
            f"mechanism must be a Mechanism such as DropConnect(0.4), or None; got {type(mechanism).__name__}."
        )
    if granularity not in ("example", "worker"):
        raise ValueError(f'granularity must be "example" or "worker"; got {granularity!r}.')
    for name, value in (("seed", seed), ("samples_seen", samples_seen), ("worker", worker)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer; got {value!r}.")
    if isinstance(worker, int) and worker < 0:
        raise ValueError(f"worker must be a rank from 0 on; got {worker}.")
    if isinstance(samples_seen, int) and samples_seen < 0:
        raise ValueError(f"samples_seen must not be negative; got {samples_seen}.")
