"""Σ_r m(g_r) over ranks, one draw per rank, with packed payloads if they are smaller than a dense sum.

Draws are those of `vg.backward(..., granularity="worker", worker=r)`: pure functions of (seed, samples seen before the
step, rank, parameter). So DropConnect's masks are known to every rank, and only kept coordinates travel; Q(v) travels
as positions and signs; anything else is left to a dense sum, as is what would not gain (`payloads.pays`). Langevin
therefore sends no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from variegrad.distributed import payloads, wire
from variegrad.distributed.refused import Refused
from variegrad.distributed.world import World
from variegrad.mechanisms import DropConnect, Mechanism, Quantize
from variegrad.mechanisms.finite import finite
from variegrad.mechanisms.law import Composed
from variegrad.mechanisms.one_draw import WorkerKey, kept
from variegrad.shapes import Bool, Float

Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True, kw_only=True)
class PackedSum:
    """The result of an exchange: the same on all ranks, except for the bytes.

    Attributes:
        total: Σ_r m(g_r), all parameters flattened and concatenated, the same to the last bit on every rank; None if it
            is left to a dense sum or some rank has nothing to add.
        absent: the ranks that had nothing to add.
        bytes_sent: by this rank, to all others.
    """

    total: Float[Tensor, " d"] | None
    absent: tuple[int, ...]
    bytes_sent: int


def packed_sum(
    surrogate: Float[Tensor, " d"] | None,
    mechanism: Mechanism,
    shapes: Shapes,
    *,
    seed: int,
    step: int,
    dtype: torch.dtype,
    dense_bytes: int,
    world: World,
) -> PackedSum:
    """Add up all ranks' surrogates, packed if that is faster. Every rank calls it in the same step.

    Args:
        surrogate: this rank's m(g), all parameters flattened and concatenated; None, or not finite, if it has nothing
            to add.
        mechanism: m.
        shapes: of the parameters by name, in that order.
        seed: of the draws.
        step: samples seen before the update, or its number if samples are not counted.
        dtype: of the surrogates on every rank.
        dense_bytes: what a dense sum would move.
        world: the ranks.

    Returns:
        The sum, or that there is none.

    Raises:
        Refused: if a payload is not what that rank must have sent.
    """
    rank, ranks = world.rank, world.size

    def mask(worker: int) -> Bool[Tensor, " d"] | None:
        return kept(shapes, mechanism, WorkerKey(seed, step, worker)) if isinstance(mechanism, DropConnect) else None

    surrogate = None if surrogate is None else surrogate.to(dtype)
    if surrogate is not None and not finite(surrogate):  # in that type: float16 ends at 65,504
        surrogate = None
    payload = b""
    if surrogate is not None and packs(mechanism):
        payload = wire.encode(surrogate, step=step, sender=rank, mask=mask(rank))
    said = payloads.announce(None if surrogate is None else len(payload), world)
    elements = sum(shape.numel() for shape in shapes.values())
    sent = 2 * payloads.ANNOUNCED_BYTES * (ranks - 1) // ranks
    sparse = not isinstance(mechanism, DropConnect) and said.longest < wire.size(wire.Kind.BASE3, elements, dtype)
    pays = payloads.pays(ranks, said.longest, dense_bytes, coordinates=0 if sparse else elements)
    if said.absent or not said.all_pack or not pays:
        return PackedSum(total=None, absent=said.absent, bytes_sent=sent)
    limit = wire.size(wire.Kind.DENSE, elements, dtype)
    came = payloads.exchange(payload, said.longest, limit=limit, world=world)
    total = torch.zeros(elements, dtype=torch.promote_types(dtype, torch.float32))
    for sender, each in enumerate(came):  # always in this order: floating-point sums depend on it
        expected = {"elements": elements, "dtype": dtype, "step": step, "sender": sender}
        if not wire.add_to(total, wire.without_padding(each), mask=mask(sender), **expected):
            raise Refused(f"rank {sender} announced a gradient and then sent that it is not finite")
    return PackedSum(total=total.to(world.device), absent=(), bytes_sent=sent + said.longest * (ranks - 1))


def packs(mechanism: Mechanism) -> bool:
    """Whether what a mechanism makes can travel in less than its dense form.

    Args:
        mechanism: m.

    Returns:
        True if each coordinate of m(g) is 0 or ±c (Quantize, also with DropConnect after it), or if the mask is a
        function of the key (DropConnect).
    """
    if isinstance(mechanism, Composed):
        return packs(mechanism.first) and isinstance(mechanism.second, DropConnect)
    return isinstance(mechanism, Quantize | DropConnect)
