"""The random numbers of a mechanism: pure functions of (seed, number of the sample, parameter, coordinate).

The coordinates of a parameter are cut into blocks of whole rows; each (example, block) has a stream of its own, so that
a mask is the same however the batch is split over tiles, chunks and workers, and blocks that nobody needs are never
drawn. Bernoulli draws take 16 bits a coordinate and more in rare cases: P(success) = p to double precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Size, Tensor

from variegrad.keys import Streams, hashed
from variegrad.shapes import Bool, Float

Array = np.ndarray[Any, np.dtype[Any]]
Visit = Callable[[np.random.Generator, int, int, int], None]

# Coordinates of a block, at most. A part of the definition of every draw: another number here is another mask.
BLOCK = 1 << 19
# Threads share one interpreter lock: operations on fewer coordinates spend more time waiting for it than working.
WORTH_A_THREAD = 1 << 17
# A few milliseconds' work in all is done sooner than the threads of the backward pass before it have gone to sleep.
WORTH_THREADS = 1 << 23
# Normal numbers are made in pieces whose temporaries stay in the cache: fresh memory costs more than the arithmetic.
CACHED = 1 << 17
WORD = 1 << 16


@dataclass
class Draws:
    """Keyed random numbers for t examples' gradients of one parameter; each call has fresh ones.

    Attributes:
        key: of the seed, the purpose and the parameter.
        example_key: of the seed and the purpose alone.
        positions: the number in the run of each of the t samples.
        shape: of the parameter.
        like: a tensor of the type and on the device that the numbers are for.
        norms: ‖∇f_i‖ over all parameters together, float64, where the mechanism `needs_norms`.
        calls: how many calls there were: a second one draws other numbers.
    """

    key: bytes
    example_key: bytes
    positions: Sequence[int]
    shape: Size
    like: Tensor
    norms: Float[Tensor, " t"] | None = None
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
        return self._numbers(_normal)

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
        out = np.zeros((len(self.positions), self.shape.numel()), bool)
        if isinstance(p, Tensor):
            each = p.detach().expand(out.shape[0], *self.shape).double().cpu().numpy().reshape(out.shape)

            def write(g: np.random.Generator, i: int, start: int, stop: int) -> None:
                out[i, start:stop][successes(g, each[i, start:stop])] = True
        else:

            def write(g: np.random.Generator, i: int, start: int, stop: int) -> None:
                below(g, p, out[i, start:stop])

        self.over_blocks(lambda: write)
        return torch.from_numpy(out).view(len(self.positions), *self.shape).to(self.like.device)

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

    def over_blocks(self, begin: Callable[[], Visit], wanted: Array | None = None) -> None:
        """Visit every (example, block) with the generator at the beginning of its stream, on all of torch's threads.

        Args:
            begin: makes what a thread visits with: a function of the generator, the example, the first coordinate of
                the block and one past its last. What it allocates is the thread's own.
            wanted: which of them to visit, (t, blocks); None for all.
        """
        self.sum_over_blocks(lambda _total: begin(), np.zeros(0), wanted)

    def sum_over_blocks(self, begin: Callable[[Array], Visit], total: Array, wanted: Array | None = None) -> None:
        """The same where visits add to a total over the examples.

        Args:
            begin: as for `over_blocks`, a function of the array to add to: no two threads add to the same numbers.
            total: what the sums are added to.
            wanted: which of them to visit, (t, blocks); None for all.
        """
        call = self._call()
        bounds = blocks(self.shape)

        def examples(first: int, last: int, into: Array) -> None:
            streams, visit = Streams(), begin(into)
            for number, (start, stop) in enumerate(bounds):
                for i in range(first, last):
                    if wanted is None or wanted[i, number]:
                        visit(streams.at(self.key, self.positions[i], number, call), i, start, stop)

        def block(number: int) -> None:
            streams, visit = Streams(), begin(total)
            for i, position in enumerate(self.positions):
                if wanted is None or wanted[i, number]:
                    visit(streams.at(self.key, position, number, call), i, *bounds[number])

        count, threads = len(self.positions), torch.get_num_threads()
        work = count * self.shape.numel()
        if threads == 1 or work < WORTH_THREADS or bounds[0][1] < WORTH_A_THREAD:
            examples(0, count, total)
        elif len(bounds) > 1:
            # A block is one thread's for all examples: sums over examples need no second copy and no lock.
            _in_threads(threads, [partial(block, number) for number in range(len(bounds))])
        else:
            # The only block is shared: each thread has a total of its own, and they are added in a fixed order.
            cuts = pairwise(count * k // threads for k in range(threads + 1))
            parts = [total, *(np.zeros_like(total) for _ in range(threads - 1))]
            _in_threads(threads, [partial(examples, *cut, part) for cut, part in zip(cuts, parts, strict=True)])
            for part in parts[1:]:
                total += part

    def _numbers(self, write: Callable[[np.random.Generator, Array], object]) -> Tensor:
        kind = np.float64 if self.like.dtype == torch.float64 else np.float32
        out = np.empty((len(self.positions), self.shape.numel()), kind)

        def fill(g: np.random.Generator, i: int, start: int, stop: int) -> None:
            write(g, out[i, start:stop])

        self.over_blocks(lambda: fill)
        return torch.from_numpy(out).view(len(self.positions), *self.shape).to(self.like)

    def _call(self) -> int:
        self.calls += 1
        return self.calls - 1


def blocks(shape: Size) -> list[tuple[int, int]]:
    """How the coordinates of a parameter are cut: into equally many whole rows where rows are short enough.

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


