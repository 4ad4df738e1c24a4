"""The check of per-example gradients against the loop: what is compared, how closely, and at which batches.

A reference is one backward pass for an example alone and one for the (weighted) sum of all, on the batch's own graph,
by `autograd.grad`: nothing is accumulated, no hook of the user runs. Gradients are reduced at once to two numbers for
each parameter, ‖g‖² and a projection ⟨g, u⊗v⟩ that tells different gradients of equal norm apart; they stay on the
device and are read once. Each parameter is compared relative to itself, plus what rounding may leave of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from variegrad.keys import generator
from variegrad.per_example.passes import SIXTEEN, gradients
from variegrad.per_example.plan import Disagreement
from variegrad.per_example.rules.contribution import sq_norms
from variegrad.per_example.rules.rounding import LOW_PRECISION_TOLERANCE, TOLERANCE
from variegrad.shapes import Float

# So many batches of a structure are checked before the gaps double.
FIRST = 4
# The part of the whole ‖∇f_i‖² that cancellation may leave of one parameter's.
FLOOR = {torch.float64: 1e-20, torch.float32: 1e-8, torch.complex128: 1e-20, torch.complex64: 1e-8}
LOW_PRECISION_FLOOR = 1e-4


class Schedule:
    """When to check: a structure's first four, 8th, 16th … batch, every 64th from then on, and when `again` says so.

    Args:
        every: how many batches may pass between two checks at most.
        remembered: for how many structures batches are counted; the least recently seen is forgotten, and so checked.
    """

    def __init__(self, every: int = 64, remembered: int = 256) -> None:
        self.every, self.remembered = every, remembered
        self._batches: OrderedDict[int, int] = OrderedDict()

    def due(self, structure: int) -> bool:
        """Count one more batch of this structure, and say whether it is to be checked."""
        number = self._batches[structure] = self._batches.get(structure, 0) + 1
        self._batches.move_to_end(structure)
        while len(self._batches) > self.remembered:
            self._batches.popitem(last=False)
        doubled = number < self.every and number & (number - 1) == 0
        return number <= FIRST or doubled or number % self.every == 0

    def number(self, structure: int) -> int:
        """How many batches of this structure were counted."""
        return self._batches.get(structure, 0)

    def again(self, structure: int) -> None:
        """Check the next batch too: something was learned anew, was zero until now, or could not be compared."""
        self._batches.pop(structure, None)

    def example(self, structure: int, count: int) -> int:
        """Which of b examples to differentiate alone at this batch: another one each time, a function of its number."""
        return int(generator(0, "checked example", self.number(structure), count).integers(count))


def prints(gradient: Tensor) -> Float[Tensor, " 2"]:
    """‖g‖² and ⟨g, u⊗v⟩ with u_r = cos r over the first dimension and v_c = cos(c/2 + 1) over the others, float64."""
    gradient = gradient.detach()
    if gradient.is_complex():
        gradient = torch.view_as_real(gradient.resolve_conj())
    if gradient.is_sparse:
        whole = gradient.coalesce()
        places, values = whole.indices()[0], whole.values()
        if whole.sparse_dim() != 1:
            return prints(gradient.to_dense())
    else:
        places, values = None, gradient if gradient.dim() else gradient.unsqueeze(0)
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    if not values.numel():
        return torch.zeros(2, dtype=torch.float64, device=values.device)
    values = values.reshape(len(values), -1)
    rows = torch.arange(len(values), device=values.device) if places is None else places
    columns = (torch.arange(values.shape[1], device=values.device, dtype=torch.float64) / 2 + 1).cos()
    projection = rows.double().cos() @ (values @ columns.to(values.dtype)).double()
    return torch.stack((sq_norms(values).sum(), projection))


@dataclass(frozen=True)
class Reference:
    """What the loop says of some examples and of the weighted sum of all.

    Attributes:
        names: the parameters that were asked for.
        alone: example → (parameters, 2): the prints of c_i∇f_i.
        whole: (parameters, 2): the prints of Σc_i∇f_i; in 16 bits also those of what backward itself leaves, whose long
            sums stop growing: either will do.
        dtype: the coarsest floating-point type that a gradient has on the way.
    """

    names: tuple[str, ...]
    alone: Mapping[int, Float[Tensor, "p 2"]]
    whole: tuple[Float[Tensor, "q 2"], ...]
    dtype: torch.dtype

    @classmethod
    def of(
        cls,
        per_example: Float[Tensor, " b"],
        parameters: Mapping[str, nn.Parameter],
        examples: Sequence[int],
        dtype: torch.dtype,
        weights: Float[Tensor, " b"] | None = None,
    ) -> Reference:
        """Differentiate some examples alone and the sum of all; the graph is kept."""
        weights = torch.ones_like(per_example) if weights is None else weights.to(per_example)

        def pass_of(scale: Tensor, *, wide: bool = dtype in SIXTEEN) -> Tensor:
            found = gradients(per_example, scale, parameters.values(), wide=wide)
            zero = torch.zeros(2, dtype=torch.float64, device=per_example.device)
            rows = [zero if g is None else prints(g).to(zero.device) for g in found]
            return torch.stack(rows).cpu() if rows else torch.zeros(0, 2, dtype=torch.float64)

        places = torch.arange(len(per_example), device=per_example.device)
        return cls(
            names=tuple(parameters),
            alone={i: pass_of(torch.where(places == i, weights, torch.zeros_like(weights))) for i in examples},
            whole=tuple(pass_of(weights, wide=wide) for wide in ((False, True) if dtype in SIXTEEN else (False,))),
            dtype=dtype,
        )

    def with_hooks(self, per_example: Float[Tensor, " b"], hooked: Mapping[str, nn.Parameter]) -> Reference:
        """With the sums of parameters whose hooks run, too: these must be the sums of what the hooks make of each."""
        found = gradients(per_example, torch.ones_like(per_example), hooked.values(), hooks=True)
        rows = [torch.zeros(2, dtype=torch.float64) if g is None else prints(g).cpu() for g in found]
        whole = tuple(torch.cat((each, torch.stack(rows))) for each in self.whole)
        return replace(self, names=(*self.names, *hooked), whole=whole)

    @property
    def finite(self) -> bool:
        """Whether there is anything to compare: infinite gradients are the model's, and are passed on as they are."""
        return all(bool(each.isfinite().all()) for each in (*self.whole, *self.alone.values()))

    @property
    def tolerance(self) -> float:
        """What rounding may explain, relative to ‖·‖²."""
        return TOLERANCE.get(self.dtype, LOW_PRECISION_TOLERANCE)

    @property
    def floor(self) -> float:
        """What cancellation may leave of a parameter's ‖∇f_i‖², relative to that of all parameters."""
        return FLOOR.get(self.dtype, LOW_PRECISION_FLOOR)

    def worst_norm(self, example: int, sq_norms: Mapping[str, float]) -> tuple[str, float] | None:
        """The parameter whose ‖c_i∇f_i‖² differs most, and by what relative amount; None if none does."""
        expected = self.alone[example][:, 0]
        found = torch.tensor([sq_norms.get(name, 0.0) for name in self.names[: len(expected)]], dtype=torch.float64)
        allowed = self.tolerance * torch.maximum(found, expected) + self.floor * expected.sum()
        return self._worst(_excess((found - expected).abs(), allowed))

    def worst_sum(self, whole: Mapping[str, Tensor], sizes: Mapping[str, float]) -> tuple[str, float] | None:
        """The parameter whose sum differs most.

        Args:
            whole: parameter → prints of the Σc_i∇f_i that was found, on the CPU; missing ones count as zero.
            sizes: parameter → Σ_i ‖c_i∇f_i‖², as far as known: what a sum that nearly cancels is rounded relative to.

        Returns:
            Its name and relative error; None if all agree.
        """
        zero = torch.zeros(2, dtype=torch.float64)
        found = torch.stack([whole.get(name, zero) for name in self.names])
        size = torch.tensor([sizes.get(name, 0.0) for name in self.names], dtype=torch.float64)
        excess = []
        for own in self.whole:
            scale = own[:, 0] + found[:, 0] + size
            left = self.floor * scale.sum()
            norm = _excess((found[:, 0] - own[:, 0]).abs(), self.tolerance * scale + left)
            other = _excess((found[:, 1] - own[:, 1]).square(), self.tolerance**2 * scale + left)
            excess.append(torch.maximum(norm, other))
        return self._worst(torch.stack(excess).amin(0))

    def _worst(self, excess: Tensor) -> tuple[str, float] | None:
        if not bool(excess.any()):  # also if there is none
            return None
        k = int(excess.argmax())
        return self.names[k], float(excess[k]) * self.tolerance


