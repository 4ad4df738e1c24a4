"""Diversity as Adam sees it: B_D^P = n·Σg_iᵀPg_i/(sᵀPs) with P = diag(1/(√v̂+ε)).

Lemma 1 holds in the norm of P⁻¹ for w − γPΣg, so everything applies to √P·g_i. v̂ must be *lagged*, taken before the
batch that is measured entered it; otherwise P and the gradients are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor, nn

Preconditioner = Mapping[nn.Parameter, Tensor] | torch.optim.Optimizer
"""Parameter → second moment v̂ (with Adam's default ε), or an optimizer that keeps one and has taken a step."""

DEFAULT_EPSILON = 1e-8


class _SecondMoment(NamedTuple):
    value: Tensor
    epsilon: float


def root_preconditioner(preconditioner: Preconditioner, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """√P of each named parameter, elementwise: (√v̂ + ε)^(−1/2).

    Args:
        preconditioner: parameter → v̂ ≥ 0; or an optimizer that keeps a second moment (Adam, AdamW, NAdam, RAdam,
            RMSprop, Adagrad, Adamax), whose bias-corrected v̂ (the running maximum under AMSGrad) and ε are taken.
        parameters: the parameters that are measured, by name.

    Returns:
        Name → √P, float64, in the parameter's shape; (*shape, 2) for complex parameters, which are pairs of reals.

    Raises:
        TypeError: if an optimizer keeps no second moment.
        ValueError: if a parameter has no second moment, one of another shape, or one that is negative or not finite.
    """
    if isinstance(preconditioner, torch.optim.Optimizer):
        moments = _of_optimizer(preconditioner)
    else:
        moments = {p: _SecondMoment(value, DEFAULT_EPSILON) for p, value in preconditioner.items()}
    roots = {}
    for name, parameter in parameters.items():
        if parameter not in moments:
            raise ValueError(
                f"preconditioner: parameter '{name}' has no second moment. Take an optimizer step first, add it to the "
                "mapping, or freeze the parameter."
            )
        value, epsilon = moments[parameter]
        value, shape = value.detach(), parameter.shape
        if parameter.is_complex():  # a moment of each part, or one of both
            shape = Size((*shape, 2))
            if value.is_complex():
                value = torch.view_as_real(value)
            elif value.shape == parameter.shape:
                value = value.unsqueeze(-1).expand(shape)
        if value.shape != shape:
            raise ValueError(
                f"preconditioner: the second moment of '{name}' must have its shape {tuple(shape)}; "
                f"got {tuple(value.shape)}."
            )
        roots[name] = _root(name, value, epsilon)
    return roots


def _root(name: str, value: Tensor, epsilon: float) -> Tensor:
    if not bool((value >= 0).all() and value.isfinite().all()):
        raise ValueError(f"preconditioner: the second moment of '{name}' must be finite and not negative.")
    return (value.double().sqrt() + epsilon).rsqrt()


def _of_optimizer(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, _SecondMoment]:
    moments = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            if not state:
                continue
            squares = second_moment(state, group)
            if squares is None:
                raise TypeError(
                    "preconditioner must be an optimizer that keeps a second moment of the gradient (Adam, AdamW, "
                    "NAdam, RAdam, RMSprop, Adagrad, Adamax), or a mapping from parameter to second moment; "
                    f"{type(optimizer).__name__} has none. Leave it out for plain SGD."
                )
            moments[parameter] = _SecondMoment(squares, group["eps"])
    return moments


def second_moment(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor | None:
    """v̂ ≥ 0, corrected for its start at zero; P = 1/(√v̂ + ε) in every one of these optimizers.

    Args:
        state: of one parameter.
        group: its parameter group.

    Returns:
        v̂ in the parameter's shape; None if the optimizer keeps none.
    """
    if "exp_avg_sq" in state and "betas" in group:  # Adam, AdamW, NAdam, RAdam
        squares: Tensor = state.get("max_exp_avg_sq", state["exp_avg_sq"])
        remaining: float = group["betas"][1] ** float(state["step"])
        return squares / (1 - remaining)
    if "exp_inf" in state:  # Adamax: a running maximum of |g|, with ε inside
        largest: Tensor = state["exp_inf"]
        return (largest - group["eps"]).clamp(min=0).square()  # type: ignore[no-any-return]
    if "square_avg" in state:  # RMSprop; centred, it divides by the standard deviation
        average: Tensor = state["square_avg"]
        mean: Tensor = state.get("grad_avg", torch.zeros_like(average))
        return average - mean.square()
    total: Tensor | None = state.get("sum") if "lr_decay" in group else None  # Adagrad
    return total
