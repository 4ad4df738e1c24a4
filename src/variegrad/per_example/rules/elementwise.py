"""Element-wise uses with broadcasting: biases, scales, position embeddings, PReLU.

With E the gradient of the broadcast parameter (∂Y, or ∂Y times the other factor), g_i is E summed over every dimension
that the parameter was broadcast along, except the example's.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import Node

from variegrad.per_example.ownership import Layout
from variegrad.per_example.rules.contribution import Contribution, Dense, NotCovered


def reduce_rows(entries: Tensor, layout: Layout, count: int, shape: torch.Size) -> Float[Tensor, "b ..."]:
    """Sum the gradient of a broadcast parameter over what it was broadcast along, example by example.

    Args:
        entries: E, the gradient before summing.
        layout: where its examples are.
        count: b.
        shape: of the parameter; aligned to the last dimensions of E, as broadcasting does.

    Returns:
        Shape (b, *shape).

    Raises:
        NotCovered: if the parameter has entries of its own for each example.
    """
    aligned = (1,) * (entries.dim() - len(shape)) + tuple(shape)
    if len(aligned) != entries.dim() or aligned[layout.dim] != 1:
        raise NotCovered("a parameter with entries for each example")
    view = layout.split(entries, count)
    # `split` leaves the example first and what is left of its dimension in place, so shapes still align after it.
    summed = [
        k + 1 for k, (size, full) in enumerate(zip(aligned, entries.shape, strict=True)) if size == 1 and full >= 1
    ]
    summed = [k for k in summed if view.shape[k] != 1]
    return (view.sum(summed) if summed else view).reshape(count, *shape)


def add(node: Node, slot: int, gradient: Tensor, layout: Layout, count: int, shape: torch.Size) -> Contribution:
    """Y = a + α·b: the output gradient itself, times α for the second term.

    Args:
        node: the sum.
        slot: which term is the parameter.
        gradient: the gradient at its output.
        layout: where its examples are.
        count: b.
        shape: of the parameter's derived form.

    Returns:
        The contribution.
    """
    reduced = reduce_rows(gradient, layout, count, shape)
    alpha = node._saved_alpha if slot == 1 else 1  # type: ignore[attr-defined]
    return Dense(reduced if alpha == 1 else reduced * alpha)


def sub(node: Node, slot: int, gradient: Tensor, layout: Layout, count: int, shape: torch.Size) -> Contribution:
    """Y = a − α·b.

    Args:
        node: the difference.
        slot: which term is the parameter.
        gradient: the gradient at its output.
        layout: where its examples are.
        count: b.
        shape: of the parameter's derived form.

    Returns:
        The contribution.
    """
    reduced = reduce_rows(gradient, layout, count, shape)
    return Dense(reduced if slot == 0 else reduced * -node._saved_alpha)  # type: ignore[attr-defined]


def mul(node: Node, slot: int, gradient: Tensor, layout: Layout, count: int, shape: torch.Size) -> Contribution:
    """Y = a·b: the output gradient times the other factor.

    Args:
        node: the product.
        slot: which factor is the parameter.
        gradient: the gradient at its output.
        layout: where its examples are.
        count: b.
        shape: of the parameter's derived form.

    Returns:
        The contribution.
    """
    other = node._saved_other if slot == 0 else node._saved_self  # type: ignore[attr-defined]
    return Dense(reduce_rows(gradient * other, layout, count, shape))


def div(node: Node, slot: int, gradient: Tensor, layout: Layout, count: int, shape: torch.Size) -> Contribution:
    """Y = a/b: ∂Y/b for the numerator, −∂Y·a/b² for the denominator.

    Args:
        node: the quotient.
        slot: which part is the parameter.
        gradient: the gradient at its output.
        layout: where its examples are.
        count: b.
        shape: of the parameter's derived form.

    Returns:
        The contribution.
    """
    divisor = node._saved_other  # type: ignore[attr-defined]
    entries = gradient / divisor
    if slot == 1:
        entries = -entries * (node._saved_self / divisor)  # type: ignore[attr-defined]
    return Dense(reduce_rows(entries, layout, count, shape))


def prelu(node: Node, slot: int, gradient: Tensor, layout: Layout, count: int, shape: torch.Size) -> Contribution:
    """Y = max(x, 0) + w·min(x, 0): ∂Y·min(x, 0).

    Args:
        node: the activation.
        slot: 1, the slope.
        gradient: the gradient at its output.
        layout: where its examples are.
        count: b.
        shape: of the parameter's derived form.

    Returns:
        The contribution.

    Raises:
        NotCovered: for its input.
    """
    if slot != 1:
        raise NotCovered("the input of an activation")
    below: Tensor = node._saved_self.clamp(max=0)  # type: ignore[attr-defined]
    return Dense(reduce_rows(gradient * below, layout, count, shape))


def broadcast(node: Node, slot: int, gradient: Tensor, layout: Layout, count: int, shape: torch.Size) -> Contribution:
    """Y = w expanded or repeated: ∂Y, summed over the copies of each example.

    Args:
        node: the expansion.
        slot: 0.
        gradient: the gradient at its output.
        layout: where its examples are.
        count: b.
        shape: of the parameter's derived form.

    Returns:
        The contribution.

    Raises:
        NotCovered: if the examples run within the repeated block.
    """
    if node.name() == "ExpandBackward0":
        return Dense(reduce_rows(gradient, layout, count, shape))
    # repeat: every dimension is (copies, size); the example must run along the copies.
    block = (1,) * (gradient.dim() - len(shape)) + tuple(shape)
    rest = gradient.shape[layout.dim] // count
    size = block[layout.dim]
    if not layout.example_major or rest % size:
        raise NotCovered("a repetition whose copies mix examples")
    view = layout.split(gradient, count)
    for dim, length in enumerate(block):
        at = 2 * dim + 1
        view = view.unflatten(at, (view.shape[at] // length, length))
    return Dense(view.sum([2 * dim + 1 for dim in range(len(block))]).reshape(count, *shape))
