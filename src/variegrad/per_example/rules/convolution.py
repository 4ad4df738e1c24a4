"""Convolutions of any dimension, transposed or not, with groups, dilation and stride.

The graph has the padded input, so every padding mode is already resolved. Each example's weight gradient is formed a
tile at a time and squared while it is in cache; their sum is the weight gradient. The ways differ only in speed:
one library call per example, one grouped convolution for a few examples, or patches and a batched product.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Size, Tensor

from variegrad.per_example.graph import saved
from variegrad.per_example.plan import choose, chosen
from variegrad.per_example.rules.contribution import (
    TILE_BYTES,
    Contribution,
    Dense,
    NotCovered,
    Summed,
    by_tiles,
    sq_norms,
)
from variegrad.per_example.rules.rounding import rows_apart, sums_apart
from variegrad.per_example.rules.visit import Visit
from variegrad.shapes import Float

INPUT, WEIGHT, BIAS = 0, 1, 2


@dataclass(frozen=True)
class Geometry:
    """The settings of a convolution."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool
    output_padding: tuple[int, ...]

    def weight_gradient(self, inputs: Tensor, gradient: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
        """∂W for the whole of `inputs`, by the library's own kernel."""
        _, result, _ = torch.ops.aten.convolution_backward(
            gradient, inputs, weight, None, self.stride, self.padding, self.dilation, self.transposed,
            self.output_padding, self.groups * groups, [False, True, False],
        )  # fmt: skip
        return result


@dataclass(frozen=True)
class Convolution(Contribution):
    """g_i = ∂W of example i alone.

    Attributes:
        inputs: the (padded) input; m images an example.
        gradients: the gradient at the output.
        weight: the weight, for its shape only.
        geometry: the settings.
    """

    inputs: Float[Tensor, "b m c ..."]
    gradients: Float[Tensor, "b m o ..."]
    weight: Tensor
    geometry: Geometry

    @property
    def count(self) -> int:  # type: ignore[override]
        return len(self.inputs)

    @property
    def shape(self) -> Size:  # type: ignore[override]
        return self.weight.shape

    def first(self, count: int) -> Convolution:
        return self._part(0, count)

    def _part(self, start: int, stop: int) -> Convolution:
        return replace(self, inputs=self.inputs[start:stop], gradients=self.gradients[start:stop])

    def rows(self, start: int, stop: int) -> Tensor:
        part = self._part(start, stop)
        ways: dict[str, Callable[[Convolution], Tensor]] = {
            "one by one": lambda c: torch.stack([c._one(i) for i in range(c.count)])
        }
        if part.count > 1 and not self.geometry.transposed and self.inputs.shape[1] == 1:
            ways["grouped"] = lambda c: c._in_tiles(c._grouped_rows, 8)
            if self.geometry.groups == 1 and not self._pointwise:
                ways["patches"] = lambda c: c._in_tiles(c._patch_rows, c._tile(1 << 20))
        return choose(part, ways, lambda c, a, b: rows_apart(a, b, c._bound()), "rows")

    def _in_tiles(self, form: Callable[[int, int], Tensor], tile: int) -> Tensor:
        cuts = range(0, self.count, tile)
        return torch.cat([form(i, min(i + tile, self.count)).reshape(-1, *self.shape) for i in cuts])

    def merged(self, other: Contribution) -> Convolution | None:
        if not isinstance(other, Convolution) or other.geometry != self.geometry:
            return None
        if other.inputs.shape[2:] != self.inputs.shape[2:]:
            return None
        inputs, gradients = torch.cat((self.inputs, other.inputs), 1), torch.cat((self.gradients, other.gradients), 1)
        return Convolution(inputs, gradients, self.weight, self.geometry)

    def summed(self, *, total: bool = True) -> Summed:
        return choose(self, self.variants(total=total), Convolution._apart, total)

    def _apart(self, one: Summed, other: Summed) -> float:
        return sums_apart(one, other, self._bound(), self.inputs.dtype)

    def _bound(self) -> Float[Tensor, " b"]:
        # Every tap of the kernel meets the whole input at most once: nothing cancels in this.
        return sq_norms(self.inputs) * sq_norms(self.gradients) * self.weight[0, 0].numel()

    @property
    def way(self) -> str:
        return f"convolution, {chosen(self, True) or next(iter(self.variants()))}"

    @property
    def family(self) -> tuple[Hashable, ...]:
        return ("convolution", self.shape, self.inputs.dtype, self.inputs.device, self.geometry)

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.inputs.shape[1], *self.gradients.shape[3:])

    def variants(self, *, total: bool = True) -> Mapping[str, Callable[[Convolution], Summed]]:
        """The exact ways to the same sums."""
        forms: dict[str, tuple[Callable[[Convolution, int, int], Tensor], int]] = {}
        plain = not self.geometry.transposed and self.inputs.shape[1] == 1
        if self._pointwise:
            forms["pointwise"] = Convolution._pointwise_rows, self._tile(0)
        if plain and self.geometry.groups == 1 and not self._pointwise:
            for tile in dict.fromkeys((self._tile(1 << 20), self._tile(TILE_BYTES))):
                forms[f"patches × {tile}"] = Convolution._patch_rows, tile
            if self.inputs.shape[2] <= 4:
                forms["correlation"] = Convolution._correlation_rows, self.count
        if plain:
            for tile in dict.fromkeys(min(t, self.count) for t in (8, 16, 32)):
                if tile > 1 and 4 * tile * self.weight.numel() <= TILE_BYTES:
                    forms[f"grouped × {tile}"] = Convolution._grouped_rows, tile
        forms["one by one"] = Convolution.rows, 1
        return {
            name: partial(Convolution._by_tiles, form=form, tile=tile, total=total)
            for name, (form, tile) in forms.items()
        }

    def _by_tiles(self, form: Callable[[Convolution, int, int], Tensor], tile: int, total: bool) -> Summed:
        tiles = [(start, min(start + tile, self.count)) for start in range(0, self.count, tile)]
        summed = by_tiles(partial(form, self), tiles, total=total)
        return Summed(summed.sq_norms, None if summed.total is None else summed.total.reshape(self.shape))

    def _tile(self, size: int) -> int:
        patches = 4 * self.weight[0].numel() * self.gradients[0, 0, 0].numel()
        return max(1, min(self.count, size // max(1, patches), TILE_BYTES // (4 * self.weight.numel())))

    @property
    def _pointwise(self) -> bool:
        g = self.geometry
        plain = not g.transposed and g.groups == 1 and not any(g.padding) and set(g.stride) == {1}
        return plain and self.weight[0, 0].numel() == 1

    def _one(self, i: int) -> Tensor:
        return self.geometry.weight_gradient(self.inputs[i], self.gradients[i], self.weight)

    def _pointwise_rows(self, start: int, stop: int) -> Tensor:
        inputs = self.inputs[start:stop].transpose(1, 2).flatten(2)
        gradients = self.gradients[start:stop].transpose(1, 2).flatten(2)
        return torch.bmm(gradients, inputs.transpose(1, 2))

    def _grouped_rows(self, start: int, stop: int) -> Tensor:
        # Examples become groups of one image. The weight is for its shape only: memory that is never touched.
        size = stop - start
        inputs = self.inputs[start:stop].flatten(0, 2).unsqueeze(0)
        gradients = self.gradients[start:stop].flatten(0, 2).unsqueeze(0)
        like = self.weight.new_empty(size * self.shape[0], *self.shape[1:])
        return self.geometry.weight_gradient(inputs, gradients, like, groups=size).view(size, *self.shape)

    def _patch_rows(self, start: int, stop: int) -> Tensor:
        g, inputs = self.geometry, self.inputs[start:stop, 0]
        if any(g.padding):
            inputs = F.pad(inputs, [p for side in reversed(g.padding) for p in (side, side)])
        kernel, out = self.shape[2:], self.gradients.shape[3:]
        size, channels = inputs.shape[:2]
        # A view with one stride for each tap and one for each position: no index is ever computed.
        strides = inputs.stride()
        taps = tuple(s * d for s, d in zip(strides[2:], g.dilation, strict=True))
        steps = tuple(s * d for s, d in zip(strides[2:], g.stride, strict=True))
        view = inputs.as_strided((size, channels, *kernel, *out), (*strides[:2], *taps, *steps))
        patches = view.reshape(size, channels * kernel.numel(), out.numel())
        return torch.bmm(self.gradients[start:stop, 0].flatten(2), patches.transpose(1, 2))

    def _correlation_rows(self, start: int, stop: int) -> Tensor:
        # For few input channels: they are the batch, examples are groups, output gradients are the kernels.
        g, size = self.geometry, stop - start
        kernels = self.gradients[start:stop, 0].flatten(0, 1).unsqueeze(1)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[self.inputs.dim() - 4]
        inputs = self.inputs[start:stop, 0].transpose(0, 1)
        rows = convolve(inputs, kernels, padding=g.padding, stride=g.dilation, dilation=g.stride, groups=size)
        for dim, length in enumerate(self.shape[2:]):
            rows = rows.narrow(dim + 2, 0, length)
        return rows.unflatten(1, (size, self.shape[0])).permute(1, 2, 0, *range(3, rows.dim() + 1))


def convolution(visit: Visit, slot: int, shape: Size) -> Contribution:  # noqa: ARG001
    """Y = X ∗ W + bias."""
    node = visit.node
    if slot == INPUT or visit.layout.dim != 0:
        raise NotCovered("a convolution whose examples do not run along its batch")
    # Channels-last tensors are welcome: one contiguous copy here saves every way below its own strides.
    gradients = visit.rows(visit.gradient.contiguous())
    if slot == BIAS:
        return Dense(gradients.flatten(3).sum((1, 3)))
    geometry = Geometry(
        stride=tuple(saved(node, "stride")),
        padding=tuple(saved(node, "padding")),
        dilation=tuple(saved(node, "dilation")),
        groups=int(saved(node, "groups")),
        transposed=bool(saved(node, "transposed")),
        output_padding=tuple(saved(node, "output_padding")),
    )
    inputs = visit.rows(saved(node, "input").contiguous())
    return Convolution(inputs, gradients, saved(node, "weight"), geometry)
