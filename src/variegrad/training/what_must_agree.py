"""What must be equal on all workers before they train together: settings, model, starting weights, data, versions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from variegrad.batches import tensors
from variegrad.distributed.agreement import difference
from variegrad.distributed.world import World
from variegrad.exact import digest
from variegrad.keys import generator, torch_draws
from variegrad.per_example.evaluate import Losses
from variegrad.training.config import Phases, TrainConfig
from variegrad.training.sampling import Stream
from variegrad.training.update import Position
from variegrad.versions import version

PROBED = 8  # examples whose content is compared


def what_must_agree(
    model: nn.Module, losses: Losses, dataset: Dataset[Any], config: TrainConfig | Phases, start: Position
) -> Iterator[tuple[str, str]]:
    """What a run rests on, field by field, as text.

    Args:
        model: at its starting weights.
        losses: the user's function.
        dataset: the training set.
        config: the settings.
        start: where the run stands.

    Yields:
        (field, value); tensors by shape, type and a digest of their numbers.
    """
    yield "variegrad", version("variegrad")
    yield "torch", torch.__version__
    yield "numpy", np.__version__
    for name, value in config.settings().items():
        yield name, str(value)
    for name, number in vars(start).items():
        yield f"start, {name}", str(number)
    yield "losses", getattr(losses, "__qualname__", type(losses).__qualname__)
    yield "model", type(model).__qualname__
    for name, parameter in model.named_parameters():
        frozen = "" if parameter.requires_grad else ", frozen"
        yield f"parameter {name}", f"{_shape(parameter)}{frozen}, numbers {digest(parameter)}"
    for name, buffer in model.named_buffers():
        yield f"buffer {name}", f"{_shape(buffer)}, numbers {digest(buffer)}"
    stream = isinstance(config.sampling, Stream)
    count = PROBED if stream else len(dataset)  # type: ignore[arg-type]
    yield "number of examples", "∞" if stream else f"{count:,}"
    for index in sorted(set(generator(0, "probe").integers(0, count, size=PROBED).tolist())) if count else ():
        yield f"example {index}", _example(dataset, index)


def _example(dataset: Dataset[Any], index: int) -> str:
    with torch_draws(0, "probe", index):
        first, second = tensors(dataset[index]), tensors(dataset[index])
    # An example that is drawn again each time it is read has no numbers to compare, only its shape.
    same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    return ", ".join(f"{_shape(t)}{f', numbers {digest(t)}' if same else ''}" for t in first)


def _shape(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def refuse_drift(world: World, model: nn.Module, when: str) -> None:
    """End all workers if their weights or buffers are not the same any more: a flipped bit, statistics of a share.

    Args:
        world: the workers; each calls this.
        model: whose parameters and buffers are compared.
        when: for the message.

    Raises:
        RuntimeError: on all workers: what differs first, and on which worker.
    """
    if world.size == 1:
        return
    state = [*((f"parameter {n}", p) for n, p in model.named_parameters()),
             *((f"buffer {n}", b) for n, b in model.named_buffers())]  # fmt: skip
    if (found := difference(world, {name: f"numbers {digest(tensor)}" for name, tensor in state})) is not None:
        raise RuntimeError(
            f"{when}, the workers' models are no longer the same: {found}. A buffer that each worker updates from its "
            "own share (running statistics) is one cause: use a norm per example, or module.eval(). Else suspect a "
            "memory fault or processors that round differently. Resume from the last checkpoint."
        )
