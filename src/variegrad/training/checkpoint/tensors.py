"""Tensors as bytes and back (safetensors): every number type, tied ones stored once, views in their own values."""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from variegrad.training.checkpoint.manifest import Damaged


def to_bytes(tensors: Mapping[str, Tensor]) -> tuple[bytes, dict[str, str]]:
    """Store tensors; those that are one and the same memory are stored once.

    Args:
        tensors: by name; on any device, of any layout in memory.

    Returns:
        The file's content, and for each further name of a stored tensor that tensor's name.

    Raises:
        ValueError: if a tensor is not dense numbers (sparse, quantised, on the meta device).
    """
    stored: dict[str, Tensor] = {}
    same_as: dict[str, str] = {}
    names: dict[object, str] = {}
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise ValueError(
                f"tensor {name!r} must be dense numbers; got {tensor.layout} of {tensor.dtype} on {tensor.device}. "
                "Convert it first (to_dense, dequantize)."
            )
        identity = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        first = names.setdefault(identity, name) if tensor.numel() else name
        if first != name:
            same_as[name] = first
            continue
        # A clone: views of one storage would be refused, and what is written must not change meanwhile.
        stored[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return safetensors.torch.save(stored), same_as


def from_bytes(data: bytes, same_as: Mapping[str, str]) -> dict[str, Tensor]:
    """Undo `to_bytes`.

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
