"""The latest readings' moments, pooled: a ratio of sums over a sliding window of steps, Σw_kÛ_k / Σw_kM̂²_k.

w_k is the number of pairs of examples that Û_k is a mean over: a short last batch says little, and the noise of Û goes
with one over the pairs. Any weights that do not depend on the gradients leave the ratio consistent.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from variegrad.estimators import BatchSizeEstimate, StepMoments
from variegrad.estimators.pooled import pooled_estimate

# Longer windows give an interval of an average over the past: while training moves, it misses B_D at the last step.
USUAL = 8
# Steps that are kept for that average.
KEPT = 64
# Of the error that an interval may make, this part is left to chance, and the rest to what changes within the window.
MOVEMENT = 0.4


class Step(NamedTuple):
    """What a window keeps of a step.

    Attributes:
        step: its number, from 1.
        batch_size: units of the step.
        pairs: w, the pairs of units that Û is a mean over.
        mean_product: Û.
        mean_sq_norm: M̂².
        parts: Û and M̂² of each part of the model in turn.
    """

    step: int
    batch_size: int
    pairs: float
    mean_product: float
    mean_sq_norm: float
    parts: tuple[float, ...] = ()


class Window:
    """The last K steps that were measured, and some before them; ValueError if K < 8, which an interval needs."""

    def __init__(self, steps: int | None) -> None:
        if steps is not None and steps < 8:
            raise ValueError(f"window must be at least 8 readings, below which there is no interval; got {steps}.")
        self.size = USUAL if steps is None else steps
        self._steps: deque[Step] = deque(maxlen=max(self.size, KEPT))

    def __len__(self) -> int:
        return min(len(self._steps), self.size)

    @property
    def latest(self) -> list[Step]:
        """The last K steps."""
        return list(self._steps)[-self.size :]

    @property
    def kept(self) -> list[Step]:
        """Those and the steps before them."""
        return list(self._steps)

    def add(self, step: int, batch_size: int, moments: StepMoments, pairs: float, parts: Iterable[float] = ()) -> None:
        """One step more; the oldest leaves if there is no room."""
        self._steps.append(Step(step, batch_size, pairs, *moments, tuple(parts)))

    def outweighs(self, pairs: float) -> bool:
        """Whether a step is of less than half the size of one in the window."""
        return any(4 * pairs < step.pairs for step in self.latest)

    def clear(self) -> None:
        """Begin again: what is measured has changed."""
        self._steps.clear()

    def estimate(
        self, *, population: int | None, confidence: float, steps: Sequence[Step] | None = None, part: int | None = None
    ) -> BatchSizeEstimate:
        """B̂_D, of the whole model or a part, over the last K steps, with an interval that holds it at the last of them.

        Over other steps it is a plain interval of their average. Below 8 steps there is none.
        """
        level = 1 - MOVEMENT * (1 - confidence) if steps is None else confidence
        blocks = []
        for s in self.latest if steps is None else steps:
            product, norm = (s.mean_product, s.mean_sq_norm) if part is None else s.parts[2 * part : 2 * part + 2]
            blocks.append((s.pairs, s.pairs * product, s.pairs * norm))
        return pooled_estimate(blocks, population=population, confidence=level)

    def state(self) -> list[list[float]]:
        """The steps as plain numbers."""
        return [[*step[:5], *step.parts] for step in self._steps]

    def load(self, state: Sequence[Sequence[float]]) -> None:
        """Replace what is in the window; ValueError if it is not one of `state`."""
        try:
            whole = [[0, 0, *row] if len(row) == 3 else row for row in state]  # three numbers: of version 0.1
            steps = [
                Step(int(n), int(b), float(w), float(u), float(m), tuple(map(float, parts)))
                for n, b, w, u, m, *parts in whole
            ]
        except (TypeError, ValueError) as error:
            raise ValueError("state: the window must be what Monitor.state_dict() returned.") from error
        self._steps.clear()
        self._steps.extend(steps)


def usual_batch_size(steps: Sequence[Step]) -> int:
    """The median batch: a short last batch of an epoch is not the usual one."""
    return int(statistics.median_high([step.batch_size for step in steps]))
