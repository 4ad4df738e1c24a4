"""The norm in which the optimizer in use descends: B_D of preconditioned steps, for Adam and its relatives.

Steps w − γP·g obey the paper's Lemma 1 for √P·g (`estimators.preconditioner`), P = 1/(√v̂ + ε). v̂ is read between the
forward and the optimizer's step: it does not know the gradients that are measured with it. Before the optimizer's first
step there is none, and no reading. Sign methods and Muon have a dual norm that is no inner product's, for which the
formulas of micro-batches and workers do not hold: `sources.folds` measures it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from variegrad.estimators.geometry import (
    EUCLIDEAN_METHODS,
    SIGN_METHODS,
    SPECTRAL_METHODS,
    DualNorm,
    Sign,
    Spectral,
)
from variegrad.estimators.preconditioner import second_moment
from variegrad.monitor.norms import Euclidean, sq_norm


class Preconditioned(Euclidean):
    """‖√P·g‖₂ with the optimizer's second moments as they are when a norm is asked for.

    Args:
        optimizer: whose state is read, and never changed.
        model: whose parameters are named.
    """

    exact_for_examples = False  # √P does not pass through the factors that give an example's norm

    def __init__(self, optimizer: Optimizer, model: nn.Module) -> None:
        self._optimizer, self._model = optimizer, model
        self._named: dict[str, nn.Parameter] = dict(model.named_parameters())
        self.name = type(optimizer).__name__.lower()

    def sq_norm(self, name: str, gradient: Tensor) -> Tensor:
        """‖√P·g‖² in float64, without a host read of a gradient; NaN before the optimizer's first step."""
        parameter = self._named[name]
        found = self._moment_of(parameter)
        if found is None:
            return torch.full((), torch.nan, dtype=torch.float64, device=gradient.device)
        moment, epsilon = found
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            moment = moment[tuple(gradient.indices())]
            gradient = gradient.values()
        scale = (moment.sqrt() + epsilon).rsqrt()
        return sq_norm(gradient.detach().to(scale.dtype if not gradient.is_complex() else gradient.dtype) * scale)

    def _moment_of(self, parameter: nn.Parameter) -> tuple[Tensor, float] | None:
        state: Mapping[str, Any] = self._optimizer.state.get(parameter, {})
        group = next(g for g in self._optimizer.param_groups if any(p is parameter for p in g["params"]))
        stepped = bool(state) and float(state.get("step", 1)) > 0  # Adagrad has zeros before its first step
        moment = second_moment(state, group) if stepped else None
        return None if moment is None else (moment.to(parameter.dtype).clamp(min=0), float(group["eps"]))


def norm_of(optimizer: Optimizer | None, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Euclidean:
    """The norm for `Monitor(optimizer=)`."""
    inside: Any = getattr(optimizer, "optimizer", optimizer)  # as Accelerate wraps it
    if inside is None:
        return Euclidean()
    theirs = {id(p) for group in inside.param_groups for p in group["params"]}
    left = [name for name, p in parameters.items() if id(p) not in theirs]
    if left:
        raise ValueError(
            f"optimizer: it does not update parameter {left[0]!r}, which is trained. Pass the optimizer of all trained "
            "parameters, or freeze the others."
        )
    adaptive = any("eps" in group and ("betas" in group or "alpha" in group or "lr_decay" in group)
                   for group in inside.param_groups)  # fmt: skip
    if adaptive:
        return Preconditioned(inside, model)
    if not {base.__name__.lower() for base in type(inside).__mro__} & EUCLIDEAN_METHODS:
        raise TypeError(
            f"optimizer: the norm in which {type(inside).__name__} descends is not known, unlike those of SGD, "
            "Adam and its relatives, sign methods and Muon. Leave out optimizer= to get the Euclidean bound."
        )
    return Euclidean()


def dual_norms(optimizer: Optimizer | None, parameters: Mapping[str, nn.Parameter]) -> dict[str, DualNorm]:
    """The parameters that a sign method or Muon updates, by name, each with its norm; empty for other optimizers."""
    inside: Any = getattr(optimizer, "optimizer", optimizer)
    if inside is None:
        return {}
    names = {parameter: name for name, parameter in parameters.items()}
    kinds = {base.__name__.lower() for base in type(inside).__mro__}
    found: dict[str, DualNorm] = {}
    for group in inside.param_groups:
        geometry: DualNorm | None = Sign() if kinds & SIGN_METHODS else None
        if group.get("use_muon", bool(kinds & SPECTRAL_METHODS) and "use_muon" not in group):
            geometry = Spectral()
        if geometry is not None:
            found |= {names[p]: geometry for p in group["params"] if p in names and geometry.covers(p)}
    return found
