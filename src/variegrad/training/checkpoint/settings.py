"""Settings of a run as plain values, and whether a run may be continued with others."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from typing import Any


def settings_of(value: Any) -> Any:
    """Settings as JSON: a dataclass becomes {its name: its fields}, a tuple a list; anything else unknown its `repr`.

    Args:
        value: a dataclass of settings, or what stands in one.

    Returns:
        Text, numbers, None, lists and mappings.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {type(value).__name__: {f.name: settings_of(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, Mapping):
        return {str(key): settings_of(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [settings_of(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, str | int | float) else repr(value)


def check_settings(saved: Mapping[str, Any], now: Mapping[str, Any], *, may_change: Collection[str] = ()) -> None:
    """Refuse to continue a run with settings that would make it another run.

    Args:
        saved: the checkpoint's settings.
        now: today's, in the same form (`settings_of`).
        may_change: names that do not matter for what is computed (workers, passes, logging).

    Raises:
        ValueError: if any other differs: its name, what was saved and what is given now.
    """
    missing = object()
    differing = [
        f"{name} was {_shown(saved.get(name, missing), missing)} and is {_shown(now.get(name, missing), missing)} now"
        for name in dict.fromkeys([*saved, *now])
        if name not in may_change and saved.get(name, missing) != now.get(name, missing)
    ]
    if differing:
        raise ValueError(
            f"a run is continued with the settings it began with, but {'; '.join(differing)}. "
            "Set them back, or start a new run in another folder."
        )


def _shown(value: Any, missing: object) -> str:
    return "not set" if value is missing else repr(value)
