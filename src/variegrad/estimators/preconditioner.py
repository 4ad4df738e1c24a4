"""Diversity as Adam sees it: B_D^P = n·Σg_iᵀPg_i/(sᵀPs) with P = diag(1/(√v̂+ε)).

Lemma 1 holds in the norm of P⁻¹ for w − γPΣg, so everything applies to √P·g_i. v̂ must be *lagged*, taken before the
batch that is measured entered it; otherwise P and the gradients are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

Preconditioner = Mapping[nn.Parameter, Tensor] | torch.optim.Optimizer
"""Parameter → second moment v̂ (with Adam's default ε), or an Adam that has taken a step."""

DEFAULT_EPSILON = 1e-8


class _SecondMoment(NamedTuple):
    value: Tensor
    epsilon: float


def root_preconditioner(preconditioner: Preconditioner, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """√P of each named parameter, elementwise: (√v̂ + ε)^(−1/2).

    Args:
        preconditioner: parameter → v̂ ≥ 0; or an Adam or AdamW, whose bias-corrected v̂ (the running maximum under
            AMSGrad) and ε are taken.
        parameters: the parameters that are measured, by name.

    Returns:
        Name → √P, float64, in the parameter's shape.

    Raises:
        TypeError: if an optimizer is no Adam.
        ValueError: if a parameter has no second moment, one of another shape, or one that is negative or not finite.
    """
    if isinstance(preconditioner, torch.optim.Optimizer):
        moments = _of_adam(preconditioner)
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
        if value.shape != parameter.shape:
            raise ValueError(
                f"preconditioner: the second moment of '{name}' must have its shape {tuple(parameter.shape)}; "
                f"got {tuple(value.shape)}."
            )
        if not bool((value >= 0).all() and value.isfinite().all()):
            raise ValueError(f"preconditioner: the second moment of '{name}' must be finite and not negative.")
        roots[name] = (value.detach().double().sqrt() + epsilon).rsqrt()
    return roots


def _of_adam(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, _SecondMoment]:
    moments = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            if not state:
                continue
            if "exp_avg_sq" not in state or "betas" not in group:
                raise TypeError(
                    "preconditioner must be Adam or AdamW, or a mapping from parameter to second moment; "
                    f"{type(optimizer).__name__} keeps no 'exp_avg_sq'. Leave it out for plain SGD."
                )
            squares = state.get("max_exp_avg_sq", state["exp_avg_sq"])
            correction = 1 - group["betas"][1] ** float(state["step"])
            moments[parameter] = _SecondMoment(squares / correction, group["eps"])
    return moments
