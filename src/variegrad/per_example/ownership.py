"""Whose row is it? Which example owns which entries of a gradient inside the graph: measured, not guessed.

One more backward pass with the losses weighted by powers of two, c_i = 2^(digit of i): backward is linear, so an entry
that belongs to example i alone is multiplied by exactly c_i, rounding included. Entries where examples have been mixed
(the gradient of a weight, anything below batch statistics) are not, and are seen to be nobody's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node

from variegrad.shapes import Float

DIGIT_BITS = 3
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
        """The gradient with its example dimension in front: (b, …, rest of `dim`, …).

        Args:
            gradient: a tensor of this layout.
            count: b.

        Returns:
            A view of shape (b, *shape with `dim` divided by b).
        """
        rest = gradient.shape[self.dim] // count
        if rest == 1 and self.dim == 0:
            return gradient.unsqueeze(1)
        if rest == 1:
            return gradient.movedim(self.dim, 0).unsqueeze(self.dim + 1)
        parts = (count, rest) if self.example_major else (rest, count)
        view = gradient.unflatten(self.dim, parts)
        return view.movedim(self.dim if self.example_major else self.dim + 1, 0)


# What probing can say of a gradient: its layout; MIXED (no example's own); IRREGULAR (examples' own, in no pattern);
# ZERO (nothing but zeros was seen).
MIXED = "mixed"
IRREGULAR = "irregular"
ZERO = "zero"
Owner = Layout | str


class NotFinite(Exception):  # noqa: N818
    """Some gradient is infinite or not a number: nothing can be learnt from this batch."""


def probe_ownership(
    per_example: Float[Tensor, " b"], nodes: Iterable[Node], edges: Sequence[Tensor]
) -> Mapping[tuple[Node, int], Owner]:
    """Measure who owns the gradients that arrive at `nodes`.

    Args:
        per_example: the losses; their graph is kept.
        nodes: where to look.
        edges: the parameters below them, where the backward passes end.

    Returns:
        (node, number of its output) → owner.

    Raises:
        NotFinite: if some gradient is not finite.
    """
    count = len(per_example)
    examples = torch.arange(count, device=per_example.device)
    digits = max(1, -(-(count - 1).bit_length() // DIGIT_BITS)) if count > 1 else 0
    weights = [torch.ones_like(per_example)]
    for position in range(digits):
        digit = (examples >> (DIGIT_BITS * position)) & ((1 << DIGIT_BITS) - 1)
        weights.append(torch.exp2(digit.to(per_example.dtype)))

    shapes: dict[tuple[Node, int], torch.Size] = {}
    where: dict[tuple[Node, int], Tensor] = {}
    seen: list[dict[tuple[Node, int], Tensor]] = []

    def sample(node: Node, gradients: tuple[Tensor | None, ...]) -> None:
        for output, arrived in enumerate(gradients):
            if arrived is None or arrived.layout is not torch.strided:
                continue
            key, gradient = (node, output), arrived.detach()
            if gradient.numel() and not bool(torch.isfinite(torch.linalg.vector_norm(gradient, torch.inf))):
                raise NotFinite
            if key not in where:
                shapes[key] = gradient.shape
                where[key] = _places(gradient)
            picked = _at(gradient, where[key])
            seen[-1][key] = (picked.abs() if picked.is_complex() else picked).double().cpu()

    handles = [node.register_prehook(lambda g, node=node: sample(node, g)) for node in nodes]
    try:
        for weight in weights:
            seen.append({})
            torch.autograd.grad([per_example], edges, [weight], retain_graph=True, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    first, rest = seen[0], seen[1:]
    return {
        key: _owner(first[key], [r[key] for r in rest], where[key].cpu(), shapes[key], count)
        for key in first
        if all(key in r for r in rest)
    }


def confirm_ownership(
    per_example: Float[Tensor, " b"], layouts: Mapping[Node, Layout], edges: Sequence[Tensor]
) -> set[Node]:
    """Check layouts that were found from samples on every entry: one sum for each example, under random weights.

    Args:
        per_example: the losses; their graph is kept.
        layouts: node → layout to check.
        edges: the parameters below them.

    Returns:
        The nodes where some entry is not its example's own.
    """
    count = len(per_example)
    random = torch.Generator().manual_seed(count)
    sums: list[dict[Node, Tensor]] = []

    def reduce(node: Node, gradient: Tensor | None) -> None:
        if gradient is None or gradient.is_complex() or gradient.shape[layouts[node].dim] % count:
            return
        parts = []
        for row in layouts[node].split(gradient.detach(), count):  # an example at a time: no copy of the whole
            values = row.reshape(-1).double()
            places = torch.arange(len(values), dtype=torch.float64, device=values.device).cos_()
            parts.append(torch.stack((values @ places, values.norm())))
        sums[-1][node] = torch.stack(parts)

    weights = [torch.zeros(count, dtype=torch.long)]
    weights += [torch.randint(0, 1 << DIGIT_BITS, (count,), generator=random) for _ in range(2)]
    handles = [node.register_prehook(lambda g, node=node: reduce(node, g[0])) for node in layouts]
    try:
        for exponents in weights:
            sums.append({})
            scale = torch.exp2(exponents.to(per_example))
            torch.autograd.grad([per_example], edges, [scale], retain_graph=True, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    wrong = set()
    # Scaling by powers of two is exact, so on one processor sums agree to the last bit; elsewhere order may differ.
    tolerance = 1e-9 if per_example.device.type == "cpu" else 1e-4
    for node, base in sums[0].items():
        for exponents, found in zip(weights[1:], sums[1:], strict=True):
            if node not in found:
                wrong.add(node)
                continue
            scale = torch.exp2(exponents.double()).to(base.device)
            off = (found[node][:, 0] - base[:, 0] * scale).abs()
            if bool((off > tolerance * scale * (base[:, 1] + 1e-300)).any()):
                wrong.add(node)
    return wrong


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
    return gradient[torch.unravel_index(places, gradient.shape)]


def _owner(base: Tensor, scaled: list[Tensor], where: Tensor, shape: torch.Size, count: int) -> Owner:
    known = base.abs() > 1e-7 * base.abs().max() if base.numel() else torch.zeros(0, dtype=torch.bool)
    if not bool(known.any()):
        return ZERO
    base, where = base[known], where[known]
    owner = torch.zeros(len(base), dtype=torch.long)
    for position, values in enumerate(scaled):
        ratio = values[known] / base
        digit = ratio.clamp(min=2.0**-4).log2().round()
        off = (ratio / torch.exp2(digit) - 1).abs()
        if bool(((off > RATIO_TOLERANCE) | (digit < 0) | (digit >= 1 << DIGIT_BITS) | (ratio <= 0)).any()):
            return MIXED
        owner += digit.long() << (DIGIT_BITS * position)
    fits = list(_fitting(owner, where, shape, count))
    if not fits:
        return IRREGULAR
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
