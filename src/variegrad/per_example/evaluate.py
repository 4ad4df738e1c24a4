"""One loss per example: evaluating the user's `losses(model, batch) → (b,)`, and refusing what is not that."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from variegrad.batches import Batch, tensors
from variegrad.per_example.recurrent import unfused
from variegrad.shapes import Float

Losses = Callable[[nn.Module, Any], Float[Tensor, " b"]]


class NotFinite(ValueError):  # noqa: N818
    """A loss or a gradient that is not finite: a property of the numbers, not of the call."""


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile` and `DistributedDataParallel`: the same parameters, an ordinary graph.

    Args:
        model: any module.

    Returns:
        The innermost module.

    Raises:
        TypeError: if it is no module.
    """
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
    """Every parameter that requires a gradient, once, by its first name.

    Args:
        model: an unwrapped model.

    Returns:
        Name → parameter.

    Raises:
        ValueError: if there is none.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError(
            f"{type(model).__name__} has no parameter that requires a gradient: there is nothing to measure. "
            "Unfreeze at least one (parameter.requires_grad_(True))."
        )
    return parameters


def evaluate(model: nn.Module, losses: Losses, batch: Batch) -> Float[Tensor, " b"]:
    """`losses(model, batch)`, checked: one finite, differentiable loss for each example of the batch.

    Args:
        model: an unwrapped model, in the mode the user chose.
        losses: the user's function.
        batch: any nesting of tensors whose first dimension is the example.

    Returns:
        The losses with their graph, shape (b,).

    Raises:
        TypeError: if it returns no tensor, or integers.
        ValueError: if the shape is not (b,), a loss is not finite, or there is no graph to differentiate.
    """
    with torch.enable_grad(), _eager(), unfused(model):
        per_example = losses(model, batch)
        # What the function really returns is not known before `check_losses`.
        if getattr(per_example, "is_leaf", False) and per_example.requires_grad:
            per_example = per_example.clone()  # losses that are a parameter: a graph of one node
    check_losses(per_example)
    lengths = {len(t) for t in tensors(batch) if t.dim()}
    if lengths and len(per_example) not in lengths:
        raise ValueError(
            f"losses(model, batch) must return one loss per example: got {len(per_example)} losses for a batch whose "
            f"tensors have first dimension {', '.join(map(str, sorted(lengths)))}. "
            "Average or sum over positions (tokens, pixels) first, so that each example keeps one number."
        )
    return per_example


def check_losses(per_example: object) -> None:
    """Refuse anything but a finite, differentiable tensor of shape (b,).

    Args:
        per_example: what the user's function returned.

    Raises:
        TypeError: if it is no tensor, or one of integers.
        ValueError: if the shape is not (b,), a loss is not finite, or there is no graph to differentiate.
    """
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
    if math.isfinite(float(per_example.detach().sum())):
        return  # one number says it of all
    finite = torch.isfinite(per_example.detach())
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        raise NotFinite(
            f"the loss of example {first} of the batch is {per_example[first].item()}. "
            "Check this example's input and target, and the weights."
        )


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Give back the model's modes and buffers and the global random state as they were, whatever happens inside.

    Args:
        model: the model to protect.

    Yields:
        Nothing.
    """
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = {t.device.index or 0 for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)):
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            with torch.no_grad():
                for buffer, before in buffers:
                    if not torch.equal(buffer, before):
                        buffer.copy_(before)


@contextmanager
def on_copies_of_buffers(model: nn.Module) -> Iterator[None]:
    """Let the model read and write copies of its buffers: a graph that exists keeps what it has saved of them.

    Args:
        model: the model.

    Yields:
        Nothing.
    """
    found = [(m, name, b) for m in model.modules() for name, b in m._buffers.items() if b is not None]
    copies = {id(buffer): buffer.detach().clone() for _, _, buffer in found}
    try:
        for module, name, buffer in found:
            module._buffers[name] = copies[id(buffer)]
        yield
    finally:
        for module, name, buffer in found:
            module._buffers[name] = buffer


@contextmanager
def _eager() -> Iterator[None]:
    # A compiled part hides its parameters' uses in one opaque node; run eagerly, it is an ordinary graph.
    compiled = "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance")
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        yield
