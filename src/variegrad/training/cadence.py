"""How often something is done along a run: by updates or by passes over the data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cadence:
    """How often: once per given number of updates or passes over the data.

    Attributes:
        updates: the number of updates from one time to the next; or
        passes: the number of passes.

    Raises:
        ValueError: if not exactly one of them is given, or it is out of range.
    """

    updates: int | None = None
    passes: float | None = None

    def __post_init__(self) -> None:
        if (self.updates is None) == (self.passes is None):
            raise ValueError(f"Cadence: give either updates or passes; got {self.updates} and {self.passes}.")
        if self.updates is not None and self.updates < 1:
            raise ValueError(f"Cadence: updates must be at least 1; got {self.updates}.")
        if self.passes is not None and not self.passes > 0:
            raise ValueError(f"Cadence: passes must be positive; got {self.passes}.")

    def due(self, updates: int, before: float, after: float) -> bool:
        """Whether it is time.

        Args:
            updates: the number of the update, from 1.
            before: passes over the data before it.
            after: passes after it.

        Returns:
            Whether it is.
        """
        if self.updates is not None:
            return updates % self.updates == 0
        assert self.passes is not None
        return before // self.passes < after // self.passes
