"""What becomes of an update whose losses or gradients are not finite: all workers end there, or all leave it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable
class WhenNotFinite(Protocol):
    """Decides, from what every worker knows, whether the run continues without this update."""

    def skips(self, updates: int, skipped: int) -> bool:
        """Whether to leave the update out and continue.

        Args:
            updates: the number of this update, from 1.
            skipped: how many were left out before it.

        Returns:
            True to leave it out; False to end the run with an error that names worker and example.
        """


@dataclass(frozen=True)
class Stop(WhenNotFinite):
    """End the run, at the same update on all workers; the weights stay as they were before it."""

    def skips(self, updates: int, skipped: int) -> bool:  # noqa: ARG002 - a protocol's arguments
        return False

    def __str__(self) -> str:
        return "Stop()"


@dataclass(frozen=True)
class Skip(WhenNotFinite):
    """Leave the update out on all workers and count it, at most this many times.

    Attributes:
        at_most: updates of a run that may be left out.

    Raises:
        ValueError: if `at_most` is below one.
    """

    at_most: int = 10

    def __post_init__(self) -> None:
        if self.at_most < 1:
            raise ValueError(f"Skip: at_most must be at least 1 update; got {self.at_most}.")

    def skips(self, updates: int, skipped: int) -> bool:  # noqa: ARG002 - a protocol's argument
        return skipped < self.at_most

    def __str__(self) -> str:
        return f"Skip({self.at_most})"
