"""What every calculator requires of its numbers."""

from __future__ import annotations

import math


def positive(**numbers: float) -> None:
    """Refuse what is not a positive finite number.

    Args:
        numbers: arguments by name.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, number in numbers.items():
        if not (number > 0 and math.isfinite(number)):
            raise ValueError(f"{name} must be positive and finite; got {number}.")


def non_negative(**numbers: float) -> None:
    """Refuse what is not zero or a positive finite number.

    Args:
        numbers: arguments by name.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, number in numbers.items():
        if not (number >= 0 and math.isfinite(number)):
            raise ValueError(f"{name} must be finite and not negative; got {number}.")


def at_least_one(**numbers: float) -> None:
    """Refuse what is below one, rounding apart; infinity is allowed.

    Args:
        numbers: arguments by name.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, number in numbers.items():
        if not number >= 1 - 1e-9:
            raise ValueError(f"{name} must be at least 1; got {number}.")
