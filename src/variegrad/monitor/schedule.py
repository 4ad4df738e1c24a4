"""Which steps are measured: every 16th, and more often at the beginning, when B_D changes fastest."""

from __future__ import annotations

from dataclasses import dataclass

# How much denser the warm-up is.
DENSER = 8


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Steps count from 0; the first is measured.

    Attributes:
        every: k ≥ 1, one step in k is measured after the warm-up.
        warm_up: during this many first steps, one in k/8 (rounded down, at least every one).

    Raises:
        ValueError: if `every` is below one or `warm_up` negative.
    """

    every: int
    warm_up: int

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be at least 1 step; got {self.every}. 16 is cheap and usually sufficient.")
        if self.warm_up < 0:
            raise ValueError(f"warm_up must be a number of steps, 0 for none; got {self.warm_up}.")

    def due(self, step: int) -> int:
        """The first step to look at, not before this one."""
        dense = max(1, self.every // DENSER)
        candidate = -(-step // dense) * dense
        return candidate if candidate < self.warm_up else -(-step // self.every) * self.every
