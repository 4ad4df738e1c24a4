"""The latest readings' moments, pooled: a ratio of sums over a sliding window of steps, Σw_kÛ_k / Σw_kM̂²_k.

w_k is the number of pairs of examples that Û_k is a mean over: a short last batch says little, and the noise of Û goes
with one over the pairs. Any weights that do not depend on the gradients leave the ratio consistent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from variegrad.estimators import BatchSizeEstimate, StepMoments
from variegrad.estimators.pooled import pooled_estimate

Moments = tuple[tuple[float, StepMoments], ...]
"""(w, (Û, M̂²)) of each step in a window, oldest first."""


class Window:
    """The last K steps that were looked at.

    Args:
        steps: K ≥ 8, which an interval needs.

    Raises:
        ValueError: if K is smaller.
    """

    def __init__(self, steps: int) -> None:
        if steps < 8:
            raise ValueError(f"window must be at least 8 readings, below which there is no interval; got {steps}.")
        self._moments: deque[tuple[float, StepMoments]] = deque(maxlen=steps)

    def __len__(self) -> int:
        return len(self._moments)

    def add(self, moments: StepMoments, pairs: float) -> None:
        """Takes in a step; the oldest leaves where the window is full.

        Args:
            moments: its (Û, M̂²).
            pairs: w > 0, the pairs of examples that Û is a mean over.
        """
        self._moments.append((pairs, moments))

    def outweighs(self, pairs: float) -> bool:
        """Whether a step is of less than half the size of one in the window.

        Args:
            pairs: of the step.

        Returns:
            Whether it is.
        """
        return any(4 * pairs < others for others, _ in self._moments)

    def estimate(self, *, population: int | None, confidence: float) -> BatchSizeEstimate:
        """B̂_D over the window.

        Args:
            population: n, or None for fresh data.
            confidence: nominal level.

        Returns:
            The estimate; no interval below 8 steps.
        """
        return estimate_over(self.snapshot(), population=population, confidence=confidence)

    def snapshot(self) -> Moments:
        """The window as it stands.

        Returns:
            What `estimate_over` takes.
        """
        return tuple(self._moments)

    def state(self) -> list[list[float]]:
        """The steps as plain numbers.

        Returns:
            [w, Û, M̂²] of each.
        """
        return [[pairs, *moments] for pairs, moments in self._moments]

    def load(self, state: Sequence[Sequence[float]]) -> None:
        """Takes the place of what was in the window.

        Args:
            state: of `state`.
        """
        self._moments.clear()
        self._moments.extend((float(pairs), StepMoments(float(product), float(norm))) for pairs, product, norm in state)


def estimate_over(moments: Moments, *, population: int | None, confidence: float) -> BatchSizeEstimate:
    """B̂_D over the steps of a window.

    Args:
        moments: of `Window.snapshot`.
        population: n, or None for fresh data.
        confidence: nominal level.

    Returns:
        The estimate; no interval below 8 steps.
    """
    return pooled_estimate(
        [(w, w * product, w * norm) for w, (product, norm) in moments],  # a step each: one may be left out
        population=population,
        confidence=confidence,
    )
