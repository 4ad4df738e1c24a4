"""Settings and tensors as short texts that tell different ones apart: for workers and runs that must agree."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def text(value: Any) -> str:
    """A setting to its last digit, and without addresses in memory, which differ in every process.

    An object whose class defines no `__repr__` is its class and its attributes.

    Args:
        value: a number, text, tensor, dataclass, collection, function or any other object.

    Returns:
        The text: equal for equal settings, in every process.
    """
    return _text(value, ())


def _text(value: Any, inside: tuple[int, ...]) -> str:  # noqa: PLR0911 - a kind of value each
    if id(value) in inside:
        return "…"
    inner = functools.partial(_text, inside=(*inside, id(value)))
    if isinstance(value, Tensor):
        return f"tensor({tuple(value.shape)}, {str(value.dtype).removeprefix('torch.')}, {digest(value)})"
    if isinstance(value, np.generic | np.ndarray):
        return inner(value.item()) if isinstance(value, np.generic) else inner(torch.from_numpy(np.array(value)))
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{inner(key)}: {inner(each)}' for key, each in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(inner, value))}]"
    if isinstance(value, functools.partial):
        return f"partial({inner(value.func)}, {inner(value.args)}, {inner(value.keywords)})"
    if (name := getattr(value, "__qualname__", None)) is not None:  # a class or function
        return f"{getattr(value, '__module__', '')}.{name}"
    if dataclasses.is_dataclass(value):
        return _called(value, {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.repr}, inner)
    said = repr(value)
    if " at 0x" not in said:
        return said
    slots = {name: getattr(value, name) for name in getattr(type(value), "__slots__", ()) if hasattr(value, name)}
    return _called(value, {**slots, **getattr(value, "__dict__", {})}, inner)


def _called(value: Any, attributes: Mapping[str, Any], inner: Any) -> str:
    return f"{type(value).__qualname__}({', '.join(f'{name}={inner(each)}' for name, each in attributes.items())})"


def short(value: float) -> str:
    """A number for people: short if nothing is lost by it.

    Args:
        value: the number.

    Returns:
        2 for 2.0, and every digit of 1.0000001.
    """
    return said if float(said := f"{value:g}") == value else repr(value)


def digest(tensor: Tensor) -> str:
    """A checksum (CRC-32) of a tensor's numbers: against accidents, at the speed of memory and without a copy of it.

    Args:
        tensor: dense numbers.

    Returns:
        Eight hexadecimal digits.
    """
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return f"{zlib.crc32(flat.view(torch.uint8).numpy().data) if flat.numel() else 0:08x}"


def number(content: str) -> int:
    """A text as a number of 62 bits: what workers compare instead of the text.

    Args:
        content: any text.

    Returns:
        From 0 to 2⁶² − 1.
    """
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "little") >> 2