def nonzero_blocks(values: Array, bounds: Sequence[tuple[int, int]], unit: int = 1) -> Array:
    """Which blocks of each example hold anything but zeros.

    Args:
        values: (t, coordinates), or (t, rows) where a row is `unit` coordinates.
        bounds: of `blocks`.
        unit: coordinates of an entry of `values`.

    Returns:
        Booleans, (t, blocks).
    """
    found = np.zeros((len(values), len(bounds)), bool)
    for number, (start, stop) in enumerate(bounds):
        found[:, number] = np.any(values[:, start // unit : stop // unit], axis=1)
    return found


def words(generator: np.random.Generator, count: int) -> Array:
    """Uniform 16-bit words.

    Args:
        generator: at the beginning of its stream.
        count: how many.

    Returns:
        Unsigned integers.
    """
    raw: Array = generator.bit_generator.random_raw(-(-count // 4))
    return raw.astype("<u8", copy=False).view("<u2")[:count]


def below(generator: np.random.Generator, p: float, out: Array) -> None:
    """True with probability p, independently.

    Args:
        generator: at the beginning of its stream.
        p: a probability.
        out: Boolean, contiguous; written.
    """
    turned = p > 0.5  # the rarer side is drawn
    rare = 1 - p if turned else p
    limit = math.floor(rare * WORD)
    (np.greater_equal if turned else np.less)(words(generator, len(out)), limit, out=out)
    # A union of independent events: ⌊2¹⁶p⌋/2¹⁶ from the words, and what is left of p as rare ones, gap by gap.
    if rest := (rare * WORD - limit) / (WORD - limit):
        at = int(generator.geometric(rest)) - 1
        while at < len(out):
            out[at] = not turned
            at += int(generator.geometric(rest))


def successes(generator: np.random.Generator, p: Array) -> Array:
    """Where u < p, for u uniform on [0, 1) and few successes.

    Args:
        generator: at the beginning of its stream.
        p: a probability for each coordinate.

    Returns:
        The coordinates, ascending.
    """
    scaled = p * WORD
    u = words(generator, len(p))
    return decided(generator, u, nonzero(u <= scaled), lambda at: scaled[at])


def decided(generator: np.random.Generator, u: Array, candidates: Array, scaled: Callable[[Array], Array]) -> Array:
    """Which candidates succeed: those whose word, continued by 53 bits more where that is needed, lies below 2¹⁶·p.

    Args:
        generator: where the words ended.
        u: the words of all coordinates.
        candidates: coordinates, ascending, among them all with u ≤ 2¹⁶·p.
        scaled: coordinates → 2¹⁶·p, float64.

    Returns:
        The coordinates that succeed.
    """
    limit = scaled(candidates)
    possible = (u[candidates] <= limit) & (limit > 0)
    candidates, limit = candidates[possible], limit[possible]
    whole = np.floor(limit)
    ties = u[candidates] == whole
    success = ~ties
    success[ties] = generator.random(int(ties.sum())) < (limit - whole)[ties]
    hit: Array = candidates[success]
    return hit


def nonzero(flags: Array) -> Array:
    """Where flags are set, fast where few are: whole machine words of eight flags are looked through first.

    Args:
        flags: contiguous Booleans.

    Returns:
        Their indices, ascending.
    """
    head = len(flags) // 8 * 8
    groups = np.flatnonzero(flags[:head].view(np.uint64) != 0)
    near = (groups[:, None] * 8 + np.arange(8)).ravel()
    return np.concatenate((near[flags[near]], head + np.flatnonzero(flags[head:])))


def _normal(generator: np.random.Generator, out: Array) -> None:
    if out.dtype == np.float64:
        generator.standard_normal(out=out)
        return
    for start in range(0, len(out), CACHED):
        _box_muller(generator, out[start : start + CACHED])


def _box_muller(generator: np.random.Generator, out: Array) -> None:
    # With 31-bit uniforms: exact to float32, tails to 6.6 standard deviations, vectorised throughout.
    half = -(-len(out) // 2)
    raw = generator.bit_generator.random_raw(half).astype("<u8", copy=False).view("<u4")
    radius = (raw[:half] >> 1).astype(np.float32)
    radius += np.float32(0.5)
    radius *= np.float32(2.0**-31)
    np.log(radius, out=radius)
    radius *= np.float32(-2)
    np.sqrt(radius, out=radius)
    angle = raw[half:].view(np.int32).astype(np.float32)
    angle *= np.float32(math.pi * 2.0**-31)
    rest = len(out) - half
    np.cos(angle, out=out[:half])
    np.sin(angle[:rest], out=out[half:])
    out[:half] *= radius
    out[half:] *= radius[:rest]


def _in_threads(threads: int, work: Sequence[Callable[[], None]]) -> None:
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(each) for each in work]:
            done.result()
