"""Whether a run may be continued with other settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

MISSING = object()


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Settings that are not the same.

    Args:
        saved: the checkpoint's settings.
        now: today's, in the same form.

    Returns:
        Name → what it was and is.
    """
    both = {name: (saved.get(name, MISSING), now.get(name, MISSING)) for name in dict.fromkeys([*saved, *now])}
    return {
        name: f"{name} was {_shown(was)} and is {_shown(is_now)} now"
        for name, (was, is_now) in both.items()
        if was != is_now
    }


def check_settings(saved: Mapping[str, Any], now: Mapping[str, Any], *, may_change: Collection[str] = ()) -> None:
    """Refuse to continue a run with settings that would make it another run.

    Args:
        saved: the checkpoint's settings.
        now: today's, in the same form.
        may_change: names that do not matter for what is computed (workers, passes, logging).

    Raises:
        ValueError: if any other differs: its name, what was saved and what is given now.
    """
    differing = [said for name, said in differences(saved, now).items() if name not in may_change]
    if differing:
        raise ValueError(
            f"a run is continued with the settings it began with, but {'; '.join(differing)}. "
            "Set them back, or start a new run in another folder."
        )


def _shown(value: Any) -> str:
    return "not set" if value is MISSING else repr(value)
