"""A reading as a record of plain JSON, and what such a record must be.

JSON has neither infinity nor NaN: +inf is the string "inf", an undefined number null.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Values = Mapping[str, Any]

KINDS: Mapping[str, type | tuple[type, ...]] = {
    "step": int,
    "examples": int,
    "batch_size": int,
    "source": str,
    "batch_size_bound": float,
    "low": float,
    "high": float,
    "lower_confidence_bound": float,
    "unbounded_above": bool,
    "cannot_tell": bool,
    "confidence": float,
    "pooled_steps": int,
    "skipped": int,
    "population": (int, type(None)),
}
"""The entries of a record, in its order, and the type of each."""

_RULES: tuple[tuple[str, str, Callable[[Values], bool]], ...] = (
    ("step", "at least 0", lambda r: r["step"] >= 0),
    ("examples", "at least 1", lambda r: r["examples"] >= 1),
    ("batch_size", "at least 1", lambda r: r["batch_size"] >= 1),
    ("batch_size_bound", 'at least 1, "inf", or null for undefined', lambda r: not r["batch_size_bound"] < 1),
    ("low", "finite and at least 1", lambda r: 1 <= r["low"] < math.inf),
    ("high", '"inf" or at least low', lambda r: r["high"] >= r["low"]),
    ("lower_confidence_bound", "finite and at least 1", lambda r: 1 <= r["lower_confidence_bound"] < math.inf),
    ("unbounded_above", 'true where high is "inf" alone', lambda r: r["unbounded_above"] is math.isinf(r["high"])),
    ("confidence", "between 0 and 1", lambda r: 0 < r["confidence"] < 1),
    ("pooled_steps", "at least 1", lambda r: r["pooled_steps"] >= 1),
    ("skipped", "at least 0", lambda r: r["skipped"] >= 0),
    ("population", "at least 1, or null", lambda r: r["population"] is None or r["population"] >= 1),
)


def to_json(value: Any) -> Any:
    """A value as it stands in a record.

    Args:
        value: a number, text or None.

    Returns:
        The same, but for +inf and NaN.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def checked(record: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a record.

    Args:
        record: what JSON held.

    Returns:
        One value for each entry of a reading.

    Raises:
        ValueError: if an entry is missing, unknown, of another type, or out of its range.
    """
    if record.keys() != KINDS.keys():
        odd = ", ".join(sorted(record.keys() ^ KINDS.keys()))
        raise ValueError(f"a reading has the entries {', '.join(KINDS)}; missing or unknown here: {odd}.")
    values = {}
    for name, kind in KINDS.items():
        value = record[name]
        values[name] = value if kind is not float and type(value) is kind else _value(name, value, kind)
    for name, rule, holds in _RULES:
        if not holds(values):
            raise ValueError(f"a reading's {name} must be {rule}; got {record[name]!r}.")
    return values


def _value(name: str, value: Any, kind: type | tuple[type, ...]) -> Any:
    if kind is float:
        if type(value) is float and math.isfinite(value):
            return value
        if value is None:
            return math.nan
        if value == "inf":
            return math.inf
        if isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        raise ValueError(f'a reading\'s {name} must be a finite number, "inf" for +inf or null; got {value!r}.')
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        wanted = {"int": "a whole number", "str": "text", "bool": "true or false"}.get(
            getattr(kind, "__name__", ""), "a whole number or null"
        )
        raise ValueError(f"a reading's {name} must be {wanted}; got {value!r}.")
    return value
