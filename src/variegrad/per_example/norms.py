"""The engine's front door: ‖∇f_i‖² and ∇f_i for the examples of one batch."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from variegrad.batches import Batch
from variegrad.per_example import fallback
from variegrad.per_example.coupling import refuse_training_batch_norm
from variegrad.per_example.engine import Engine
from variegrad.per_example.evaluate import Losses, evaluate, trained_parameters, unwrap
from variegrad.per_example.result import Norms
from variegrad.per_example.state import Snapshot
from variegrad.per_example.step import Step
from variegrad.shapes import Float

# What was learned of a model lives exactly as long as the model does.
_engines: weakref.WeakKeyDictionary[nn.Module, Engine] = weakref.WeakKeyDictionary()


def engine_of(model: nn.Module) -> Engine:
    """The engine that remembers this model's graphs.

    Args:
        model: the unwrapped model.

    Returns:
        Its engine.
    """
    engine = _engines.get(model)
    if engine is None:
        engine = _engines[model] = Engine()
    return engine


def batch_norms(
    model: nn.Module,
    losses: Losses,
    batch: Batch,
    *,
    l1: bool = False,
    examples: Sequence[int] | None = None,
    engine: Engine | None = None,
) -> Norms:
    """‖∇f_i‖² by parameter, Σ∇f_i and, on request, ‖∇f_i‖₁; nothing is left on the model.

    Args:
        model: the model.
        losses: `losses(model, batch) → (b,)`.
        batch: any nesting of tensors whose first dimension is the example.
        l1: whether ‖∇f_i‖₁ is wanted.
        examples: whose norms are wanted; None for all.
        engine: None for the one that remembers this model.

    Returns:
        The norms.
    """
    model = unwrap(model)
    parameters = trained_parameters(model)
    refuse_training_batch_norm(model)
    engine = engine_of(model) if engine is None else engine
    before = Snapshot(model) if engine.doubted else None
    step = Step.of(model, losses, batch, evaluate(model, losses, batch), parameters, before)
    return engine.norms(step, l1=l1, examples=examples)


def example_sq_norms(
    model: nn.Module, losses: Losses, batch: Batch, *, examples: Sequence[int] | None = None
) -> Float[Tensor, " m"]:
    """Squared gradient norms ‖∇f_i(w)‖² of the examples of a batch; Σ_i ∇f_i is added to `.grad` as backward would.

    Args:
        model: the model, in the mode in which to measure it.
        losses: `losses(model, batch) → (b,)`, one loss per
            example, not averaged.
        batch: any nesting of tensors whose first dimension is the example.
        examples: the examples whose norms are wanted; None for all b. `.grad` receives the sum over all b anyway.

    Returns:
        ‖∇f_i‖², float64, one for each example asked for, in that order.

    Raises:
        TypeError: if `losses` returns no floating-point tensor.
        ValueError: if it returns no finite loss for each example, or the examples are coupled.
        RuntimeError: if the first use's check of two examples against the loop fails.
    """
    norms = batch_norms(model, losses, batch, examples=examples)
    accumulate(trained_parameters(unwrap(model)), norms)
    parts = list(norms.sq_norms.values())
    return torch.stack([part.to(parts[0].device) for part in parts]).sum(0)


def accumulate(parameters: Mapping[str, nn.Parameter], norms: Norms) -> None:
    """Add sums to `.grad` as backward does: in place, or in the layout of the parameter if there is none."""
    with torch.no_grad():
        for name, p in parameters.items():
            gradient = norms.total[name].detach().to(p.dtype)
            if p.grad is None and (gradient.is_sparse or (name in norms.fresh and _lies_like(gradient, p))):
                p.grad = gradient
            elif p.grad is None:
                p.grad = torch.empty_like(p).copy_(gradient)
            elif p.grad.is_sparse and not gradient.is_sparse:
                p.grad = gradient + p.grad
            else:
                p.grad.add_(gradient)


def _lies_like(gradient: Tensor, parameter: nn.Parameter) -> bool:
    """Whether a gradient has the parameter's layout, and memory of its own size."""
    alike = gradient.stride() == parameter.stride() and gradient.device == parameter.device
    return alike and gradient.untyped_storage().nbytes() == gradient.nbytes


def example_gradients(
    model: nn.Module, losses: Losses, batch: Batch, *, chunk_size: int | None = None
) -> Iterator[dict[str, Float[Tensor, "t ..."]]]:
    """The gradients ∇f_i themselves, a chunk of examples at a time, in order; `.grad` is left alone.

    Args:
        model: the model, in the mode in which to measure it.
        losses: `losses(model, batch) → (b,)`.
        batch: any nesting of tensors whose first dimension is the example.
        chunk_size: examples at once, ≥ 1; None for what fits a small share of the free memory.

    Yields:
        Parameter name → (t, *shape of the parameter), for the next t examples.

    Raises:
        ValueError: if `chunk_size` is below one, or for what `example_sq_norms` refuses.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 example; got {chunk_size}.")
    model = unwrap(model)
    refuse_training_batch_norm(model)
    parameters = trained_parameters(model)
    per_example = evaluate(model, losses, batch)
    if not len(per_example):
        return
    step = Step.of(model, losses, batch, per_example, parameters)
    yield from engine_of(model).gradients(step, chunk_size or fallback.chunk_size(parameters))


def loop_gradients(model: nn.Module, losses: Losses, batch: Batch) -> Iterator[dict[str, Tensor]]:
    """∇f_i by one backward pass for each example over the full batch's graph: slow, and right on every model.

    Args:
        model: the model, in the mode in which to measure it.
        losses: `losses(model, batch) → (b,)`.
        batch: the batch.

    Yields:
        Parameter name → gradient, for one example after the other.
    """
    model = unwrap(model)
    yield from fallback.loop(evaluate(model, losses, batch), trained_parameters(model))
