"""What one worker sends of its surrogate gradient m(g): the vector itself, bit for bit, in few bytes.

A payload is a header of 40 bytes and a body of one kind:

* `GAPS`, `BASE3`: every non-zero is ±c, as in Q(v): c once, then positions and signs (`gaps`) or signs alone (`base3`);
* `KEPT`: the coordinates that a mask keeps, as in DropConnect; the mask is known to both sides and not sent;
* `DENSE`: all coordinates;
* `NOT_FINITE`: that the gradient was not finite, so that every worker learns it in the same step.

There is no second quantisation. Only a zero's sign is not sent with a vector of ±c. The reader says what a payload may
hold (length, number type, step, sender), never the payload: anything else is `Refused`. The checksum
finds accidents; it is no signature (docs/developers/reliability.md). Numbers are little-endian, as on every machine
that torch runs on.
"""

from __future__ import annotations

import math
import struct
import zlib
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from variegrad.distributed import base3, gaps
from variegrad.distributed.refused import Refused
from variegrad.shapes import Bool, Float

MAGIC = b"vgrd"
VERSION = 1
# magic, version, kind, number type, reserved; sender; step, coordinates, bytes of the body; checksum
HEADER = struct.Struct("<4sBBBBIQQQI")
CHECKSUM = struct.Struct("<I")


class Kind(IntEnum):
    """How the body is coded."""

    DENSE = 0
    GAPS = 1
    BASE3 = 2
    KEPT = 3
    NOT_FINITE = 4


DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# The bits of a number: numpy has no bfloat16, and a sign is a bit.
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def encode(values: Float[Tensor, " d"], *, step: int, sender: int, mask: Bool[Tensor, " d"] | None = None) -> bytes:
    """Pack a vector in the smallest of its forms.

    Args:
        values: what is to be sent.
        step: the number of the update.
        sender: the rank.
        mask: the coordinates that may differ from zero, if the receiver knows them, too.

    Returns:
        The payload.

    Raises:
        ValueError: if the number type is none of float16, bfloat16, float32, float64, or the mask hides a non-zero.
    """
    if values.dtype not in DTYPES:
        raise ValueError(f"values must be floating point ({', '.join(map(str, DTYPES))}); got {values.dtype}.")
    values = values.detach().cpu().contiguous()
    kind, body = _body(values, mask)
    return _frame(kind, values.dtype, sender, step, values.numel(), body)


def decode(
    payload: bytes,
    *,
    elements: int,
    dtype: torch.dtype,
    step: int,
    sender: int,
    mask: Bool[Tensor, " d"] | None = None,
) -> Float[Tensor, " d"] | None:
    """Read the vector that `sender` sent in `step`.

    Args:
        payload: the bytes that came.
        elements: d, as expected.
        dtype: as expected.
        step: as expected.
        sender: as expected.
        mask: the sender's mask, if it may have sent kept coordinates only.

    Returns:
        The vector, or None if the sender's gradient was not finite.

    Raises:
        Refused: if the payload is anything but a whole, undamaged vector of that length and type from that step and
            sender.
    """
    kind, body = _unframe(payload, elements=elements, dtype=dtype, step=step, sender=sender)
    if kind is Kind.NOT_FINITE:
        if len(body):
            raise Refused(f"a gradient that is not finite has no body; this has {len(body)} bytes")
        return None
    if kind is Kind.DENSE:
        return _numbers(body, dtype, elements)
    if kind is Kind.KEPT:
        if mask is None:
            raise Refused("kept coordinates arrived, but no mask is known")
        values = torch.zeros(elements, dtype=dtype)
        return values.masked_scatter_(mask.cpu(), _numbers(body, dtype, int(mask.count_nonzero())))
    return _signed(kind, body, dtype, elements)


def add_to(
    total: Float[Tensor, " d"], payload: bytes, *, mask: Bool[Tensor, " d"] | None = None, **expected: Any
) -> bool:
    """Add the vector of a payload to a sum; positions and signs cost what they hold, not d.

    Args:
        total: the sum, on the CPU, changed in place.
        payload: as for `decode`.
        mask: as for `decode`.
        **expected: `elements`, `dtype`, `step` and `sender`, as for `decode`.

    Returns:
        False, and nothing is added, if the sender's gradient was not finite.

    Raises:
        Refused: as `decode`, before anything is added.
    """
    kind, body = _unframe(payload, **expected)
    if kind is not Kind.GAPS:
        values = decode(payload, mask=mask, **expected)
        if values is not None:
            total += values
        return values is not None
    positions, symbols = _sparse(body, expected["dtype"], expected["elements"])
    total.index_add_(0, torch.from_numpy(positions), symbols.to(total.dtype))
    return True


def without_padding(payload: bytes) -> bytes:
    """A payload that may be followed by zeros, without them.

    Args:
        payload: header, body, padding.

    Returns:
        As many bytes as the header announces; all of it if that cannot be.
    """
    if len(payload) < HEADER.size:
        return payload
    length = HEADER.size + HEADER.unpack_from(payload)[8]
    return payload if length > len(payload) or any(payload[length:]) else payload[:length]


def size(kind: Kind, elements: int, dtype: torch.dtype) -> int:
    """Bytes of a payload whose length follows from its kind.

    Args:
        kind: `DENSE`, `KEPT` (of as many kept coordinates), `BASE3` or `NOT_FINITE`.
        elements: the coordinates sent.
        dtype: of the numbers.

    Returns:
        Header and body.
    """
    body = {
        Kind.DENSE: elements * dtype.itemsize,
        Kind.KEPT: elements * dtype.itemsize,
        Kind.BASE3: dtype.itemsize + base3.size(elements),
        Kind.NOT_FINITE: 0,
    }
    return HEADER.size + body[kind]


