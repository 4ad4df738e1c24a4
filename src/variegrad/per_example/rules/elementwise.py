"""Element-wise uses with broadcasting: biases, scales, position embeddings, PReLU.

With E the gradient of the broadcast parameter (∂Y, or ∂Y times the other factor), g_i is E summed over every dimension
that the parameter was broadcast along, except the example's.
"""

from __future__ import annotations

from torch import Size, Tensor

from variegrad.per_example.graph import saved
from variegrad.per_example.rules.contribution import Contribution, Dense, NotCovered
from variegrad.per_example.rules.visit import Visit


def add(visit: Visit, slot: int, shape: Size) -> Contribution:
    """Y = a + α·b: ∂Y itself, times α for the second term."""
    return _scaled(visit, shape, saved(visit.node, "alpha") if slot == 1 else 1)


def sub(visit: Visit, slot: int, shape: Size) -> Contribution:
    """Y = a − α·b."""
    return _scaled(visit, shape, -saved(visit.node, "alpha") if slot == 1 else 1)


def _scaled(visit: Visit, shape: Size, scale: float | int) -> Dense:
    reduced = visit.reduced(visit.rows(visit.gradient), shape)
    return Dense(reduced if scale == 1 else reduced * scale)


def mul(visit: Visit, slot: int, shape: Size) -> Contribution:
    """Y = a·b: ∂Y times the other factor."""
    other = saved(visit.node, "other") if slot == 0 else saved(visit.node, "self")
    return Dense(visit.reduced(visit.rows(visit.gradient) * visit.factor(other), shape))


def div(visit: Visit, slot: int, shape: Size) -> Contribution:
    """Y = a/b: ∂Y/b for the numerator, −∂Y·a/b² for the denominator."""
    divisor = visit.factor(saved(visit.node, "other"))
    entries = visit.rows(visit.gradient) / divisor
    if slot == 1:
        entries = -entries * (visit.factor(saved(visit.node, "self")) / divisor)
    return Dense(visit.reduced(entries, shape))


def prelu(visit: Visit, slot: int, shape: Size) -> Contribution:
    """Y = max(x, 0) + w·min(x, 0): ∂Y·min(x, 0)."""
    if slot != 1:
        raise NotCovered("the input of an activation")
    below: Tensor = visit.rows(saved(visit.node, "self")).clamp(max=0)
    return Dense(visit.reduced(visit.rows(visit.gradient) * below, shape))


def expand(visit: Visit, slot: int, shape: Size) -> Contribution:  # noqa: ARG001
    """Y = w expanded: ∂Y, summed over the copies of each example."""
    return _scaled(visit, shape, 1)


def repeat(visit: Visit, slot: int, shape: Size) -> Contribution:  # noqa: ARG001
    """Y = w repeated: ∂Y, summed over the copies of each example; InstanceNorm repeats its weight so."""
    layout, gradient = visit.layout, visit.gradient
    block = (1,) * (gradient.dim() - len(shape)) + tuple(shape)
    # Every dimension is (copies, block); the examples must run along the copies.
    if not layout.example_major or (gradient.shape[layout.dim] // visit.count) % block[layout.dim]:
        raise NotCovered("a repetition whose copies mix examples")
    view = visit.rows(gradient)
    divided = [part for k, size in enumerate(block) for part in (view.shape[k + 1] // size, size)]
    view = view.reshape(len(view), *divided)
    return Dense(view.sum([2 * k + 1 for k in range(len(block))]).reshape(len(view), *shape))
