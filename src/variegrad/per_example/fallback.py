"""The exact fallbacks, for parameters with a use that no rule covers.

First `torch.func`: vmap(grad) over single examples, for those parameters only, where the model allows it. Then the loop
on the full batch's own graph, which is always right, whatever the model does, and the reference of all tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from variegrad.batches import Batch, map_tensors, shared_length
from variegrad.per_example.evaluate import Losses
from variegrad.per_example.knowledge import Knowledge
from variegrad.shapes import Float

# The share of free memory that a chunk of per-example gradients may take, and its bound: larger chunks gain nothing.
MEMORY_SHARE = 0.1
CHUNK_BYTES = 256 << 20


def loop(per_example: Float[Tensor, " b"], parameters: Mapping[str, nn.Parameter]) -> Iterator[dict[str, Tensor]]:
    """∇f_i for one example after the other, each by its own backward pass over the full batch's graph.

    Args:
        per_example: the losses; their graph is kept.
        parameters: those wanted.

    Yields:
        Name → gradient, for each example.
    """
    for i in range(len(per_example)):
        yield one_gradient(per_example, i, parameters)


def one_gradient(
    per_example: Float[Tensor, " b"], example: int, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """∇f_i by `backward`, which goes where `grad` may not: into re-entrant checkpoints.

    Args:
        per_example: the losses; their graph is kept.
        example: i.
        parameters: those wanted.

    Returns:
        Name → gradient; zero where the loss does not depend on the parameter. `.grad` is left as it was.
    """
    before = {name: p.grad for name, p in parameters.items()}
    try:
        for p in parameters.values():
            p.grad = None
        with torch.enable_grad():  # a caller may have switched it off around a graph that exists
            per_example[example].backward(retain_graph=True, inputs=_inputs(per_example, parameters))
        return {name: _dense(p.grad, p) for name, p in parameters.items()}
    finally:
        for name, p in parameters.items():
            p.grad = before[name]


def _dense(gradient: Tensor | None, parameter: nn.Parameter) -> Tensor:
    if gradient is None:
        return torch.zeros_like(parameter)
    return gradient.to_dense() if gradient.is_sparse else gradient


def _inputs(per_example: Tensor, parameters: Mapping[str, nn.Parameter]) -> Sequence[Tensor] | None:
    # `inputs=` keeps other leaves' .grad untouched, but torch refuses it through re-entrant checkpoints.
    return None if reentrant(per_example) else list(parameters.values())


def reentrant(per_example: Tensor) -> bool:
    """Whether the graph holds a re-entrant checkpoint, whose parameters the graph does not show.

    Args:
        per_example: the losses.

    Returns:
        Whether it does.
    """
    seen, stack = set(), [per_example.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        if node.name().startswith("CheckpointFunction"):
            return True
        seen.add(node)
        stack.extend(child for child, _ in node.next_functions)
    return False


def chunk_size(parameters: Mapping[str, nn.Parameter]) -> int:
    """How many examples' gradients fit a small share of the free memory.

    Args:
        parameters: whose gradients.

    Returns:
        At least 1.
    """
    each = sum(p.numel() * p.element_size() for p in parameters.values())
    device = next(iter(parameters.values())).device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_memory()
    return max(1, int(min(MEMORY_SHARE * free, CHUNK_BYTES) // max(1, each)))


def _free_memory() -> int:
    """Bytes of main memory that can be had; where the system does not say, enough for the largest chunk."""
    try:
        return int(re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())[1]) * 1024  # type: ignore[index]
    except (OSError, TypeError):
        return int(CHUNK_BYTES / MEMORY_SHARE)


def can_vectorize(model: nn.Module, batch: Batch) -> bool:
    """Whether vmap over single examples may be tried at all.

    Args:
        model: the unwrapped model.
        batch: the batch.

    Returns:
        False where examples cannot be sliced out, or where `functional_call` would corrupt the model: it replaces
        for good the parameters of a module that is registered at two paths (pytorch#164759).
    """
    paths = sum(1 for _ in model.named_modules(remove_duplicate=False))
    return shared_length(batch) is not None and paths == sum(1 for _ in model.named_modules())


def vectorized(
    model: nn.Module, losses: Losses, batch: Batch, parameters: Mapping[str, nn.Parameter], chunk: int | None = None
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """∇f_i by vmap(grad), a chunk of examples at a time, with respect to `parameters` only.

    Args:
        model: the unwrapped model; `can_vectorize` must hold.
        losses: the user's function.
        batch: the batch.
        parameters: those wanted.
        chunk: examples at once; None for what fits.

    Yields:
        Name → (t, *shape) for each chunk, and the losses (t,) of its examples alone.
    """
    count = shared_length(batch)
    assert count is not None
    values = {name: p.detach() for name, p in parameters.items()}

    def one(weights: dict[str, Tensor], example: Batch) -> Tensor:
        single = map_tensors(lambda t: t.unsqueeze(0), example)
        return _Functional(model, weights).losses(losses, single)

    gradients = torch.func.vmap(torch.func.grad_and_value(one), in_dims=(None, 0), randomness="error")
    step = chunk or chunk_size(parameters)
    for start in range(0, count, step):
        yield gradients(values, map_tensors(lambda t, s=start: t[s : s + step], batch))  # type: ignore[misc]


class _Functional(nn.Module):
    # functional_call runs a module's forward; wrapping model and losses lets the user's function make the call itself.
    def __init__(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.model, self.weights = model, {f"model.{name}": value for name, value in weights.items()}

    def forward(self, losses: Losses, batch: Batch) -> Tensor:
        return losses(self.model, batch)[0]

    def losses(self, losses: Losses, batch: Batch) -> Tensor:
        return torch.func.functional_call(self, self.weights, (losses, batch))


def gradients(
    model: nn.Module,
    losses: Losses | None,
    batch: Batch,
    per_example: Float[Tensor, " b"],
    parameters: Mapping[str, nn.Parameter],
    known: Knowledge,
) -> Iterator[dict[str, Tensor]]:
    """∇f_i for every example with respect to `parameters`, in chunks: by vmap where that agrees with the loop.

    Args:
        model: the unwrapped model.
        losses: the user's function; None where only the losses are at hand.
        batch: the batch.
        per_example: the losses; their graph is kept.
        parameters: those wanted.
        known: remembers whether vmap works for this structure.

    Yields:
        Name → (t, *shape) for each chunk.
    """
    if losses is not None and known.vectorize is not False and can_vectorize(model, batch):
        if known.vectorize is None:
            known.vectorize = _agrees(model, losses, batch, per_example, parameters)
        if known.vectorize:
            start = 0
            for rows, alone in vectorized(model, losses, batch, parameters):
                within = per_example[start : start + len(alone)].detach()
                if torch.allclose(alone, within, rtol=1e-9 if alone.dtype == torch.float64 else 1e-4, atol=0):
                    yield rows
                else:  # these losses are others alone than within the batch: only its own graph is right
                    for i in range(start, start + len(alone)):
                        yield {name: g.unsqueeze(0) for name, g in one_gradient(per_example, i, parameters).items()}
                start += len(alone)
            return
    for gradient in loop(per_example, parameters):
        yield {name: g.unsqueeze(0) for name, g in gradient.items()}


def _agrees(
    model: nn.Module,
    losses: Losses,
    batch: Batch,
    per_example: Float[Tensor, " b"],
    parameters: Mapping[str, nn.Parameter],
) -> bool:
    two = map_tensors(lambda t: t[:2], batch)
    try:
        found, _ = next(vectorized(model, losses, two, parameters))
    except Exception:  # noqa: BLE001
        return False
    for i in range(min(2, len(per_example))):
        for name, g in one_gradient(per_example, i, parameters).items():
            tolerance = 1e-9 if g.dtype in (torch.float64, torch.complex128) else 1e-4
            wide = torch.complex128 if g.is_complex() else torch.float64
            if float((found[name][i] - g).detach().to(wide).norm()) > tolerance * float(g.to(wide).norm()) + 1e-30:
                return False
    return True
