"""Shapes in signatures, such as `Float[Tensor, "b d"]`: jaxtyping's types for those who check them, else plain classes.

Type checkers read jaxtyping. At run time it is used if it is loaded already, as the tests do to check every call; a
training program does not need it, and does not load it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float64, Inexact, Int, Shaped, UInt8

__all__ = ["Bool", "Float", "Float64", "Inexact", "Int", "Shaped", "UInt8"]


class _Unchecked:
    """Stands for a shape that is not checked: `Float[Tensor, "b"]` is `Tensor`."""

    def __class_getitem__(cls, array_and_shape: tuple[Any, str]) -> Any:
        return array_and_shape[0]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'variegrad.shapes' has no attribute {name!r}")
    checked = sys.modules.get("jaxtyping")
    return _Unchecked if checked is None else getattr(checked, name)
