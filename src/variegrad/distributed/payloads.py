"""Payloads of different lengths from every worker to every other, and when that is cheaper than one dense sum.

Each rank sends its S bytes to P−1 others; a ring all-reduce of D bytes sends 2D(P−1)/P. Gathering pays while P·S < 2D
(P < 8d/S in float32). Lengths go first, so that all ranks know all of them and take the same branch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from variegrad.distributed.refused import Refused

LENGTH_BYTES = 8


def lengths(mine: int, *, group: dist.ProcessGroup | None = None, device: torch.device | None = None) -> list[int]:
    """One number of every rank, known to every rank.

    Args:
        mine: this rank's.
        group: of the ranks; all by default.
        device: where the group's tensors live.

    Returns:
        The numbers, by rank.
    """
    sent = torch.full((dist.get_world_size(group),), mine, dtype=torch.int64, device=device)
    came = torch.empty_like(sent)
    dist.all_to_all_single(came, sent, group=group)
    return [int(number) for number in came.tolist()]


def exchange(
    payload: bytes,
    sizes: Sequence[int],
    *,
    limit: int,
    group: dist.ProcessGroup | None = None,
    device: torch.device | None = None,
) -> list[bytes]:
    """Every rank's payload, on every rank.

    Args:
        payload: this rank's.
        sizes: bytes of every rank's payload (`lengths`).
        limit: bytes that no payload may exceed; asked before memory is taken for them.
        group: of the ranks; all by default.
        device: where the group's tensors live.

    Returns:
        The payloads, by rank.

    Raises:
        Refused: if a rank announces a length that cannot be. Its own process sends no more, so the others' exchange
            fails, too.
    """
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    if not all(0 <= size <= limit for size in sizes):
        odd = next(number for number, size in enumerate(sizes) if not 0 <= size <= limit)
        raise Refused(f"rank {odd} announces {sizes[odd]} bytes, where at most {limit} can be meant")
    mine = torch.frombuffer(bytearray(payload or b"\0"), dtype=torch.uint8)[: len(payload)].to(device)
    came = [
        torch.empty(0 if other == rank else size, dtype=torch.uint8, device=device) for other, size in enumerate(sizes)
    ]
    # Receiving is announced before anything is sent: behind a payload, the announcement would keep the other waiting,
    # and on a slow link the two ways would take turns (as they do in gloo's all-to-all).
    at = {o: o if group is None else dist.get_global_rank(group, o) for o in range(ranks) if o != rank}
    moves = [dist.P2POp(dist.irecv, came[other], at[other], group) for other in at if sizes[other]]
    moves += [dist.P2POp(dist.isend, mine, at[other], group) for other in at if payload]
    for work in dist.batch_isend_irecv(moves) if moves else ():
        work.wait()
    parts = [part.cpu().numpy().tobytes() for part in came]
    parts[rank] = payload
    return parts


def pays(sizes: Sequence[int], dense_bytes: int) -> bool:
    """Whether gathering the payloads sends less than a ring all-reduce of the dense gradient.

    Args:
        sizes: S of every rank.
        dense_bytes: D, of the dense gradient.

    Returns:
        Whether P·max S < 2D: the same answer on every rank.
    """
    return len(sizes) * max(sizes) < 2 * dense_bytes
