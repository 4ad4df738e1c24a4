"""Gram matrices of per-example gradients, part by part: the only place where `estimate` meets the gradient engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from variegrad.batches import Batch
from variegrad.per_example.evaluate import Losses, evaluate, left_as_found, trained_parameters, unwrap
from variegrad.per_example.norms import engine_of

# The gradients of all examples are held for as many parameters at once as fit here; a larger parameter goes alone.
ROWS_BYTES = 512 * 2**20


def gram_by_part(
    model: nn.Module,
    losses: Losses,
    batch: Batch,
    part_of: Callable[[str], str],
    scales: Callable[[Mapping[str, nn.Parameter]], Mapping[str, Tensor]] | None = None,
) -> dict[str, Float[Tensor, "b b"]]:
    """K = G·Gᵀ of each part of the model, in float64; their sum is that of the whole model.

    Args:
        model: with at least one parameter that requires a gradient.
        losses: one loss per example.
        batch: what `losses` takes.
        part_of: the part that a parameter, given by name, belongs to.
        scales: elementwise factors of the gradients of given parameters, such as √P.

    Returns:
        Part → b×b Gram matrix.

    Raises:
        TypeError: if the losses are no floating-point tensor.
        ValueError: if the batch is empty, no parameter is trained, the losses are not one finite number per example
            with a graph, or the examples are coupled.
    """
    model = unwrap(model)
    trained = trained_parameters(model)
    factors = scales(trained) if scales else {}
    grams: dict[str, Tensor] = {}
    with left_as_found(model), torch.enable_grad():
        per_example = evaluate(model, losses, batch)
        count = len(per_example)
        if not count:
            raise ValueError("batch: it holds no example. Pass 64 to 256 of them (at least 8, for an interval).")
        for portion in _portions(trained, count):
            chunks = engine_of(model).gradients(model, losses, batch, per_example, portion, count)
            for name, rows in next(chunks).items():
                matrix = rows.detach().flatten(1).double()
                if name in factors:
                    matrix = matrix * factors[name].flatten()
                gram, part = matrix @ matrix.T, part_of(name)
                grams[part] = grams[part] + gram if part in grams else gram
    return grams


def _portions(trained: Mapping[str, nn.Parameter], count: int) -> Iterator[dict[str, nn.Parameter]]:
    portion: dict[str, nn.Parameter] = {}
    used = 0
    for name, parameter in trained.items():
        size = parameter.numel() * parameter.element_size() * count
        if portion and used + size > ROWS_BYTES:
            yield portion
            portion, used = {}, 0
        portion[name] = parameter
        used += size
    yield portion
