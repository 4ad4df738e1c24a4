"""From the gradient of what a rule saw to the gradient of the parameter: the adjoint of what prepares it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from variegrad.per_example.rules import Contribution, Summed, combine
from variegrad.per_example.rules.contribution import l1_norms, sq_norms
from variegrad.per_example.uses import Use
from variegrad.shapes import Float


def as_one(parts: Sequence[tuple[Use, Contribution]]) -> tuple[Use, Contribution] | None:
    """All uses of a parameter as one contribution of the same norms, if their layouts allow it."""
    kinds = {use.kind for use, _ in parts}
    if None in kinds or not all(use.keeps_norms for use, _ in parts):
        return None
    alike: list[Contribution | None] = [part for _, part in parts]
    if len(kinds) > 1:  # a table is read as it is, and multiplied with as its transpose
        alike = [part.transposed() if use.turned else part for use, part in parts]
    straight = sorted((use for use, _ in parts if len(kinds) == 1 or not use.turned), key=lambda use: len(use.chain))
    same = [part for part in alike if part is not None]
    if not straight or len(same) < len(alike) or len({part.shape for part in same}) > 1:
        return None
    return straight[0], combine(same)


def sum_down(
    parts: Sequence[tuple[Use, Contribution]], start: int, stop: int, parameter: nn.Parameter
) -> Float[Tensor, "t ..."]:
    """The gradients of examples start … stop−1, all uses of a parameter together."""
    first, *others = (carried_down(use, part.rows(start, stop), parameter, batched=True) for use, part in parts)
    return sum(others, start=first)


def summed_through_chains(
    parts: Sequence[tuple[Use, Contribution]], parameter: nn.Parameter, *, total: bool, absolute: bool
) -> tuple[Summed, Float[Tensor, " b"] | None]:
    """‖∇f_i‖², and Σ∇f_i and ‖∇f_i‖₁ if they are asked for, a tile at a time."""
    norms, sizes, whole = [], [], None
    widest = max((part for _, part in parts), key=lambda part: part.shape.numel())
    for start, stop in widest.tiles():
        rows = sum_down(parts, start, stop, parameter)
        norms.append(sq_norms(rows))
        if absolute:
            sizes.append(l1_norms(rows))
        if total:
            whole = rows.sum(0) if whole is None else whole.add_(rows.sum(0))
    return Summed(torch.cat(norms), whole), torch.cat(sizes) if absolute else None


def carried_down(use: Use, gradient: Tensor, parameter: nn.Parameter, *, batched: bool = False) -> Tensor:
    """The adjoint of a use's chain: from the gradient of what a rule saw to the gradient of the parameter."""
    names = {node.name() for node in use.chain}
    if not names:
        return gradient.to(parameter.dtype)
    gradient = gradient.to_dense() if gradient.is_sparse else gradient
    if names == {"TBackward0"}:
        return gradient.transpose(-1, -2) if len(use.chain) % 2 else gradient
    gradient = gradient.to(use.dtype)
    (result,) = torch.autograd.grad([use.edge], [parameter], [gradient], retain_graph=True, is_grads_batched=batched)
    return result
