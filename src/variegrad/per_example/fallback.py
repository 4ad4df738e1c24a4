"""The exact fallbacks, for parameters with a use that no rule covers.

First `torch.func`: vmap(grad) over single examples, for those parameters only, if the model allows it. Then the loop
on the full batch's own graph, which is always right, whatever the model does, and the reference of all tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from variegrad.batches import Batch, map_tensors, shared_length
from variegrad.per_example.evaluate import Losses
from variegrad.per_example.graph import ACCUMULATE, leaf
from variegrad.per_example.knowledge import Knowledge
from variegrad.per_example.passes import gradients as differentiated
from variegrad.per_example.state import aside, hooked, left_as_found
from variegrad.per_example.step import Step
from variegrad.per_example.uses import MIXED_AT
from variegrad.shapes import Float

# The share of free memory that a chunk of per-example gradients may take, and its bound: larger chunks gain nothing.
MEMORY_SHARE = 0.1
CHUNK_BYTES = 256 << 20


def loop(
    per_example: Float[Tensor, " b"],
    parameters: Mapping[str, nn.Parameter],
    others: Sequence[Tensor] = (),
    *,
    wide: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """∇f_i for one example after the other, each by its own backward pass over the full batch's graph."""
    hidden = reentrant(per_example)
    for i in range(len(per_example)):
        yield one_gradient(per_example, i, parameters, others, hidden=hidden, wide=wide)


def one_gradient(
    per_example: Float[Tensor, " b"],
    example: int,
    parameters: Mapping[str, nn.Parameter],
    others: Sequence[Tensor] = (),
    *,
    hidden: bool | None = None,
    wide: bool = False,
) -> dict[str, Tensor]:
    """∇f_i; `.grad` is left as it was, that of `others` too, and hooks that step an optimizer do not run."""
    hidden = reentrant(per_example) if hidden is None else hidden
    if not hidden:
        weight = torch.zeros_like(per_example)
        weight[example] = 1
        found = differentiated(per_example, weight, parameters.values(), others=others, hooks=True, wide=wide)
        return {name: _dense(g, p) for (name, p), g in zip(parameters.items(), found, strict=True)}
    # Only `backward` of everything reaches the parameters of re-entrant checkpoints.
    with torch.enable_grad(), aside([*parameters.values(), *_leaves(per_example)], hooks=True):
        per_example[example].backward(retain_graph=True)
        return {name: _dense(p.grad, p) for name, p in parameters.items()}


def _dense(gradient: Tensor | None, parameter: nn.Parameter) -> Tensor:
    if gradient is None:
        return torch.zeros_like(parameter)
    return gradient.to_dense() if gradient.is_sparse else gradient


def reentrant(per_example: Tensor) -> bool:
    """Whether the graph holds a re-entrant checkpoint, whose parameters the graph does not show."""
    return any(node.name().startswith("CheckpointFunction") for node in _nodes(per_example))


def _leaves(per_example: Tensor) -> list[Tensor]:
    return [leaf(node) for node in _nodes(per_example) if node.name() == ACCUMULATE]


def _nodes(per_example: Tensor) -> set[Node]:
    seen: set[Node] = set()
    stack = [per_example.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack.extend(child for child, _ in node.next_functions)
    return seen


def chunk_size(parameters: Mapping[str, nn.Parameter]) -> int:
    """How many examples' gradients fit a small share of the free memory."""
    each = sum(p.numel() * p.element_size() for p in parameters.values())
    device = next(iter(parameters.values())).device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_memory()
    return max(1, int(min(MEMORY_SHARE * free, CHUNK_BYTES) // max(1, each)))


def _free_memory() -> int:
    """Bytes of main memory that are available; if the system does not report it, enough for the largest chunk."""
    try:
        return int(re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())[1]) * 1024  # type: ignore[index]
    except (OSError, TypeError):
        return int(CHUNK_BYTES / MEMORY_SHARE)


def can_vectorize(step: Step) -> bool:
    """Whether vmap over single examples may be tried: they can be cut out, and `functional_call` is safe.

    It replaces for good the parameters of a module that is registered at two paths (pytorch#164759).
    """
    paths = sum(1 for _ in step.model.named_modules(remove_duplicate=False))
    return step.can_be_cut and paths == sum(1 for _ in step.model.named_modules())


def vectorized(
    model: nn.Module, losses: Losses, batch: Batch, parameters: Mapping[str, nn.Parameter], chunk: int | None = None
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """∇f_i by vmap(grad), a chunk of examples at a time, with respect to `parameters` only."""
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


def gradients(step: Step, parameters: Mapping[str, nn.Parameter], known: Knowledge) -> Iterator[dict[str, Tensor]]:
    """∇f_i for every example with respect to some parameters, in chunks: by vmap if that agrees with the loop."""
    # What examples share may be theirs together in ways that only the batch's own graph has.
    mixed = any(known.uncovered.get(name, "").startswith(MIXED_AT) for name in parameters)
    if known.vectorize is not False and not mixed and can_vectorize(step) and not hooked(parameters):
        if known.vectorize is None:
            known.vectorize = _agrees(step, parameters)
        if known.vectorize:
            assert step.losses is not None
            start = 0
            for rows, alone in vectorized(step.model, step.losses, step.batch, parameters):
                within = step.per_example[start : start + len(alone)].detach()
                if torch.allclose(alone, within, rtol=1e-9 if alone.dtype == torch.float64 else 1e-4, atol=0):
                    yield rows
                else:  # these losses are others alone than within the batch: only its own graph is right
                    for i in range(start, start + len(alone)):
                        gradient = one_gradient(step.per_example, i, parameters, step.ends, hidden=False)
                        yield {name: g.unsqueeze(0) for name, g in gradient.items()}
                start += len(alone)
            return
    yield from stacked(step, parameters, 1)


def stacked(step: Step, parameters: Mapping[str, nn.Parameter], size: int) -> Iterator[dict[str, Tensor]]:
    """The loop's gradients, `size` at a time: parameter → (t, *shape)."""
    found = loop(step.per_example, parameters, step.ends, wide=step.graph.low_precision)
    while waiting := list(islice(found, size)):
        yield {name: torch.stack([g[name] for g in waiting]) for name in waiting[0]}


def _agrees(step: Step, parameters: Mapping[str, nn.Parameter]) -> bool:
    assert step.losses is not None
    two = map_tensors(lambda t: t[:2], step.batch)
    try:
        with left_as_found(step.model):
            found, _ = next(vectorized(step.model, step.losses, two, parameters))
    except Exception:  # noqa: BLE001 - vmap has many ways to refuse a model
        return False
    for i in range(min(2, step.count)):
        for name, gradient in one_gradient(step.per_example, i, parameters, step.ends).items():
            g = gradient.detach()
            tolerance = 1e-9 if g.dtype in (torch.float64, torch.complex128) else 1e-4
            off = torch.linalg.vector_norm(found[name][i] - g).detach()
            if float(off) > tolerance * float(torch.linalg.vector_norm(g)) + 1e-30:
                return False
    return True
