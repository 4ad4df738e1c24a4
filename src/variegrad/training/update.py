"""The record of one update."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from variegrad.estimators import BatchSizeEstimate


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """How long an update took this worker.

    Attributes:
        data: reading the examples.
        compute: the losses, their gradients and the update.
        communication: waiting for the other workers; what was sent during the backward pass costs nothing here.
    """

    data: float
    compute: float
    communication: float


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands: with its weights and settings, all that resuming it needs. Every number is counted.

    Attributes:
        examples: samples seen.
        updates: updates made, those left out included.
        left_out: updates left out because they were not finite.

    Raises:
        ValueError: if a number is negative.
        TypeError: if it is no whole number.
    """

    examples: int = 0
    updates: int = 0
    left_out: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"Position: {name} must be a whole number; got {value!r}.")
            if value < 0:
                raise ValueError(f"Position: {name} must not be negative; got {value}.")


@dataclass(frozen=True, kw_only=True)
class Update:
    """One update that has been made: the same on all workers, except for the seconds.

    Attributes:
        updates: how many so far, counted, those left out included.
        examples: samples seen so far.
        batch_size: the examples of this update over all workers; the last batch of a pass may be short.
        passes: the position in passes over the data.
        mean_loss: the batch's mean loss before the update; NaN if the update was left out.
        accuracy: after the update, if it was evaluated.
        bound: B_D before the update, estimated from the batch, with its interval, if it was asked for.
        left_out: updates left out so far because they were not finite.
        seconds: how long it took this worker, evaluation and estimate aside.
    """

    updates: int
    examples: int
    batch_size: int
    passes: float
    mean_loss: float
    accuracy: float | None
    bound: BatchSizeEstimate | None
    left_out: int
    seconds: Seconds

    @property
    def position(self) -> Position:
        """Where the run stands after this update: `train(..., start=update.position)` resumes there."""
        return Position(examples=self.examples, updates=self.updates, left_out=self.left_out)

    @property
    def skipped(self) -> int:
        """The former name of `left_out`."""
        warnings.warn("Update.skipped is now Update.left_out.", DeprecationWarning, stacklevel=2)
        return self.left_out
