"""Whose row is it? Which example owns which entries of a gradient inside the graph: measured, not guessed.

One more backward pass with the losses weighted by powers of two, c_i = 2^(digit of i): backward is linear, so an entry
that belongs to example i alone is multiplied by exactly c_i, rounding included. Entries where examples have been mixed
(the gradient of a weight, anything below batch statistics) are not, and belong to no single example.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor
from torch.autograd.graph import Node

from variegrad.per_example.state import aside
from variegrad.shapes import Float

# How many exponents weights may have, by the coarsest type of the graph: 2⁻³² … 2³¹ stay far from overflow in float32.
EXPONENT_BITS = {torch.float64: 9, torch.float16: 3}
USUAL_BITS = 6
SAMPLES = 1024
BLOCK = 1 << 16
RATIO_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Layout:
    """Examples run along dimension `dim` of a gradient, as (outer, b, inner) within it.

    Attributes:
        dim: the dimension that the example is in.
        example_major: outer = 1: rows of one example follow each other; otherwise inner = 1: examples alternate.
        certain: whether every other layout was ruled out, so that this one may be trusted for other batches.
        single: whether each example had one row only, which leaves open the order that several would have.
    """

    dim: int
    example_major: bool = True
    certain: bool = True
    single: bool = False

    def split(self, gradient: Tensor, count: int) -> Tensor:
        """The gradient with its example dimension in front: (b, …, rest of `dim`, …); a view."""
        rest = gradient.shape[self.dim] // count
        if rest == 1 and self.dim == 0:
            return gradient.unsqueeze(1)
        if rest == 1:
            return gradient.movedim(self.dim, 0).unsqueeze(self.dim + 1)
        parts = (count, rest) if self.example_major else (rest, count)
        view = gradient.unflatten(self.dim, parts)
        return view.movedim(self.dim if self.example_major else self.dim + 1, 0)


class Unowned(Enum):
    """What probing says of a gradient that has no layout."""

    MIXED = "no entry belongs to a single example"
    IRREGULAR = "every entry belongs to one example, in no pattern"
    ZERO = "only zeros arrived"
    UNREADABLE = "a gradient arrived that is not dense"


Owner = Layout | Unowned


class NotFinite(Exception):  # noqa: N818
    """Some gradient is infinite or not a number: nothing can be learned from this batch."""


def weights_of(per_example: Tensor, dtype: torch.dtype, order: Tensor) -> tuple[int, int, list[Tensor]]:
    """Weights 2^(digit − offset), one vector for each digit of `order`: no two examples have all of them in common."""
    bits = EXPONENT_BITS.get(dtype, USUAL_BITS)
    # In 16 bits losses are only weighed down: they may be scaled close to overflow.
    offset = (1 << bits) - 1 if dtype == torch.float16 else 1 << (bits - 1)
    digits = max(1, -(-(len(order) - 1).bit_length() // bits)) if len(order) > 1 else 0
    exponents = [((order >> (bits * k)) & ((1 << bits) - 1)) - offset for k in range(digits)]
    return bits, offset, [torch.exp2(e.to(per_example)) for e in exponents]


def probe_ownership(
    per_example: Float[Tensor, " b"], nodes: Iterable[Node], edges: Sequence[Tensor], dtype: torch.dtype
) -> Mapping[tuple[Node, int], Owner]:
    """Measure who owns the gradients that arrive at each output of `nodes`, from samples of their entries.

    Args:
        per_example: the losses; their graph is kept.
        nodes: where to look.
        edges: the parameters below them, where the backward passes end.
        dtype: the coarsest type of the graph.

    Raises:
        NotFinite: if some gradient is not finite.
    """
    count = len(per_example)
    bits, offset, weights = weights_of(per_example, dtype, torch.arange(count, device=per_example.device))
    shapes: dict[tuple[Node, int], torch.Size] = {}
    where: dict[tuple[Node, int], Tensor] = {}
    unreadable: set[tuple[Node, int]] = set()
    seen: list[dict[tuple[Node, int], Tensor]] = []
    largest: list[Tensor] = []

    def sample(node: Node, gradients: tuple[Tensor | None, ...]) -> None:
        for output, arrived in enumerate(gradients):
            if arrived is None:
                continue
            key, gradient = (node, output), arrived.detach()
            if gradient.layout is not torch.strided or gradient.is_nested:
                unreadable.add(key)
                continue
            if gradient.numel():
                largest.append(torch.linalg.vector_norm(gradient, torch.inf).to(per_example))
            if key not in where:
                shapes[key] = gradient.shape
                where[key] = _places(gradient)
            picked = _at(gradient, where[key])
            seen[-1][key] = (picked.abs() if picked.is_complex() else picked).double()

    handles = [node.register_prehook(lambda g, node=node: sample(node, g)) for node in nodes]
    try:
        for weight in (torch.ones_like(per_example), *weights):
            seen.append({})
            pass_to(edges, per_example, weight)
    finally:
        for handle in handles:
            handle.remove()
    if largest and not bool(torch.stack(largest).isfinite().all()):
        raise NotFinite
    # Read once, at the end: no pass waits for the host.
    first, *rest = ({key: values.cpu() for key, values in each.items()} for each in seen)
    found: dict[tuple[Node, int], Owner] = dict.fromkeys(unreadable, Unowned.UNREADABLE)
    for key, base in first.items():
        if all(key in each for each in rest):
            owner = _owners(base, [each[key] for each in rest], bits, offset, exact=repeats_exactly(per_example))
            found[key] = _layout(owner, where[key].cpu()[_known(base)], shapes[key], count)
    return found


def pass_to(edges: Sequence[Tensor], per_example: Tensor, weight: Tensor) -> None:
    """A backward pass of weighted losses that only prehooks see."""
    with torch.enable_grad(), aside(edges):
        torch.autograd.grad([(per_example * weight).sum()], edges, retain_graph=True, allow_unused=True)


def repeats_exactly(per_example: Tensor) -> bool:
    """Whether the same pass gives the same bits."""
    # Kernels of other devices may add in another order each time: small entries then differ by more than their size.
    return per_example.device.type == "cpu"


def _places(gradient: Tensor) -> Tensor:
    numel = gradient.numel()
    if numel <= SAMPLES:
        return torch.arange(numel, device=gradient.device)
    random = torch.randint(numel, (SAMPLES,), generator=torch.Generator().manual_seed(numel)).to(gradient.device)
    if bool((_at(gradient, random) != 0).sum() > SAMPLES // 16):
        return random
    # Mostly zeros (padding, dead units): look where something is, a block at a time, since indices take much room.
    found = []
    for start, block in enumerate(gradient.flatten().split(BLOCK)):
        alive = block.nonzero().squeeze(1)
        found.append(alive[:: max(1, len(alive) // SAMPLES)] + start * BLOCK)
    alive = torch.cat(found)
    return alive[:: max(1, len(alive) // SAMPLES)] if len(alive) else random


def _at(gradient: Tensor, places: Tensor) -> Tensor:
    # By coordinates: flattening would copy a gradient that is not contiguous.
    if gradient.is_contiguous():
        return gradient.view(-1)[places]
    coordinates = []
    for size in reversed(gradient.shape):
        coordinates.append(places % size)
        places = places // size
    return gradient[tuple(reversed(coordinates))]


def _known(base: Tensor) -> Tensor:
    return base.abs() > 1e-7 * base.abs().max() if base.numel() else torch.zeros(0, dtype=torch.bool)


def _owners(base: Tensor, scaled: list[Tensor], bits: int, offset: int, *, exact: bool) -> Tensor | Unowned:
    """The example that owns each entry that is not negligible."""
    known = _known(base)
    if not bool(known.any()):
        return Unowned.ZERO
    base = base[known]
    owner = torch.zeros(len(base), dtype=torch.long)
    for position, values in enumerate(scaled):
        ratio = values[known] / base
        digit = ratio.clamp(min=2.0**-600).log2().round()
        off = (ratio / torch.exp2(digit) - 1).abs()
        digit += offset
        wrong = (off > RATIO_TOLERANCE) | (digit < 0) | (digit >= 1 << bits) | (ratio <= 0)
        # Where kernels repeat up to rounding only, entries count by their size.
        if bool(wrong.any()) and (exact or float(base.abs()[wrong].sum()) > RATIO_TOLERANCE * float(base.abs().sum())):
            return Unowned.MIXED
        owner += digit.clamp(0, (1 << bits) - 1).long() << (bits * position)
    return owner


def _layout(owner: Tensor | Unowned, where: Tensor, shape: torch.Size, count: int) -> Owner:
    if isinstance(owner, Unowned):
        return owner
    if bool((owner >= count).any()):
        return Unowned.MIXED
    fits = list(_fitting(owner, where, shape, count))
    if not fits:  # what one example alone reaches may be a weight's: the last step of the longest sequence
        return Unowned.IRREGULAR if bool((owner != owner[0]).any()) else Unowned.MIXED
    dim, example_major = fits[-1]
    return Layout(dim, example_major, certain=len(fits) == 1, single=shape[dim] == count)


def _fitting(owner: Tensor, where: Tensor, shape: torch.Size, count: int) -> Iterable[tuple[int, bool]]:
    inner = 1
    for dim in reversed(range(len(shape))):
        size = shape[dim]
        if size % count == 0:
            index = (where // inner) % size
            rest = size // count
            for example_major in (False, True) if rest > 1 else (True,):
                guess = index // rest if example_major else index % count
                if bool((guess == owner).all()):
                    yield dim, example_major
        inner *= size
