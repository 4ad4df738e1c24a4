"""One loss per example: evaluating the user's `losses(model, batch) → (b,)`, and refusing what is not that."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from variegrad.batches import Batch, shared_length, tensors
from variegrad.per_example.recurrent import unfused
from variegrad.per_example.state import left_as_found as left_as_found  # noqa: PLC0414 - its old place
from variegrad.shapes import Float

Losses = Callable[[nn.Module, Any], Float[Tensor, " b"]]


class NotFinite(ValueError):  # noqa: N818
    """A loss or a gradient that is not finite: a property of the numbers, not of the call."""


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile` and `DistributedDataParallel`: the same parameters, an ordinary graph."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}.")
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter that requires a gradient, once, by its first name."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError(
            f"{type(model).__name__} has no parameter that requires a gradient: there is nothing to measure. "
            "Unfreeze at least one (parameter.requires_grad_(True))."
        )
    return parameters


def evaluate(
    model: nn.Module,
    losses: Losses,
    batch: Batch,
    *,
    read: bool = True,
    apart: bool = True,
    count: int | None = None,
) -> Float[Tensor, " b"]:
    """`losses(model, batch)`, checked: one finite (asked only if `read`), differentiable loss for each example.

    Unless only their sum is differentiated (`apart` is False), layers are run so that examples can be separated. A
    batch of `count` examples with as many losses needs no look at its tensors.
    """
    if isinstance(losses, nn.Module):
        raise TypeError(
            f"losses must be a function losses(model, batch) → (b,); got the module {type(losses).__name__}. Write, "
            "for batches (x, y): losses = lambda model, batch: criterion(model(batch[0]), batch[1]), with "
            "reduction='none' in the criterion."
        )
    with torch.enable_grad(), _eager() if apart else nullcontext(), unfused(model) if apart else nullcontext():
        try:
            per_example = losses(model, batch)
        except TypeError as error:
            if explained := _explained(error, batch):
                raise TypeError(explained) from error
            raise
    check_losses(per_example, read=read)
    if per_example.grad_fn is None:  # a parameter itself
        per_example = per_example.clone()
    if len(per_example) != count:
        _refuse_positions(per_example, batch)
    return per_example


def _refuse_positions(per_example: Tensor, batch: Batch) -> None:
    # The number of examples is the number of losses: fewer than rows if some are left out or make an example together.
    # But if all tensors share a first dimension, more losses that are not one for each tensor or column are a mistake:
    # a forgotten average.
    rows, found, size = shared_length(batch), tensors(batch), len(per_example)
    if rows is None or size in (0, rows) or rows < 2:
        return
    positions = any(t.dim() > 1 and size == t.shape[0] * t.shape[1] for t in found)
    grouped = size < rows or len(found) % size == 0 or all(t.shape[1:2] == (size,) for t in found)
    if positions or not grouped:
        raise ValueError(
            f"losses(model, batch) must return one loss per example: got {size} losses for a batch whose tensors have "
            f"first dimension {rows}. Average or sum over positions (tokens, pixels) first, so that each example keeps "
            "one number; or flatten the batch, if every position is an example."
        )


def _explained(error: TypeError, batch: Batch) -> str:
    """What is wrong if the batch of a user's function that failed is not made of tensors; else nothing."""
    parts = list(batch.values()) if isinstance(batch, Mapping) else batch
    parts = parts if isinstance(parts, list | tuple) else [parts]
    if any(type(part).__module__ == "numpy" for part in parts):
        return f"the batch holds NumPy arrays; make them tensors first, by torch.from_numpy ({error})."
    if any(isinstance(part, int | float) for part in parts):
        return (
            f"the batch holds plain numbers ({error}). If the data are a list of examples, wrap it: "
            "torch.utils.data.DataLoader(data, batch_size=64)."
        )
    return ""


def check_losses(per_example: object, *, read: bool = True) -> None:
    """Refuse anything but a finite, differentiable tensor of shape (b,)."""
    wanted = "losses(model, batch) must return one loss per example, a tensor of shape (b,)"
    if not isinstance(per_example, Tensor):
        raise TypeError(f"{wanted}; got {type(per_example).__name__}.")
    if per_example.dim() == 0:
        raise ValueError(
            f"{wanted}; got a scalar. Compute the loss with reduction='none' and do not average over the batch."
        )
    if per_example.dim() != 1:
        raise ValueError(
            f"{wanted}; got shape {tuple(per_example.shape)}. Sum or average over every dimension but the first "
            "(for instance .flatten(1).sum(1), or .squeeze(1) for shape (b, 1))."
        )
    if not per_example.is_floating_point():
        raise TypeError(f"{wanted} and of a floating-point type; got {per_example.dtype}.")
    if len(per_example) and not per_example.requires_grad:
        raise ValueError(
            f"{wanted} that can be differentiated; got one without a graph. Is there a torch.no_grad(), a .detach() "
            "or an .item() inside, or does it not depend on the model?"
        )
    if not read or math.isfinite(float(per_example.detach().sum())):
        return  # one number says it of all
    finite = torch.isfinite(per_example.detach())
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        raise NotFinite(
            f"the loss of example {first} of the batch is {per_example[first].item()}. "
            "Check this example's input and target, and the weights."
        )


@contextmanager
def _eager() -> Iterator[None]:
    # A compiled part hides its parameters' uses in one opaque node; run eagerly, it is an ordinary graph.
    compiled = "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance")
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        yield
