"""How the learning rate η of the mean gradient follows the batch size from B₀ to B = k·B₀."""

from __future__ import annotations

import math
from enum import Enum


class LearningRateRule(Enum):
    """How the learning rate η follows the batch size when it grows by a factor of k."""

    TUNED = "tuned for each batch size"
    LINEAR = "linear (η grows with B)"
    SQUARE_ROOT = "square root (η grows with √B)"
    FIXED = "fixed (η stays)"

    def factor(self, k: float) -> float:
        """f(k), so that η = η₀·f(k).

        Args:
            k: B/B₀ > 0.

        Returns:
            k, √k or 1.

        Raises:
            ValueError: if k is not positive, or the rule is `TUNED`, which has no formula.
        """
        if not k > 0:
            raise ValueError(f"k, the ratio of batch sizes, must be positive; got {k}.")
        if self is LearningRateRule.LINEAR:
            return k
        if self is LearningRateRule.SQUARE_ROOT:
            return math.sqrt(k)
        if self is LearningRateRule.FIXED:
            return 1.0
        raise ValueError("LearningRateRule.TUNED has no factor: the learning rate is tuned for each batch size.")