def _body(values: Tensor, mask: Tensor | None) -> tuple[Kind, bytes]:
    bits, largest_finite = _bits(values), _bits(torch.tensor(torch.finfo(values.dtype).max, dtype=values.dtype))
    magnitudes = bits & np.iinfo(bits.dtype).max  # as integers they are ordered as the numbers are, NaN above infinity
    norm = magnitudes.max(initial=0)
    if norm > largest_finite:
        return Kind.NOT_FINITE, b""
    differs = magnitudes != 0
    nonzeros = int(np.count_nonzero(differs))
    if mask is not None:
        kept = bits[mask.cpu().numpy()]
        if np.count_nonzero(kept << 1) != nonzeros:
            raise ValueError("mask must keep every coordinate that is not zero; it hides some. Pass this draw's mask.")
        return Kind.KEPT, kept.tobytes()
    if np.count_nonzero(magnitudes == norm) == nonzeros or not nonzeros:
        kind, body = _one_magnitude(bits, differs, nonzeros)
        if len(body) < bits.nbytes - bits.itemsize:
            return kind, norm.tobytes() + body
    return Kind.DENSE, bits.tobytes()


def _one_magnitude(bits: NDArray[Any], differs: NDArray[np.bool_], nonzeros: int) -> tuple[Kind, bytes]:
    dense = base3.size(len(bits))
    if gaps.WORD.itemsize * nonzeros < dense:
        positions = np.flatnonzero(differs)
        if gaps.size(positions) < dense:
            return Kind.GAPS, gaps.pack(positions, bits[positions] < 0)
    return Kind.BASE3, base3.pack(differs * (1 + (bits < 0).view(np.uint8)))


def _signed(kind: Kind, body: memoryview, dtype: torch.dtype, elements: int) -> Tensor:
    if kind is Kind.GAPS:
        positions, signed = _sparse(body, dtype, elements)
        values = torch.zeros(elements, dtype=dtype)
        values[torch.from_numpy(positions)] = signed
        return values
    norm, rest = _norm(body, dtype)
    symbols: NDArray[Any] = _bits(torch.cat([torch.zeros_like(norm), norm, -norm]))
    _refuse_idle_norm(norm, some=bool(np.frombuffer(rest, np.uint8).any()))
    return torch.from_numpy(base3.unpack(rest, elements, symbols)).view(dtype)


def _sparse(body: memoryview, dtype: torch.dtype, elements: int) -> tuple[NDArray[np.int64], Tensor]:
    norm, rest = _norm(body, dtype)
    positions, negative = gaps.unpack(rest, elements)
    _refuse_idle_norm(norm, some=len(positions) > 0)
    return positions, torch.where(torch.from_numpy(negative), -norm, norm)


def _norm(body: memoryview, dtype: torch.dtype) -> tuple[Tensor, memoryview]:
    if len(body) < dtype.itemsize:
        raise Refused(f"a norm takes {dtype.itemsize} bytes; there are {len(body)}")
    norm = _numbers(body[: dtype.itemsize], dtype, 1)
    if norm.signbit():
        raise Refused(f"a norm is never below zero; this is {float(norm)}")
    return norm, body[dtype.itemsize :]


def _refuse_idle_norm(norm: Tensor, *, some: bool) -> None:
    if some != bool(norm):
        raise Refused("the norm is zero exactly if no coordinate differs from zero; here it is not so")


def _bits(values: Tensor) -> NDArray[Any]:
    return values.view(BITS[values.dtype.itemsize]).numpy()


def _numbers(body: memoryview, dtype: torch.dtype, count: int) -> Tensor:
    if len(body) != count * dtype.itemsize:
        raise Refused(f"{count} numbers of {dtype} take {count * dtype.itemsize} bytes; there are {len(body)}")
    values = torch.frombuffer(bytearray(body), dtype=dtype) if count else torch.zeros(0, dtype=dtype)
    if count and not math.isfinite(float(values.abs().max())):  # a maximum hands NaN on
        raise Refused("a number is not finite, though the header says that all are")
    return values


def _frame(kind: int, dtype: torch.dtype, sender: int, step: int, elements: int, body: bytes) -> bytes:
    fields = (MAGIC, VERSION, kind, DTYPES.index(dtype), 0, sender, step, elements, len(body))
    head = HEADER.pack(*fields, 0)[: -CHECKSUM.size]
    return b"".join((head, CHECKSUM.pack(zlib.crc32(body, zlib.crc32(head))), body))


def _unframe(payload: bytes, **expected: Any) -> tuple[Kind, memoryview]:
    if len(payload) < HEADER.size:
        raise Refused(f"a header takes {HEADER.size} bytes; there are {len(payload)}")
    magic, version, kind, number, reserved, sender, step, elements, length, checksum = HEADER.unpack_from(payload)
    body = memoryview(payload)[HEADER.size :]
    if magic != MAGIC:
        raise Refused(f"it begins with {magic!r}, not with {MAGIC!r}")
    if version != VERSION:
        raise Refused(f"it is of version {version}; this is version {VERSION}. Run one version on all ranks")
    if length != len(body):
        raise Refused(f"the header announces {length} bytes; {len(body)} arrived")
    if zlib.crc32(body, zlib.crc32(payload[: HEADER.size - CHECKSUM.size])) != checksum:
        raise Refused("its checksum does not fit: it was damaged on the way")
    if reserved or kind not in list(Kind) or number >= len(DTYPES):
        raise Refused(f"kind {kind}, number type {number} or reserved byte {reserved} is unknown")
    found = {"elements": elements, "dtype": DTYPES[number], "step": step, "sender": sender}
    for name, value in found.items():
        if value != expected[name]:
            raise Refused(f"expected {name} {expected[name]}; this has {name} {value}")
    return Kind(kind), body
