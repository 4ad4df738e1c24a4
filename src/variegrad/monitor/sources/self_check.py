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
from variegrad.per_example.evaluate import left_as_found
from variegrad.per_example.verify import LOW_PRECISION_TOLERANCE, TOLERANCE
from variegrad.shapes import Float

# A structure is compared with the loop when first met, then at its 2nd, 4th, 8th … reading, and at least so often:
# first at all parameters, then through the whole depth, later near the loss, where it takes no memory worth mentioning.
AT_LEAST_EVERY = 32
DEEP_CHECKS = 2
BLOCK = 1 << 20


class CheckSchedule:
    """How often each structure was read, and so what is compared at its next reading."""

    def __init__(self) -> None:
        self._readings: dict[int, int] = {}

    def due(self, watched: Watched, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter] | None:
        """All parameters at first; later, now and then, a weight and a bias; otherwise None. Counts a reading."""
        key = watched.graph.signature
        number = self._readings[key] = self._readings.get(key, 0) + 1
        leaves = watched.graph.leaves
        if number == 1:
            return {name: parameters[name] for name in leaves}
        if number & (number - 1) and number % AT_LEAST_EVERY:
            return None
        if number <= DEEP_CHECKS:
            names = sorted(leaves, key=lambda name: parameters[name].numel())
        else:  # a further pass down to the first layers would keep all activations until its end
            names = watched.graph.last_used
        flat = [name for name in names if parameters[name].dim() < 2][:1]
        return {name: parameters[name] for name in [n for n in names if n not in flat][:1] + flat}

    def not_made(self, watched: Watched) -> None:
        """Let the next reading of this structure be compared as if it were the first."""
        self._readings.pop(watched.graph.signature, None)


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
        dtype = next(iter(to_compare.values())).dtype
        low = watched.graph.low_precision
        self._tolerance = LOW_PRECISION_TOLERANCE if low else TOLERANCE.get(dtype, LOW_PRECISION_TOLERANCE)

    def expect(self, weights: Float[Tensor, " b"]) -> None:
        """Differentiate two examples alone and the weighted sum of all, when the user's pass begins."""
        with left_as_found(self._model):
            losses = self._watched.per_example()
            for place in self._places:
                one = torch.zeros_like(weights)
                one[self._rows[place]] = weights[self._rows[place]]
                self._alone.append({name: sq_norm(g) for name, g in self._gradients(losses, one).items()})
            self._whole = {name: _prints(g) for name, g in self._gradients(losses, weights).items()}

    def arrive(self, name: str, gradient: Tensor) -> None:
        """A gradient arrived in the user's pass."""
        if name in self._whole:
            self._arrived[name] = _prints(gradient)

    def errors(self, sq_norms: Mapping[str, Float[Tensor, " m"]]) -> Float[Tensor, " k"]:
        """Relative errors divided by what rounding explains: above one, something differs. NaN if nothing is finite."""
        found, names = [], []
        device = next(iter(self._to_compare.values())).device
        zero = torch.zeros((), dtype=torch.float64, device=device)
        largest = zero
        for place, alone in zip(self._places, self._alone, strict=True):
            size = torch.stack([*alone.values(), zero]).sum()
            largest = torch.maximum(largest, size)
            for name, norm in alone.items():
                rule = sq_norms[name][place] if name in sq_norms else zero
                found.append(_ratio((rule - norm).abs(), size) / self._tolerance)
                names.append(f"alone {name}")
        scale = torch.stack([p[0] for p in self._whole.values()] + [largest]).sum()
        for name, expected in self._whole.items():
            off = (self._arrived.get(name, torch.zeros_like(expected)) - expected).abs()
            worst = torch.maximum(_ratio(off[0], scale), _ratio(off[1], scale.sqrt()))
            found.append(worst / (10 * self._tolerance))
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
                "is another loss computed from the same hidden values differentiated along with the watched one, or "
                "does a hook change the gradient of this parameter?"
            )
        return (
            f"the gradient that arrived at parameter {name!r} is not that of the watched losses: something else was "
            "differentiated along with them (a weight penalty, an auxiliary loss). Move a penalty into the optimizer's "
            "weight_decay, or add what belongs to each example to its loss before watch"
        )

    def _gradients(self, losses: Tensor, weights: Tensor) -> dict[str, Tensor]:
        # Not `backward`: that would run the hooks of a distributed wrapper.
        found: tuple[Tensor | None, ...] = torch.autograd.grad(
            [losses], list(self._to_compare.values()), [weights.to(losses)], retain_graph=True, allow_unused=True
        )
        return {name: g for name, g in zip(self._to_compare, found, strict=True) if g is not None}


def _ratio(error: Tensor, scale: Tensor) -> Tensor:
    return torch.where(scale > 0, error / scale, error * 1e300)


def _prints(gradient: Tensor) -> Float[Tensor, " 2"]:
    """‖g‖² and ⟨g, z⟩ with z_k = cos k, block by block: equal norms of different tensors are told apart."""
    if gradient.is_sparse:
        gradient = gradient.to_dense()
    flat = gradient.detach().reshape(-1)
    total = torch.zeros(2, dtype=torch.float64, device=flat.device)
    for start in range(0, flat.numel(), BLOCK):
        values = flat[start : start + BLOCK].double()
        places = torch.arange(start, start + len(values), dtype=torch.float64, device=flat.device)
        total += torch.stack([values.dot(values), values.dot(places.cos_())])
    return total