def _excess(off: Tensor, allowed: Tensor) -> Tensor:
    return torch.where(off <= allowed, 0.0, off / allowed.clamp(min=torch.finfo(torch.float64).tiny))


def mismatch(name: str, relative: float) -> RuntimeError:
    """The refusal of gradients that differ from the loop's."""
    return RuntimeError(
        f"the per-example gradients of parameter {name!r} differ from the loop by a relative {relative:.2g}: refusing "
        "to return them. Does the backward pass of this model change from call to call, or is it non-linear (a hook "
        "that clips gradients)? variegrad.per_example.loop_gradients is slow and always right."
    )


def mismatch_of_ways(name: str, found: Disagreement) -> RuntimeError:
    """The refusal of gradients that two variants of a rule do not agree on."""
    return RuntimeError(
        f"the per-example gradients of parameter {name!r} differ between {found.ways[0]!r} and {found.ways[1]!r}, two "
        f"ways of the rule {found.rule!r} that must agree, by {found.relative:.2g} times what rounding may explain: "
        "refusing to return them. variegrad.per_example.loop_gradients is slow and always right."
    )


class naming:  # noqa: N801 - a context manager at every node of every pass: a generator would cost more
    """Let a disagreement between two ways name the parameter."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Disagreement):
            raise mismatch_of_ways(self.name, error) from error
