"""Gram matrices of per-example gradients, part by part: the only place where `estimate` meets a gradient engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Rows of as many parameters at once as fit here; a single larger parameter is taken alone.
ROWS_BYTES = 256 * 2**20


def gram_by_part(
    model: nn.Module,
    losses: Callable[[nn.Module, Any], Float[Tensor, " b"]],
    batch: Any,
    part_of: Callable[[str], str],
    scales: Callable[[Mapping[str, nn.Parameter]], Mapping[str, Tensor]] | None = None,
) -> dict[str, Float[Tensor, "b b"]]:
    """K = G·Gᵀ of each part of the model, in float64; their sum is that of the whole model.

    One graph over the full batch, one backward an example: exact on any model, whatever its forward does.

    Args:
        model: with at least one parameter that requires a gradient.
        losses: one loss per example.
        batch: what `losses` takes.
        part_of: the part that a parameter, given by name, belongs to.
        scales: elementwise factors of the gradients of given parameters, such as √P.

    Returns:
        Part → b×b Gram matrix.

    Raises:
        TypeError: if the losses are no tensor.
        ValueError: if no parameter is trained, or the losses are not one a example, or have no graph.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("model: no parameter requires a gradient, so there is nothing to measure. Unfreeze some.")
    factors = scales(trained) if scales else {}
    with torch.enable_grad():
        values = losses(model, batch)
        _check(values)
        per_example = values.unbind()
    grams: dict[str, Tensor] = {}
    for names in _portions(trained, len(per_example)):
        rows = [
            torch.autograd.grad(loss, [trained[n] for n in names], retain_graph=True, allow_unused=True)
            for loss in per_example
        ]
        for name, column in zip(names, zip(*rows, strict=True), strict=True):
            zero = torch.zeros_like(trained[name])
            matrix = torch.stack([zero if g is None else g for g in column]).flatten(1).double()
            if name in factors:
                matrix = matrix * factors[name].flatten()
            gram = matrix @ matrix.T
            part = part_of(name)
            grams[part] = grams[part] + gram if part in grams else gram
    return grams


def _portions(trained: Mapping[str, nn.Parameter], count: int) -> list[list[str]]:
    portions: list[list[str]] = [[]]
    used = 0
    for name, parameter in trained.items():
        size = parameter.numel() * parameter.element_size() * count
        if portions[-1] and used + size > ROWS_BYTES:
            portions.append([])
            used = 0
        portions[-1].append(name)
        used += size
    return portions


def _check(values: Any) -> None:
    if not isinstance(values, Tensor):
        raise TypeError(f"losses must return a tensor with one loss per example; got {type(values).__name__}.")
    if values.dim() != 1:
        raise ValueError(
            f"losses must return one loss per example, shape (b,); got shape {tuple(values.shape)}. "
            'Use reduction="none" and take the mean over everything but the example.'
        )
    if not values.requires_grad:
        raise ValueError("losses: the result has no graph. Do not detach it, and do not compute it under no_grad.")
