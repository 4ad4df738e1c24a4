"""The check of a reading: two examples and the whole weighted gradient, by extra backward passes on the same graph.

What arrives at the parameters in the user's own backward pass must be Σc_i∇f_i of what was watched, and nothing else: a
weight penalty, or another loss on the same model, would be taken for noise or signal of the examples. Everything is
compared on the gradients' device; the errors are read with the sums of the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from variegrad.monitor.loss import Watched
from variegrad.monitor.norms import sq_norm
from variegrad.per_example.check import FLOOR, LOW_PRECISION_FLOOR, prints
from variegrad.per_example.evaluate import left_as_found
from variegrad.per_example.passes import gradients
from variegrad.per_example.rules.rounding import LOW_PRECISION_TOLERANCE, TOLERANCE
from variegrad.shapes import Float

DEEP_CHECKS = 2


def to_compare(watched: Watched, parameters: Mapping[str, nn.Parameter], number: int) -> dict[str, nn.Parameter]:
    """All parameters at a structure's first check; at later ones a weight and a bias, first through the whole depth."""
    leaves = watched.graph.leaves
    if number == 1:
        return {name: parameters[name] for name in leaves}
    if number <= DEEP_CHECKS:
        names = sorted(leaves, key=lambda name: parameters[name].numel())
    else:  # a further pass down to the first layers would keep all activations until its end
        names = watched.graph.last_used
    flat = [name for name in names if parameters[name].dim() < 2][:1]
    return {name: parameters[name] for name in [n for n in names if n not in flat][:1] + flat}


class SelfCheck:
    """What the extra passes say, and what arrived.

    Args:
        watched: the losses.
        model: the unwrapped model, whose buffers and random state stay as they are.
        to_compare: the parameters whose gradients are compared.
        rows: the examples whose norms rules make, of which two are differentiated alone; empty for none.
    """

    def __init__(
        self, watched: Watched, model: nn.Module, to_compare: Mapping[str, nn.Parameter], rows: Sequence[int]
    ) -> None:
        self._watched, self._model, self._to_compare = watched, model, to_compare
        self._places = sorted({0, len(rows) - 1}) if rows else []
        self._rows = rows
        self._alone: list[dict[str, Tensor]] = []
        self._whole: dict[str, Tensor] = {}
        self._arrived: dict[str, Tensor] = {}
        self._names: list[str] = []
        self._tolerance = TOLERANCE.get(watched.graph.coarsest, LOW_PRECISION_TOLERANCE)
        self._floor = FLOOR.get(watched.graph.coarsest, LOW_PRECISION_FLOOR)

    def expect(self, weights: Float[Tensor, " b"]) -> None:
        """Differentiate two examples alone and the weighted sum of all, when the user's pass begins."""
        with left_as_found(self._model):
            losses = self._watched.per_example()
            for place in self._places:
                one = torch.zeros_like(weights)
                one[self._rows[place]] = weights[self._rows[place]]
                self._alone.append({name: sq_norm(g) for name, g in self._gradients(losses, one).items()})
            self._whole = {name: prints(g) for name, g in self._gradients(losses, weights).items()}

    def arrive(self, name: str, gradient: Tensor) -> None:
        """A gradient arrived in the user's pass."""
        if name in self._whole:
            self._arrived[name] = prints(gradient)

    def errors(self, sq_norms: Mapping[str, Float[Tensor, " m"]]) -> Float[Tensor, " k"]:
        """How far each parameter is off, in units of what rounding explains: above one, something differs."""
        found, names = [], []
        zero = torch.zeros((), dtype=torch.float64, device=next(iter(self._to_compare.values())).device)
        largest = zero
        for place, alone in zip(self._places, self._alone, strict=True):
            whole = torch.stack([*alone.values(), zero]).sum()
            largest = torch.maximum(largest, whole)
            for name, norm in alone.items():
                rule = sq_norms[name][place] if name in sq_norms else zero
                allowed = self._tolerance * torch.maximum(rule, norm) + self._floor * whole
                found.append(_ratio((rule - norm).abs(), allowed))
                names.append(f"alone {name}")
        total = torch.stack([p[0] for p in self._whole.values()] + [largest]).sum()
        for name, expected in self._whole.items():
            arrived = self._arrived.get(name, torch.zeros_like(expected))
            off = arrived - expected
            # A sum that nearly cancels is rounded relative to the examples that it is a sum of.
            scale = expected[0] + arrived[0] + largest
            norm_off = _ratio(off[0].abs(), self._tolerance * scale + self._floor * total)
            other = _ratio(off[1].square(), self._tolerance**2 * scale + self._floor * total)
            found.append(torch.maximum(norm_off, other) / 10)
            names.append(f"whole {name}")
        self._names = names
        return torch.stack([*found, zero])

    def complaint(self, errors: Sequence[float]) -> str | None:
        """What the largest error above one means, or None."""
        worst, kind = max(zip(errors, self._names, strict=False), default=(0.0, ""))
        if not worst > 1:
            return None
        which, name = kind.split(" ", 1)
        if which == "alone":
            return (
                f"the gradient of one example alone differs at parameter {name!r} from what the backward pass showed: "
                "is another loss, computed from the same hidden values, differentiated together with the watched one, "
                "or does a hook change the gradient of this parameter?"
            )
        return (
            f"the gradient that arrived at parameter {name!r} is not that of the watched losses: something else was "
            "differentiated together with them (a weight penalty, an auxiliary loss). Move a penalty into the "
            "optimizer's weight_decay, or add each example's share to its loss before watch"
        )

    def _gradients(self, losses: Tensor, weights: Tensor) -> dict[str, Tensor]:
        # Not `backward`: that would run the hooks of a distributed wrapper.
        others = self._model.parameters()
        found = gradients(losses, weights.to(losses), self._to_compare.values(), others=others)
        return {name: g for name, g in zip(self._to_compare, found, strict=True) if g is not None}


def _ratio(error: Tensor, allowed: Tensor) -> Tensor:
    return torch.where(error == 0, 0.0, error / allowed)
