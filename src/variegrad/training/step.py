"""The record of one update."""

from __future__ import annotations

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
class Step:
    """One update that has been made: equal on all workers, but for the seconds.

    Attributes:
        updates: how many so far, those left out included.
        examples: samples seen so far: with the weights and the settings, the state of the run.
        passes: the same in passes over the data.
        mean_loss: the batch's mean loss before the update; NaN where the update was left out.
        accuracy: after the update, where it was evaluated.
        bound: B_D before the update, estimated from the batch, with its interval, where it was asked for.
        skipped: updates left out so far because they were not finite.
        seconds: how long it took this worker, evaluation and estimate aside.
    """

    updates: int
    examples: int
    passes: float
    mean_loss: float
    accuracy: float | None
    bound: BatchSizeEstimate | None
    skipped: int
    seconds: Seconds
