"""What every calculator requires of its numbers, and former names of arguments."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import wraps
from numbers import Integral
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def formerly(**new_names: str) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Let a function take arguments by their former names for one version, with a warning.

    Args:
        new_names: former name → new name.

    Returns:
        A decorator.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @wraps(function)
        def wrapped(*args: Arguments.args, **settings: Arguments.kwargs) -> Result:
            taken: dict[str, Any] = dict(settings)
            for old in new_names.keys() & taken.keys():
                new = new_names[old]
                if new in taken:
                    raise TypeError(f"{function.__name__}: give {new} alone; {old} is its former name.")
                message = f"{function.__name__}({old}=) is now {function.__name__}({new}=)."
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                taken[new] = taken.pop(old)
            return function(*args, **taken)

        return wrapped

    return decorate


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


def whole_number(**numbers: Any) -> None:
    """Refuse what is not a whole number of at least one.

    Args:
        numbers: arguments by name.

    Raises:
        TypeError: naming the first that is not whole.
        ValueError: naming the first that is below one.
    """
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, Integral):
            raise TypeError(f"{name} must be a whole number; got {number!r}.")
        if number < 1:
            raise ValueError(f"{name} must be at least 1; got {number}.")


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
