"""Whether an example's loss depends on the batch that it is in.

The gradient of an example is that of its loss *within its batch*: losses that normalise over the batch (advantages,
in-batch weights) treat the batch's statistics as part of the loss. Such a batch must not be cut for memory, and how a
data set is split into batches is part of what is measured. One comparison at the start of a pass finds it out.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from variegrad.batches import Batch, map_tensors, shared_length
from variegrad.per_example.evaluate import Losses, left_as_found, trained_parameters
from variegrad.per_example.graph import read_graph


def check_cut(
    model: nn.Module, losses: Losses, batch: Batch, *, chunk_size: int | None, batch_size: int | None
) -> None:
    """Compare losses of some examples among twice as many and alone, without a graph.

    Args:
        model: the unwrapped model; left as it was found.
        losses: the user's function.
        batch: the first of a pass.
        chunk_size: into which batches are cut for memory: losses that change are refused.
        batch_size: into which a data set is cut: losses that change are warned of; None for the user's own batches.

    Raises:
        ValueError: if `chunk_size` changes the losses.
    """
    count = shared_length(batch) or 0
    chunked = chunk_size is not None and chunk_size < count
    if count < 2 or not (chunked or batch_size is not None):
        return
    size = chunk_size if chunk_size is not None and chunked else count // 2
    found = _difference(model, losses, batch, size, min(count, 2 * size))
    if found is None:
        return
    example, among, alone = found
    said = (
        f"the loss of example {example} is {among:.6g} in a batch of {min(count, 2 * size)} examples and {alone:.6g} "
        f"in a batch of {size}: losses depend on the rest of the batch"
    )
    if chunked:
        raise ValueError(
            f"chunk_size={chunk_size} would change the result: {said}. Leave out chunk_size, or compute what depends "
            "on the batch (normalised advantages, weights) in advance and include it in the batch."
        )
    warnings.warn(
        f"{said}. The result is for gradients within batches of batch_size={batch_size}, in the order of the data; "
        "a different batch_size gives a different result.",
        UserWarning,
        stacklevel=5,
    )


def _difference(
    model: nn.Module, losses: Losses, batch: Batch, size: int, most: int
) -> tuple[int, float, float] | None:
    """The example whose loss differs most, its loss among `most` examples and among the first `size`."""

    def first(count: int, *, graph: bool = False, draws: int = 0) -> Tensor:
        with left_as_found(model), torch.set_grad_enabled(graph):  # every call starts from the same random state
            torch.rand(draws)
            return losses(model, map_tensors(lambda t: t[:count], batch))

    try:
        if _worst(first(most)[:size], first(size), 0.0) is None:
            return None
        tolerance = 1000 * torch.finfo(_coarsest(model, first(size, graph=True))).eps
        with left_as_found(model):
            model.eval()  # dropout draws another mask for another number of examples
            found = _worst(first(most)[:size], first(size), tolerance)
            random = _worst(first(size), first(size, draws=1), tolerance)
    except Exception:  # noqa: BLE001 - what cannot be cut or is refused: the pass itself will say so
        return None
    return None if random else found


def _coarsest(model: nn.Module, per_example: Tensor) -> torch.dtype:
    root = per_example.grad_fn
    return per_example.dtype if root is None else read_graph(root, trained_parameters(model)).coarsest


def _worst(among: Tensor, alone: Tensor, tolerance: float) -> tuple[int, float, float] | None:
    among, alone = among.detach().double(), alone.detach().double()
    if among.shape != alone.shape or not bool(among.isfinite().all()):
        return None
    off = (among - alone).abs().nan_to_num(nan=torch.inf)
    example = int(off.argmax())
    if float(off[example]) <= tolerance * float(among.abs().mean()):
        return None
    return example, float(among[example]), float(alone[example])
