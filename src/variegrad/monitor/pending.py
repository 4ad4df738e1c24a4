"""A reading that nobody has looked at yet: the window as it stood at its step is kept, B̂_D and interval are not made.

A training step then pays for the moments only; the estimate, which is a function of these, is worked out at the first
look, is the same whenever that comes, and is never made for a reading that is thinned out unseen.
"""

from __future__ import annotations

from dataclasses import dataclass

from variegrad.monitor.pool import Moments, estimate_over
from variegrad.monitor.reading import Reading


@dataclass(slots=True)
class Pending:
    """What a reading is worked out from.

    Attributes:
        moments: of the steps in the window, the reading's own last.
        step: the optimiser step, counted from 1.
        examples: what this step's measurement rests on.
        batch_size: B of the whole step.
        source: what the gradients were, in words.
        skipped: steps left out so far.
        population: n, or None for fresh data.
        confidence: nominal level.
    """

    moments: Moments
    step: int
    examples: int
    batch_size: int
    source: str
    skipped: int
    population: int | None
    confidence: float

    def reading(self) -> Reading:
        """The reading.

        Returns:
            The same as if it had been made at its step.
        """
        return Reading.from_estimate(
            estimate_over(self.moments, population=self.population, confidence=self.confidence),
            step=self.step,
            examples=self.examples,
            batch_size=self.batch_size,
            source=self.source,
            pooled_steps=len(self.moments),
            skipped=self.skipped,
        )


class Entry:
    """A place in a history: a reading, or what it will be worked out from.

    Args:
        content: either.
    """

    __slots__ = ("_content",)

    def __init__(self, content: Reading | Pending) -> None:
        self._content = content

    @property
    def step(self) -> int:
        """The optimiser step, counted from 1."""
        return self._content.step

    @property
    def reading(self) -> Reading:
        """The reading, worked out once."""
        if isinstance(self._content, Pending):
            self._content = self._content.reading()
        return self._content
