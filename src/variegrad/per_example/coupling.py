"""Examples that are coupled have no per-example gradient: they are refused, with the module and the way on.

Batch statistics are the usual cause, a loss that compares examples with each other the other. Coupling shows in the
graph as gradients that are nobody's; where a parameter may merely be *prepared* before its use (weight norm, masks,
low-rank updates), a forward pass over part of the batch tells the two apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.batchnorm import _BatchNorm

from variegrad.batches import Batch, map_tensors, shared_length
from variegrad.per_example.evaluate import Losses, left_as_found
from variegrad.per_example.graph import Arc, Graph
from variegrad.shapes import Float

BATCH_NORM = ("NativeBatchNormBackward", "CudnnBatchNormBackward", "MiopenBatchNormBackward", "SyncBatchNorm")
WAYS_ON = (
    "Two ways on: use fixed statistics (module.eval()) or a per-example norm such as GroupNorm; or estimate without "
    "per-example gradients, by the balanced sign probe (variegrad.sign_probe)."
)


def refuse_training_batch_norm(model: nn.Module) -> None:
    """Refuse a model with a batch normalisation that would use the statistics of the batch, trained or frozen.

    Args:
        model: the unwrapped model.

    Raises:
        ValueError: naming the module.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"{type(module).__name__} {name!r} uses the statistics of the batch, which couples the examples: there "
                f"is no gradient of one example alone. {WAYS_ON}"
            )


def refuse_batch_statistics(model: nn.Module, name: str, nodes: Sequence[Node], arcs: Sequence[Arc]) -> None:
    """Refuse a parameter whose way to the losses leads through batch statistics.

    Args:
        model: the unwrapped model.
        name: the parameter.
        nodes: the nodes between it and where the examples separate.
        arcs: how it reaches the examples.

    Raises:
        ValueError: naming the module.
    """
    # InstanceNorm is batch normalisation of a reshaped batch: its weight comes repeated, and never meets the node.
    met = [node for node in nodes if node.name().startswith(BATCH_NORM) and getattr(node, "_saved_training", True)]
    met += [arc.node for arc in arcs if arc.node in met]
    if met:
        owner = next((key for key, m in model.named_modules() if isinstance(m, _BatchNorm) and m.training), None)
        which = (
            f"{type(model.get_submodule(owner)).__name__} {owner!r}" if owner is not None else "a batch normalisation"
        )
        raise ValueError(
            f"{which} uses the statistics of the batch, which couples the examples: there is no gradient of one "
            f"example alone (met at parameter {name!r}). {WAYS_ON}"
        )


def refuse_if_coupled(
    graph: Graph,
    model: nn.Module,
    losses: Losses | None,
    batch: Batch,
    per_example: Float[Tensor, " b"],
    suspects: Mapping[str, str],
) -> None:
    """Evaluate part of the batch alone: a loss that changes depends on the other examples.

    Args:
        graph: the graph of the losses: the type of the fewest digits in it says how equal equal losses are.
        model: the unwrapped model.
        losses: the user's function.
        batch: the batch.
        per_example: the losses of the whole batch.
        suspects: the parameters that made it necessary → why.

    Raises:
        ValueError: if the examples are coupled, or it cannot be known.
    """
    name, why = next(iter(suspects.items()))
    if losses is None or shared_length(batch) is None:
        raise ValueError(
            f"parameter {name!r} cannot be attributed to examples: {why}, and without `losses` and a batch that can be "
            f"sliced it cannot be known whether the examples are coupled. {WAYS_ON}"
        )
    part = max(1, len(per_example) // 2)
    with torch.enable_grad(), left_as_found(model):  # a model may differentiate inside
        for quiet in (_as_it_is, _without_dropout, _evaluating):
            with quiet(model):
                whole, again = _values(model, losses, batch), _values(model, losses, batch)
                if not torch.equal(whole, again):
                    continue  # random: this says nothing yet
                alone = _values(model, losses, map_tensors(lambda t: t[:part], batch))
            tolerance = 1e-8 if graph.coarsest == torch.float64 else 1e-3
            if len(alone) == part and torch.allclose(
                alone, whole[:part], rtol=tolerance, atol=tolerance * float(whole.abs().mean())
            ):
                return
            raise ValueError(
                f"the loss of an example depends on the other examples of the batch (at parameter {name!r}: {why}; "
                f"the first {part} examples alone have other losses than within the batch): there is no gradient of "
                f"one example alone. {WAYS_ON}"
            )
    raise ValueError(
        f"parameter {name!r} cannot be attributed to examples: {why}, and the losses are random even in evaluation "
        f"mode, so that it cannot be known whether the examples are coupled. {WAYS_ON}"
    )


def _values(model: nn.Module, losses: Losses, batch: Batch) -> Tensor:
    # The graph of the batch is alive: what a second one would save is dropped, unless the model differentiates inside.
    def unpack(_: object) -> Tensor:
        raise RuntimeError

    try:
        with torch.autograd.graph.saved_tensors_hooks(lambda _: None, unpack):
            return losses(model, batch).detach()
    except Exception:  # noqa: BLE001
        return losses(model, batch).detach()


@contextmanager
def _as_it_is(model: nn.Module) -> Iterator[None]:  # noqa: ARG001
    yield


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    for module in model.modules():
        if "drop" in type(module).__name__.lower():
            module.training = False
    yield


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    statistics = [key for key, m in model.named_modules() if m.training and hasattr(m, "running_mean")]
    if statistics:
        raise ValueError(
            f"{statistics[0]!r} keeps running statistics of batches, which couples the examples. {WAYS_ON}"
        )
    model.eval()
    yield
