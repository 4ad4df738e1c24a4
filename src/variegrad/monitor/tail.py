"""Step sums on the wire: a few numbers behind the last bucket of an all-reduce that takes place anyway.

In float32 and float64 the sums are added up as they are. Where gradients travel in 16 bits (a composed compression
hook, or a model of that type) each worker has a slot of its own: its float32 numbers cut into digits that are small
integers, times P, which an average over P workers with zeros elsewhere gives back exactly.
"""

from __future__ import annotations

from dataclasses import fields

import torch
from jaxtyping import Float
from torch import Tensor

from variegrad.monitor.step_sums import StepSums

NAMES = tuple(field.name for field in fields(StepSums))
NUMBERS = len(NAMES)
# Integers up to 2^bits are exact.
_EXACT_BITS = {torch.float16: 11, torch.bfloat16: 8}


def sums_as_tail(sums: StepSums, like: Tensor) -> Float[Tensor, " k"]:
    """The numbers themselves, for a sum over workers.

    Args:
        sums: of this worker.
        like: a tensor of the type and device wanted.

    Returns:
        A short vector.
    """
    return torch.tensor(list(vars(sums).values()), dtype=like.dtype, device=like.device)


def sums_of_tail(tail: Float[Tensor, " k"]) -> StepSums:
    """What a summed tail says of all workers.

    Args:
        tail: the sum of all workers' tails.

    Returns:
        The sums.
    """
    return StepSums(**dict(zip(NAMES, tail.double().tolist(), strict=True)))


def digits_as_tail(sums: StepSums, rank: int, workers: int, wire: torch.dtype, like: Tensor) -> Float[Tensor, " k"]:
    """The numbers as digits in this worker's slot, for an *average* over workers in 16 bits.

    Args:
        sums: of this worker.
        rank: of this worker.
        workers: P.
        wire: the type in which the average is taken.
        like: a tensor of the type and device wanted.

    Returns:
        P slots, all but one zero.
    """
    bits = _digit_bits(wire, workers)
    words = torch.tensor(list(vars(sums).values()), dtype=torch.float32).view(torch.int32).long() & 0xFFFFFFFF
    shifts = torch.arange(0, 32, bits)
    digits = (words.unsqueeze(1) >> shifts) & ((1 << bits) - 1)
    slots = torch.zeros(workers, digits.numel())
    slots[rank] = digits.flatten() * workers
    return slots.flatten().to(like)


def sums_of_digits(tail: Float[Tensor, " k"], workers: int, wire: torch.dtype) -> StepSums:
    """What an averaged tail of digits says of all workers: each one's numbers, added up in the order of ranks.

    Args:
        tail: the average of all workers' tails.
        workers: P.
        wire: the type in which the average was taken.

    Returns:
        The sums.
    """
    bits = _digit_bits(wire, workers)
    digits = tail.double().cpu().round().long().view(workers, NUMBERS, 32 // bits)
    words = (digits << torch.arange(0, 32, bits)).sum(-1)
    signed = torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
    return sum((sums_of_tail(row) for row in signed.view(torch.float32)), start=StepSums())


def _digit_bits(wire: torch.dtype, workers: int) -> int:
    for bits in (8, 4, 2, 1):
        if workers * ((1 << bits) - 1) <= 1 << _EXACT_BITS[wire]:
            return bits
    raise ValueError(
        f"{workers} workers are too many to send norms along with gradients in {wire}; at most "
        f"{1 << _EXACT_BITS[wire]} can. Use float32 gradients, or watch on one worker without attach."
    )
