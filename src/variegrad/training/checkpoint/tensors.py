"""Tensors as a safetensors file and back: every number type, tied ones stored once, without a copy in memory.

The format is a length, a JSON header and the numbers, concatenated. It is written here rather than by the library so
that tensors go to the disk from where they are, the SHA-256 is that of memory and not of what the disk made of it, and
a full disk is an `OSError` like any other. The library reads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from variegrad.training.checkpoint.manifest import Damaged, File

CHUNK = 2**24  # bytes that are written and hashed at once
NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint64: "U64", torch.uint32: "U32",
    torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL", torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


def distinct(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that are to be stored; those that are one and the same memory once.

    Args:
        tensors: by name; on any device, of any layout in memory.

    Returns:
        What to store, and for each further name of a stored tensor that tensor's name.

    Raises:
        ValueError: if a tensor is not dense numbers (sparse, quantised, on the meta device).
    """
    stored: dict[str, Tensor] = {}
    same_as: dict[str, str] = {}
    names: dict[object, str] = {}
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or tensor.dtype not in NAMES:
            raise ValueError(
                f"tensor {name!r} must be dense numbers; got {tensor.layout} of {tensor.dtype} on {tensor.device}. "
                "Convert it first (to_dense, dequantize)."
            )
        identity = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        first = names.setdefault(identity, name) if tensor.numel() else name
        if first != name:
            same_as[name] = first
        else:
            stored[name] = tensor.detach()
    return stored, same_as


def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy on the CPU that later updates do not change; tied tensors stay tied.

    Args:
        tensors: by name.

    Returns:
        The copy: as much memory as the distinct tensors take.

    Raises:
        ValueError: as `distinct`.
    """
    stored, same_as = distinct(tensors)
    copies = {}
    for name, tensor in stored.items():
        copy = torch.empty(tensor.shape, dtype=tensor.dtype)
        copies[name] = copy.copy_(tensor)
    return {**copies, **{name: copies[first] for name, first in same_as.items()}}


def write(file: BinaryIO, tensors: Mapping[str, Tensor]) -> File:
    """Write tensors in the safetensors format, each under each of its names.

    Args:
        file: open for writing.
        tensors: by name, dense numbers.

    Returns:
        Size and SHA-256 of what was written.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that all are aligned
    header, end = {}, 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    seen = hashlib.sha256()

    def put(data: bytes | memoryview) -> None:
        for begin in range(0, len(data), CHUNK):
            part = data[begin : begin + CHUNK]
            seen.update(part)
            file.write(part)

    put(len(text).to_bytes(8, "little") + text)
    for name in order:
        flat = tensors[name].detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        if flat.numel():
            put(flat.view(torch.uint8).numpy().data)
    return File(size=8 + len(text) + end, sha256=seen.hexdigest())


def from_bytes(data: bytes, same_as: Mapping[str, str]) -> dict[str, Tensor]:
    """Read tensors back.

    Args:
        data: the file's content, verified.
        same_as: further names of stored tensors.

    Returns:
        The tensors, on the CPU; tied ones are one object again.

    Raises:
        Damaged: if this is no safetensors file, or a tied tensor is missing.
    """
    try:
        stored = safetensors.torch.load(data)
        return {**stored, **{name: stored[first] for name, first in same_as.items()}}
    except (SafetensorError, KeyError) as error:
        raise Damaged(f"the tensors cannot be read ({error})") from None
