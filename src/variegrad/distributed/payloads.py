"""Payloads from every worker to every other by a tree of messages, and when that is cheaper than one dense sum.

Bruck's all-gather: in round k a worker passes on the 2ᵏ payloads that it holds and receives as many, so that after
⌈log₂ P⌉ messages each has all P. That is S·(P−1) bytes; a ring all-reduce of D bytes sends 2D(P−1)/P. Gathering pays
while P·S and the reading, in bytes that the network would move meanwhile, are below 2D: whatever P is, a worker never
sends, holds or reads more than for the dense sum. The longest length is agreed on first, so that all workers take the
same branch; payloads are padded to it.

Source: Bruck et al. 1997, "Efficient Algorithms for All-to-All Communications in Multiport Message-Passing Systems".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from variegrad.distributed.refused import Refused
from variegrad.distributed.world import World

ANNOUNCED_BYTES = 32
BITS = 52  # workers per number of a list of workers: sums of numbers are exact to 53 bits
# A network of 1 Gbit/s, which moves a byte in 8 ns. Reading: 20 ns a non-zero of two bytes, 1 ns a coordinate, and
# 35 µs per payload.
BYTES_PER_SPARSE_BYTE = 1.25
BYTES_PER_COORDINATE = 0.125
BYTES_PER_PAYLOAD = 4400


@dataclass(frozen=True)
class Announced:
    """What every worker knows before payloads travel.

    Attributes:
        longest: bytes of the longest payload.
        all_pack: whether every worker has a payload.
        absent: workers that have nothing to add.
    """

    longest: int
    all_pack: bool
    absent: tuple[int, ...]


def announce(mine: int | None, world: World) -> Announced:
    """Say how long a payload is; every worker learns the greatest length.

    Args:
        mine: bytes of this worker's payload, 0 for none; None if it has nothing to add.
        world: the workers; each calls this.

    Returns:
        The same on every worker.
    """
    (shortest, longest), (_, any_absent) = world.extremes([mine or 0, mine is None])
    absent = _those_who_say(mine is None, world) if any_absent else ()
    return Announced(longest=longest, all_pack=shortest > 0, absent=absent)


def _those_who_say(yes: bool, world: World) -> tuple[int, ...]:
    """Which workers say yes: a bit each, asked only if one does."""
    words = [0.0] * -(-world.size // BITS)
    words[world.rank // BITS] = float(yes << world.rank % BITS)
    found = [int(word) for word in world.add_up(words)]
    return tuple(rank for rank in range(world.size) if found[rank // BITS] >> rank % BITS & 1)


def rounds(rank: int, size: int) -> list[tuple[int, int, int, int]]:
    """The messages of one worker, if place j of its list is for the payload of worker (rank + j) mod P.

    Args:
        rank: of this worker.
        size: P.

    Returns:
        Of each of ⌈log₂ P⌉ rounds: to whom, from whom, how many places are filled, and how many travel, from the front
        of the list there to the first free places here.
    """
    filled = [1 << k for k in range((size - 1).bit_length())]
    return [((rank - held) % size, (rank + held) % size, held, min(held, size - held)) for held in filled]


def exchange(payload: bytes, longest: int, *, limit: int, world: World) -> Iterator[bytes]:
    """Every worker's payload, on every worker, padded to the longest.

    Args:
        payload: this worker's.
        longest: bytes of the longest payload (`announce`).
        limit: bytes that no payload may exceed; asked before memory is taken for them.
        world: the workers; each calls this.

    Returns:
        The payloads in the order of the workers, one at a time.

    Raises:
        Refused: if a length is announced that cannot be. The process then sends no more, so the others' exchange fails
            too.
        RuntimeError: if a worker does not take part; it is named if that is known.
    """
    if not len(payload) <= longest <= limit:
        raise Refused(f"a worker announced a payload of {longest} bytes; the limit is {limit}")
    room = torch.empty(world.size, longest, dtype=torch.uint8, device=world.device)
    room[0] = torch.frombuffer(bytearray(payload.ljust(longest, b"\0")), dtype=torch.uint8)

    def move() -> None:
        for to, source, held, count in rounds(world.rank, world.size):
            # Receiving is announced first: behind a payload, the announcement would keep the other worker waiting.
            moves = [
                dist.P2POp(dist.irecv, room[held : held + count], world.in_default_group(source), world.group),
                dist.P2POp(dist.isend, room[:count], world.in_default_group(to), world.group),
            ]
            for work in dist.batch_isend_irecv(moves):
                work.wait()

    world.carry_out(move)
    came = room.cpu().numpy()
    return (came[(sender - world.rank) % world.size].tobytes() for sender in range(world.size))


def pays(ranks: int, longest: int, dense_bytes: int, *, coordinates: int = 0) -> bool:
    """Whether gathering the payloads takes less time than a ring all-reduce of the dense gradient.

    Args:
        ranks: P.
        longest: S, bytes of the longest payload.
        dense_bytes: D, of the dense gradient.
        coordinates: that are read of each payload; 0 if it lists its non-zeros.

    Returns:
        Whether P·(S + reading) < 2D on a network of 1 Gbit/s: the same answer on every worker.
    """
    reading = BYTES_PER_COORDINATE * coordinates if coordinates else BYTES_PER_SPARSE_BYTE * longest
    return ranks * (longest + reading + BYTES_PER_PAYLOAD) < 2 * dense_bytes
