"""Payloads from every worker to every other, and when that is cheaper than one dense sum.

Each rank sends its S bytes to P−1 others and reads P payloads; a ring all-reduce of D bytes sends 2D(P−1)/P. Gathering
pays while P·S and the reading, in bytes that the network would move meanwhile, are below 2D. The longest length goes
first, as three numbers that are all-reduced, so that all ranks take the same branch; payloads are padded to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from variegrad.distributed.refused import Refused

ANNOUNCED_BYTES = 24
BITS = 60  # ranks per word of a list of ranks
# A network of 1 Gbit/s, which moves a byte in 8 ns. Reading: 20 ns a non-zero of two bytes, 1 ns a coordinate.
BYTES_PER_SPARSE_BYTE = 1.25
BYTES_PER_COORDINATE = 0.125


@dataclass(frozen=True)
class Announced:
    """What every rank knows before payloads travel.

    Attributes:
        longest: bytes of the longest payload.
        all_pack: whether every rank has a payload.
        absent: ranks that have nothing to add.
    """

    longest: int
    all_pack: bool
    absent: tuple[int, ...]


def announce(
    mine: int | None, *, group: dist.ProcessGroup | None = None, device: torch.device | None = None
) -> Announced:
    """Say how long a payload is; every rank learns the greatest.

    Args:
        mine: bytes of this rank's payload, 0 for none; None if it has nothing to add.
        group: of the ranks; all by default.
        device: where the group's tensors live.

    Returns:
        The same on every rank.
    """
    said = torch.tensor([mine or 0, -(mine or 0), mine is None], dtype=torch.int64, device=device)
    dist.all_reduce(said, dist.ReduceOp.MAX, group=group)
    longest, shortest, any_absent = said.tolist()
    absent = _ranks_of(mine is None, group, device) if any_absent else ()
    return Announced(longest=longest, all_pack=shortest < 0, absent=absent)


def _ranks_of(here: bool, group: dist.ProcessGroup | None, device: torch.device | None) -> tuple[int, ...]:
    """Which ranks say yes: a bit each, asked only when one does."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    words = torch.zeros(-(-ranks // BITS), dtype=torch.int64, device=device)
    words[rank // BITS] = here << rank % BITS
    dist.all_reduce(words, group=group)
    found = words.tolist()
    return tuple(number for number in range(ranks) if found[number // BITS] >> number % BITS & 1)


def exchange(
    payload: bytes,
    longest: int,
    *,
    limit: int,
    group: dist.ProcessGroup | None = None,
    device: torch.device | None = None,
) -> list[bytes]:
    """Every rank's payload, on every rank, padded to the longest.

    Args:
        payload: this rank's.
        longest: bytes of the longest payload (`announce`).
        limit: bytes that no payload may exceed; asked before memory is taken for them.
        group: of the ranks; all by default.
        device: where the group's tensors live.

    Returns:
        The payloads, by rank.

    Raises:
        Refused: if a length is announced that cannot be. The process then sends no more, so the others' exchange fails
            too.
    """
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    if not len(payload) <= longest <= limit:
        raise Refused(f"a rank announces {longest} bytes, where at most {limit} can be meant")
    mine = torch.frombuffer(bytearray(payload.ljust(longest, b"\0")), dtype=torch.uint8).to(device)
    came: list[Tensor] = [mine if other == rank else torch.empty_like(mine) for other in range(ranks)]
    # Receiving is announced before anything is sent: behind a payload, the announcement would keep the other waiting,
    # and on a slow link the two ways would take turns (as they do in gloo's all-to-all).
    at = {o: o if group is None else dist.get_global_rank(group, o) for o in range(ranks) if o != rank}
    moves = [dist.P2POp(dist.irecv, came[other], at[other], group) for other in at]
    moves += [dist.P2POp(dist.isend, mine, at[other], group) for other in at]
    for work in dist.batch_isend_irecv(moves) if moves else ():
        work.wait()
    return [part.cpu().numpy().tobytes() for part in came]


def pays(ranks: int, longest: int, dense_bytes: int, *, coordinates: int = 0) -> bool:
    """Whether gathering the payloads takes less time than a ring all-reduce of the dense gradient.

    Args:
        ranks: P.
        longest: S, bytes of the longest payload.
        dense_bytes: D, of the dense gradient.
        coordinates: that are read of each payload; 0 if it lists its non-zeros.

    Returns:
        Whether P·(S + reading) < 2D on a network of 1 Gbit/s: the same answer on every rank.
    """
    reading = BYTES_PER_COORDINATE * coordinates if coordinates else BYTES_PER_SPARSE_BYTE * longest
    return ranks * (longest + reading) < 2 * dense_bytes
