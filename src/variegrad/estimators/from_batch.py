"""`estimate`: B_D of a model at its weights, from one batch of examples, with an honest interval."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from variegrad.batches import Batch
from variegrad.estimators.batch_size_estimate import BatchSizeEstimate
from variegrad.estimators.example_gram import gram_by_part
from variegrad.estimators.preconditioner import Preconditioner, root_preconditioner
from variegrad.estimators.sample import estimate_from_gram
from variegrad.per_example.evaluate import Losses
from variegrad.shapes import Float


def estimate(
    model: nn.Module,
    losses: Losses,
    batch: Batch,
    *,
    population: int | None = None,
    preconditioner: Preconditioner | None = None,
    per: Callable[[str], str] | None = None,
    confidence: float = 0.95,
) -> BatchSizeEstimate:
    """Estimate B_D, beyond which larger batches hardly help, from the per-example gradients of one batch.

    Needs ‖∇f_i‖², ⟨∇f_i, Σ∇f⟩ and the second-order term of the interval, all from the b × b matrix of ⟨∇f_i, ∇f_j⟩.
    The b gradients are never stored: the matrix is computed from the factors that the backward pass provides (inputs
    and output gradients of each layer), or from slices of the gradients.

    Time: one forward and one backward pass and, per layer with d weights and T positions, about 2b(T + b)d operations
    for slices, or 4b²T²(p + q) for a p × q weight with few positions, whichever is less: a few training steps. Memory
    beyond a training step: inputs and output gradients of all layers at once, and about 100 MB. Layers without a rule
    take one backward pass per example. For two kinds of parameters, norms and ⟨∇f_i, Σ∇f⟩ are exact but the
    second-order term is a random sketch, which makes the interval slightly wider on average and does not change the
    estimate: layers without a rule whose gradients exceed 64 MB (these take a second pass), and, with a preconditioner,
    linear layers of more than 65,536 weights with one position per example.

    Example:
        ```python
        estimate = vg.estimate(model, losses, batch, population=len(dataset), per=by_layer)
        print(estimate, estimate.parts["head"])
        ```

    Args:
        model: at the weights in question; its weights, buffers and `.grad` do not change.
        losses: `losses(model, batch) → (b,)`, one unreduced loss per example.
        batch: a random sample of distinct examples; 64 to 256 of them are usually enough (`examples_needed`).
        population: size of the data set the batch was drawn from; None for fresh or augmented data.
        preconditioner: for Adam and its relatives: the optimizer before its step, or parameter → lagged second moment
            v̂ (for complex parameters of the shape of `torch.view_as_real`, or one for both parts). The estimate is
            then of B_D^P, the bound for preconditioned steps.
        per: also estimate B_D for each part of the model: `by_parameter`, `by_layer`, `by_group(...)`, or your own
            function from the name of a parameter to the name of its part.
        confidence: nominal level of the two-sided interval.

    Returns:
        The estimate with its interval and, if asked for, its `parts`.

    Raises:
        TypeError: if the losses are not a floating-point tensor, or the optimizer keeps no second moment.
        ValueError: if the losses are not one finite number per example with a graph, examples are coupled, the batch is
            too small or larger than the population, or second moments do not match.

    Source: docs/understand/intervals.md, for the coverage of the interval.
    """
    scales = None if preconditioner is None else lambda parameters: root_preconditioner(preconditioner, parameters)
    grams = gram_by_part(model, losses, batch, per or _whole, scales)
    whole = estimate_from_gram(_total(grams), population=population, confidence=confidence)
    if per is None:
        return whole
    parts = {k: estimate_from_gram(v, population=population, confidence=confidence) for k, v in grams.items()}
    return dataclasses.replace(whole, parts=parts)


def by_parameter(name: str) -> str:
    """Every parameter is a part of its own, for `estimate(per=by_parameter)`."""
    return name


def by_layer(name: str) -> str:
    """The parameters of one module are a part, named as the module is, for `estimate(per=by_layer)`."""
    return name.rpartition(".")[0]


def by_group(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[str], str]:
    """The parameter groups of an optimizer are the parts, for `estimate(per=by_group(model, optimizer))`.

    Args:
        model: whose parameter names are meant.
        optimizer: whose `param_groups` are meant; "group 0", "group 1", … and "no group" for what it does not train.

    Returns:
        Parameter name → name of the group.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    parts = {
        names[parameter]: f"group {index}"
        for index, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
        if parameter in names
    }
    return lambda name: parts.get(name, "no group")


def _whole(_: str) -> str:
    return ""


def _total(grams: Mapping[str, Float[Tensor, "b b"]]) -> Float[Tensor, "b b"]:
    return torch.stack(tuple(grams.values())).sum(0)
