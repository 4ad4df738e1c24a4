"""Examples that are coupled have no per-example gradient: they are refused, with the cause and what to do instead.

Batch statistics are the usual cause, a loss that compares examples with each other the other. Coupling shows in the
graph as gradients that belong to no single example. A parameter may also be *prepared* before its use (weight norm,
masks, low-rank updates), and a graph may be one input of many losses: evaluating half of the batch alone tells these
apart. If the batch cannot be cut, or cutting it fails, it cannot tell: then each loss is differentiated in its batch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from variegrad.per_example.graph import ACCUMULATE, Graph, base_name, leaf, outputs, read_graph
from variegrad.per_example.ownership import Layout, Owner
from variegrad.per_example.state import left_as_found
from variegrad.per_example.step import Step

_UNUSUAL = 837_261_945
BATCH_NORM = ("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "SyncBatchNorm")
UNDEFINED = "per-example gradients are undefined here"
INSTEAD = (
    "Instead, use fixed statistics (module.eval()) or a per-example norm such as GroupNorm; or estimate without "
    "per-example gradients, by variegrad.Monitor in the training loop or by the balanced sign probe "
    "(variegrad.sign_probe)."
)
OTHERWISE = (
    "Instead, let each loss depend on its own example; or estimate without per-example gradients, by variegrad.Monitor "
    "in the training loop or by the balanced sign probe (variegrad.sign_probe)."
)


def refuse_training_batch_norm(model: nn.Module) -> None:
    """Refuse a model with a batch normalisation that would use the statistics of the batch, trained or frozen."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"{type(module).__name__} {name!r} uses the statistics of the batch, which couples the examples: "
                f"{UNDEFINED}. {INSTEAD}"
            )


def refuse_batch_statistics(step: Step, owners: Mapping[tuple[int, int], Owner]) -> None:
    """Refuse batch statistics that no module shows: the examples are separate above the node, along its batch.

    A batch norm of a *weight* couples nothing (above it, examples are mixed), nor does InstanceNorm, which is a batch
    norm with the examples among its channels.
    """
    for node in step.graph.order:
        if base_name(node) in BATCH_NORM and getattr(node, "_saved_training", True):
            owner = owners.get((step.graph.number[node], 0))
            if isinstance(owner, Layout) and owner.dim != 1:
                raise ValueError(
                    "a batch normalisation uses the statistics of the batch, which couples the examples: "
                    f"{UNDEFINED} ({node.name()}). {INSTEAD}"
                )


def refuse_broadcast(step: Step) -> None:
    """Refuse (b, 1) − (b,) and the like: a tensor of all pairs of examples, which changes the losses of examples alone.

    Raises:
        ValueError: naming the operation and its shapes.
    """
    found = _pairs(step.graph, step.count)
    if not found or not step.can_be_cut:
        return
    alone = _alone(step)
    if alone is not None and not alone.drew and alone.differs and alone.pairs:
        raise ValueError(
            f"the losses compare every example with every other: {found[0]}. {UNDEFINED[0].upper()}{UNDEFINED[1:]}. Is "
            "it an accidental broadcast? Make both shapes equal, for instance by .squeeze(1) or .view_as(target)."
        )


def refuse_if_coupled(step: Step, suspects: Mapping[str, str]) -> None:
    """Evaluate half of the batch alone: a loss that changes depends on the other examples.

    Args:
        step: the losses of the whole batch.
        suspects: the parameters that made it necessary → why.

    Raises:
        ValueError: if the examples are coupled.
    """
    name, why = next(iter(suspects.items()))
    if not step.can_be_cut:
        return
    for mode in (nullcontext(), _evaluating(step.model)):
        with mode:
            alone = _alone(step)
        if alone is None or not alone.differs:
            return
        if alone.drew:
            continue  # masks of half a batch are others: evaluation mode says more
        cause = f" It computes {alone.pairs[0]}: an accidental broadcast?" if alone.pairs else ""
        raise ValueError(
            f"the loss of an example depends on the other examples of the batch (at parameter {name!r}: {why}; the "
            f"first {alone.size} examples alone have other losses than within the batch): {UNDEFINED}.{cause} "
            f"{INSTEAD if any(hasattr(m, 'running_mean') for m in step.model.modules()) else OTHERWISE}"
        )


class _Alone(NamedTuple):
    """How the losses of the first half of the batch, alone, compare with those within the batch."""

    size: int
    differs: bool
    drew: bool
    pairs: list[str]


def _alone(step: Step) -> _Alone | None:
    size = max(1, step.count // 2)
    assert step.losses is not None
    with torch.enable_grad(), left_as_found(step.model):  # a model may differentiate inside
        # From a state that no losses that seed themselves would leave behind: then a change shows that they draw.
        torch.manual_seed(_UNUSUAL)
        np.random.seed(_UNUSUAL)  # noqa: NPY002
        before = _generators()
        with left_as_found(step.model):
            whole = step.losses(step.model, step.part(step.count)).detach()
            drew = _generators() != before
        with left_as_found(step.model):  # Python's own generator is drawn from by others, too: only the losses tell
            random.seed(_UNUSUAL)
            drew = drew or not torch.equal(whole, step.losses(step.model, step.part(step.count)).detach())
        try:
            alone = step.losses(step.model, step.part(size))
        except Exception:  # noqa: BLE001 - cutting the batch is an experiment, and its failure an answer
            return None
    if tuple(getattr(alone, "shape", ())) != (size,):
        return None
    tolerance = 1e-8 if step.graph.coarsest == torch.float64 else 1e-3
    scale = tolerance * float(whole.abs().mean())
    differs = not torch.allclose(alone.detach(), whole[:size], rtol=tolerance, atol=scale)
    pairs = _pairs(step.graph, step.count)  # of examples, not by coincidence, if half the batch has half of them
    if alone.grad_fn is None or not _pairs(read_graph(alone.grad_fn, step.parameters), size):
        pairs = []
    return _Alone(size, differs=differs, drew=drew, pairs=pairs)


def _generators() -> tuple[bytes, ...]:
    return (
        torch.get_rng_state().numpy().tobytes(),
        repr(np.random.get_state(legacy=False)).encode(),  # noqa: NPY002
        *(torch.cuda.get_rng_state(k).numpy().tobytes() for k in range(torch.cuda.device_count())),
    )


def _pairs(graph: Graph, count: int) -> list[str]:
    """Element-wise operations whose result has two dimensions of b entries where an input has one of them."""
    found = []
    for node in graph.order:
        if base_name(node) not in ("Sub", "Add", "Mul", "Div", "Expand", "MseLoss", "SmoothL1Loss", "HuberLoss", "Pow"):
            continue
        shape = list(outputs(node)[0].shape)
        if shape.count(count) < 2:
            continue
        for child, k in node.next_functions:
            if child is None:
                continue
            below = list(leaf(child).shape if child.name() == ACCUMULATE else outputs(child)[k].shape)
            if below.count(count) == 1 and math.prod(below) < math.prod(shape):
                found.append(f"{node.name()} makes {tuple(shape)} of {tuple(below)} and another tensor")
    return found


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    keeping = [key for key, m in model.named_modules() if m.training and _keeps_statistics(m)]
    if keeping:
        raise ValueError(
            f"{keeping[0]!r} keeps running statistics of batches, which couples the examples: {UNDEFINED}. {INSTEAD}"
        )
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _keeps_statistics(module: nn.Module) -> bool:
    return hasattr(module, "running_mean") and not isinstance(module, _InstanceNorm)
