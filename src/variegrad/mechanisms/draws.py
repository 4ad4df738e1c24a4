"""The random numbers of a mechanism: pure functions of (seed, number of the sample, parameter, coordinate).

Masks are functions of a counter (`masks`). Uniform and normal numbers come in blocks of whole rows; each (sample,
block) has a stream of its own, so that they are the same however a batch is split over tiles, chunks and workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Size, Tensor

from variegrad.keys import Streams, hashed
from variegrad.mechanisms.masks import Array, kept
from variegrad.mechanisms.threads import run, threads_for
from variegrad.shapes import Bool, Float

# Coordinates of a block, at most. A part of the definition of uniform and normal draws: another number here is others.
BLOCK = 1 << 18
# Normal numbers are made in pieces whose temporaries stay in the cache: fresh memory costs more than the arithmetic.
CACHED = 1 << 17


@dataclass
class Draws:
    """Keyed random numbers for t examples' gradients of one parameter; each call has fresh ones.

    Attributes:
        key: of the seed, the purpose and the parameter.
        example_key: of the seed and the purpose alone.
        positions: the number in the run of each of the t samples.
        shape: of the parameter.
        like: a tensor of the type and on the device that the numbers are for.
        norms: ‖∇f_i‖ over all parameters together, float64, if the mechanism `needs_norms`.
        part: (rank, size): only every size-th block is drawn, from number `rank` on, and the others are zero, for noise
            that several workers add up.
        calls: how many calls there were: a second one draws other numbers.
    """

    key: bytes
    example_key: bytes
    positions: Sequence[int]
    shape: Size
    like: Tensor
    norms: Float[Tensor, " t"] | None = None
    part: tuple[int, int] = (0, 1)
    calls: int = field(default=0, init=False)

    @classmethod
    def keyed(
        cls,
        seed: int,
        name: str,
        parameter: Tensor,
        positions: Sequence[int],
        *,
        purpose: str = "example",
        at: int | None = None,
        norms: Float[Tensor, " t"] | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> Draws:
        """The draws that `backward` hands to a mechanism.

        Args:
            seed: the run's seed.
            name: of the parameter.
            parameter: itself, for its shape, type and device.
            positions: the number in the run of each of the t samples; a rank for "worker", a stage for "noise".
            purpose: what the draws are for: "example", "worker", "noise" or "moments".
            at: samples seen before the step, for what is drawn once per step or worker.
            norms: ‖∇f_i‖ of the t examples.
            part: which blocks are drawn.

        Returns:
            The draws.
        """
        what = (purpose,) if at is None else (purpose, at)
        low = parameter.dtype in (torch.bfloat16, torch.float16)
        return cls(
            key=hashed(seed, "mechanism", *what, name),
            example_key=hashed(seed, "mechanism", *what),
            positions=positions,
            shape=parameter.shape,
            like=torch.empty(0, dtype=torch.float32 if low else parameter.dtype, device=parameter.device),
            norms=norms,
            part=part,
        )

    def uniform(self) -> Float[Tensor, "t ..."]:
        """Uniform on [0, 1), independent for each example and coordinate.

        Returns:
            Shape (t, *shape).
        """
        return self._numbers(lambda g, out: g.random(dtype=out.dtype, out=out))

    def normal(self) -> Float[Tensor, "t ..."]:
        """Standard normal, independent for each example and coordinate.

        Returns:
            Shape (t, *shape).
        """
        return self._numbers(_normal, threads=False)  # torch's own

    def bernoulli(self, p: float | Float[Tensor, "t ..."]) -> Bool[Tensor, "t ..."]:
        """True with probability p, independently for each example and coordinate.

        Args:
            p: one probability, or one for each.

        Returns:
            Shape (t, *shape).

        Raises:
            ValueError: if the one probability is outside [0, 1].
        """
        if not isinstance(p, Tensor) and not 0 <= p <= 1:
            raise ValueError(f"Draws.bernoulli: a probability must lie in [0, 1]; got {p}.")
        if isinstance(p, Tensor):
            return self._numbers(lambda g, out: g.random(out=out), np.float64) < p
        masks = kept(rows_of(self.shape), self.mask_key(), self.positions, float(p))
        return torch.from_numpy(masks).view(len(self.positions), *self.shape).to(self.like.device)

    def mask_key(self) -> int:
        """A fresh key for `masks` and `thinning`.

        Returns:
            128 bits.
        """
        return int.from_bytes(hashed(0, self.key.hex(), "mask", self._call()), "little")

    def uniform_of_example(self) -> Float[Tensor, "t ..."]:
        """One uniform number on [0, 1) for each example, the same for all its coordinates and parameters.

        Returns:
            Shape (t, 1, …, 1), ready to meet the rows.
        """
        streams, call = Streams(), self._call()
        values = [streams.at(self.example_key, position, call).random() for position in self.positions]
        return torch.tensor(values, dtype=torch.float64).to(self.like).view(-1, *(1 for _ in self.shape))

    def stage(self, number: int) -> Draws:
        """Independent draws for a stage of a composition.

        Args:
            number: of the stage.

        Returns:
            Draws of the same shape with keys of their own.
        """
        key, example_key = (hashed(0, k.hex(), "stage", number) for k in (self.key, self.example_key))
        return replace(self, key=key, example_key=example_key)

    def _numbers(
        self,
        write: Callable[[np.random.Generator, Array], object],
        kind: type[np.floating[Any]] | None = None,
        *,
        threads: bool = True,
    ) -> Tensor:
        if kind is None:
            kind = np.float64 if self.like.dtype == torch.float64 else np.float32
        out = np.empty((len(self.positions), self.shape.numel()), kind)
        call, bounds = self._call(), blocks(self.shape)
        rank, size = self.part

        def fill(first: int, last: int) -> None:
            streams = Streams()
            for cell in range(first, last):
                i, number = divmod(cell, len(bounds))
                here = out[i, slice(*bounds[number])]
                if number % size == rank:
                    write(streams.at(self.key, self.positions[i], number, call), here)
                else:
                    here[:] = 0

        cells = len(out) * len(bounds)
        run([partial(fill, *cut) for cut in threads_for(out.size, cells)] if threads else [partial(fill, 0, cells)])
        return torch.from_numpy(out).view(len(self.positions), *self.shape).to(self.like.device)

    def _call(self) -> int:
        self.calls += 1
        return self.calls - 1


def blocks(shape: Size) -> list[tuple[int, int]]:
    """How the coordinates of a parameter are cut: into equally many whole rows if rows are short enough.

    Args:
        shape: of the parameter.

    Returns:
        (start, stop) pairs.
    """
    size = shape.numel()
    if not size:
        return []
    row = size // shape[0] if len(shape) > 1 else 1
    unit = row if row <= BLOCK else 1
    most = BLOCK // unit * unit
    wanted = -(-size // most)
    length = -(-(size // unit) // wanted) * unit
    return [(start, min(start + length, size)) for start in range(0, size, length)]


def rows_of(shape: Size) -> tuple[int, int]:
    """A parameter as a matrix: its first dimension, and all others together; one row for a vector or a number.

    Args:
        shape: of the parameter.

    Returns:
        Rows and columns.
    """
    rows = shape[0] if len(shape) > 1 else 1
    return rows, shape.numel() // rows if rows else 0


def _normal(generator: np.random.Generator, out: Array) -> None:
    if out.dtype == np.float64:
        generator.standard_normal(out=out)
        return
    room = torch.empty(2, CACHED // 2)
    for start in range(0, len(out), CACHED):
        _box_muller(generator, torch.from_numpy(out[start : start + CACHED]), room)


def _box_muller(generator: np.random.Generator, out: Tensor, room: Tensor) -> None:
    # With 31-bit uniforms: exact to float32, tails to 6.6 standard deviations, vectorised throughout.
    half = -(-len(out) // 2)
    raw = torch.from_numpy(generator.bit_generator.random_raw(half).astype("<u8", copy=False).view("<i4"))
    radius, angle = room[0, :half].copy_(raw[:half]), room[1, :half].copy_(raw[half:])
    radius.abs_().add_(0.5).mul_(2.0**-31)  # in (0, 1]
    radius.log_().mul_(-2).sqrt_()
    angle.mul_(math.pi * 2.0**-31)
    rest = len(out) - half
    torch.cos(angle, out=out[:half]).mul_(radius)
    torch.sin(angle[:rest], out=out[half:]).mul_(radius[:rest])
