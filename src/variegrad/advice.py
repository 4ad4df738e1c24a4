"""What B_D, measured or estimated, means for the batch size: its efficiency, and the learning rate after a change.

Efficiency is 1/(1+(B−1)/B_D): progress per example relative to B = 1, each batch size with a step tuned for it. With
`limits` (`vg.step_limits`) the advice also says, for every rule of the learning rate, how far the batch can grow from
the one in use, and which limit binds.

The words for a batch size are those of `Regime`, everywhere: Monitor, command and report. Factors are for learning
rates of the *mean* loss; for the γ of a sum divide by the change S = B′/B.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from enum import Enum, EnumMeta
from typing import Protocol, runtime_checkable

from torch import optim


@runtime_checkable
class Bounded(Protocol):
    """An estimate of B_D, a reading of the Monitor, or B_D itself (`Diversity`)."""

    @property
    def batch_size_bound(self) -> float: ...

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...

    @property
    def lower_confidence_bound(self) -> float: ...

    @property
    def undefined(self) -> bool: ...


@runtime_checkable
class Limited(Protocol):
    """The limits at the learning rate in use: `StepLimits`."""

    @property
    def batch_size(self) -> int: ...

    @property
    def preconditioned(self) -> bool: ...

    def in_words(self, new_batch_size: int | None = None) -> list[str]: ...


class _OldNames(EnumMeta):
    """The names of version 0.1, with a warning."""

    def __getattr__(cls, name: str) -> object:
        new = {"PERFECT_SCALING": "WELL_BELOW", "DIMINISHING": "NEAR", "WASTEFUL": "BEYOND", "CANNOT_TELL": "UNDECIDED"}
        if name not in new:
            raise AttributeError(name)
        warnings.warn(f"Regime.{name} is now Regime.{new[name]}", DeprecationWarning, stacklevel=2)
        return cls[new[name]]


class Regime(Enum, metaclass=_OldNames):
    """A batch size beside the limit, by its efficiency: at least 80 %, at least 50 % (B ≤ 1 + B_D), or less."""

    WELL_BELOW = "well below the limit"
    NEAR = "near the limit"
    BEYOND = "beyond the limit"
    UNDECIDED = "undecided"

    @classmethod
    def of(cls, efficiency: float) -> Regime:
        """The regime of an efficiency.

        Args:
            efficiency: in (0, 1].

        Returns:
            Well below, near or beyond the limit.
        """
        rounding = 1e-12
        if efficiency >= 0.8 - rounding:
            return cls.WELL_BELOW
        return cls.NEAR if efficiency >= 0.5 - rounding else cls.BEYOND


class StepSizeRule(Enum):
    """How the learning rate (of a mean loss) changes when the batch size goes from B to B′ = S·B."""

    CAPPED_LINEAR = "linear, capped: S·(B_D+B−1)/(B_D+B′−1)"
    SQUARE_ROOT = "square root: √S"

    @classmethod
    def of(cls, optimizer: optim.Optimizer | type[optim.Optimizer] | StepSizeRule) -> StepSizeRule:
        """The rule for an optimizer: capped linear for SGD, square root for the Adam family.

        Args:
            optimizer: an optimizer, wrapped or not, its class, or a rule, which is returned unchanged.

        Returns:
            The rule.

        Raises:
            TypeError: if no rule is known for its kind.
        """
        if isinstance(optimizer, StepSizeRule):
            return optimizer
        kind = optimizer if isinstance(optimizer, type) else type(getattr(optimizer, "optimizer", optimizer))
        # By name as well: Adam in eight bits, fused or layer-wise does not derive from torch's.
        names = [ancestor.__name__.lower() for ancestor in kind.__mro__]
        if any("adam" in name or name in {"rmsprop", "lamb"} for name in names):
            return cls.SQUARE_ROOT
        if any(name.startswith("sgd") for name in names):
            return cls.CAPPED_LINEAR
        raise TypeError(
            f"optimizer: there is a learning-rate rule for SGD and for the Adam family; got {kind.__name__}. Pass the "
            "rule itself, StepSizeRule.CAPPED_LINEAR or StepSizeRule.SQUARE_ROOT, or omit it."
        )

    def factor(self, batch_size: int, new_batch_size: int, batch_size_bound: float) -> float:
        """The factor of the learning rate.

        Args:
            batch_size: B, in examples.
            new_batch_size: B′, in examples.
            batch_size_bound: B_D ≥ 1, +inf allowed; the square root rule ignores it.

        Returns:
            The factor.

        Raises:
            ValueError: if a batch size or the bound is below one.
        """
        if self is StepSizeRule.CAPPED_LINEAR:
            return sgd_step_size_factor(batch_size, new_batch_size, batch_size_bound)
        return adam_step_size_factor(batch_size, new_batch_size)


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The current batch size, judged by an estimate of B_D.

    Attributes:
        batch_size: B, examples of one optimiser step, over all workers.
        efficiency: 1/(1+(B−1)/B̂_D).
        low: efficiency at the estimate's lower confidence bound: the cautious figure.
        high: efficiency at the upper end of the estimate's interval.
        regime: by `efficiency`; `UNDECIDED` if the interval reaches from beyond to well below the limit.
        certain: both ends of the interval give the same regime.
        bound: the estimate's lower confidence bound, used for the learning-rate factor.
        new_batch_size: B′, if a change was asked about.
        rule: how the learning rate follows a change; None if not given.
        limits: at the learning rate in use, if they were given.
    """

    batch_size: int
    efficiency: float
    low: float
    high: float
    regime: Regime
    certain: bool
    bound: float
    new_batch_size: int | None = None
    rule: StepSizeRule | None = None
    limits: Limited | None = None

    @property
    def step_size_factor(self) -> float | None:
        """The factor of the learning rate from B to B′ by the rule, at the lower confidence bound of B_D.

        1 if no change was asked about, None if no rule was named.
        """
        if self.rule is None:
            return None
        new = self.batch_size if self.new_batch_size is None else self.new_batch_size
        return self.rule.factor(self.batch_size, new, self.bound)

    def sgd_step_size_factor(self, new_batch_size: int) -> float:
        """The factor of the SGD learning rate for another batch size, at the lower confidence bound of B_D."""
        return sgd_step_size_factor(self.batch_size, new_batch_size, self.bound)

    def adam_step_size_factor(self, new_batch_size: int) -> float:
        """The factor of the Adam learning rate for another batch size: √(B′/B)."""
        return adam_step_size_factor(self.batch_size, new_batch_size)

    def __str__(self) -> str:
        hedge = "" if self.certain or self.regime is Regime.UNDECIDED else "probably "
        interval = "" if self.low == self.high else f" [{self.low:.0%}, {self.high:.0%}]"
        text = (
            f"batch {self.batch_size}: {hedge}{self.regime.value}, "
            f"efficiency {self.efficiency:.0%}{interval} at a tuned learning rate"
        )
        if self.new_batch_size is not None and self.rule is not None:
            name = self.rule.value.split(":")[0]
            text += f"; at {self.new_batch_size} multiply the learning rate by {self.step_size_factor:.3g} ({name})"
        if self.limits is None:
            return text
        lines = self.limits.in_words(self.new_batch_size)
        if self.rule is StepSizeRule.SQUARE_ROOT and not self.limits.preconditioned:
            lines.append("these limits are those of plain SGD: for Adam, step_limits(…, preconditioner=optimizer)")
        return "\n".join([text, *(f"  {line}" for line in lines)])


def advise(
    estimate: Bounded,
    batch_size: int,
    *,
    new_batch_size: int | None = None,
    rule: StepSizeRule | None = None,
    limits: Limited | None = None,
) -> Advice:
    """The efficiency of a batch of B examples, according to an estimate of B_D.

    Args:
        estimate: of B_D, or B_D itself, at the current weights.
        batch_size: B ≥ 1, examples of one optimiser step over all workers.
        new_batch_size: B′ ≥ 1, if the batch size is to change.
        rule: how the learning rate follows such a change.
        limits: from `step_limits` at the same batch size and weights: the advice then names the limit that binds, for
            every rule of the learning rate, and what the change costs.

    Returns:
        Efficiency with its interval, and the regime.

    Raises:
        ValueError: if a batch size is below one, or the limits are those of another batch size.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 example; got {batch_size}.")
    if new_batch_size is not None and new_batch_size < 1:
        raise ValueError(f"new_batch_size must be at least 1 example; got {new_batch_size}.")
    if limits is not None and limits.batch_size != batch_size:
        raise ValueError(
            f"limits are those of batch {limits.batch_size}, not of {batch_size}: call "
            f"step_limits(batch_size={batch_size})."
        )
    low = efficiency(batch_size, min(estimate.low, estimate.lower_confidence_bound))
    high = efficiency(batch_size, estimate.high)
    middle = 1.0 if estimate.undefined else efficiency(batch_size, estimate.batch_size_bound)
    ends = {Regime.of(low), Regime.of(high)}
    return Advice(
        batch_size=batch_size,
        efficiency=middle,
        low=low,
        high=high,
        regime=Regime.UNDECIDED if ends == {Regime.BEYOND, Regime.WELL_BELOW} else Regime.of(middle),
        certain=len(ends) == 1,
        bound=estimate.lower_confidence_bound,
        new_batch_size=new_batch_size,
        rule=rule,
        limits=limits,
    )


def efficiency(batch_size: int, batch_size_bound: float) -> float:
    """1/(1+(B−1)/B_D), in (0, 1].

    Args:
        batch_size: B ≥ 1, in examples.
        batch_size_bound: B_D ≥ 1, +inf allowed.

    Returns:
        Progress per example relative to a batch of one.
    """
    return 1 / (1 + (batch_size - 1) / batch_size_bound)


def sgd_step_size_factor(batch_size: int, new_batch_size: int, batch_size_bound: float) -> float:
    """The factor of the SGD learning rate (of a mean loss) when the batch size goes from B to B′ = S·B.

    S·B′_D/(B′_D+S−1) with B′_D = 1+(B_D−1)/B, the bound counted in batches of B; that is S·(B_D+B−1)/(B_D+B′−1):
    linear while B′ ≪ B_D, capped at (B_D+B−1)/B. From B = 1 it is S·B_D/(B_D+S−1).

    Args:
        batch_size: B, in examples.
        new_batch_size: B′, in examples.
        batch_size_bound: B_D ≥ 1; +inf gives the linear rule, 1 leaves the learning rate unchanged.

    Returns:
        The factor.

    Raises:
        ValueError: if a batch size is below one, or the bound is below one or NaN.

    Source: the gain of AdaScale, Johnson et al. (2020).
    """
    scale = _change(batch_size, new_batch_size)
    if not batch_size_bound >= 1:
        raise ValueError(f"batch_size_bound must be at least 1; got {batch_size_bound}.")
    if math.isinf(batch_size_bound):
        return scale
    return scale * (batch_size_bound + batch_size - 1) / (batch_size_bound + new_batch_size - 1)


def adam_step_size_factor(batch_size: int, new_batch_size: int) -> float:
    """The factor of the Adam learning rate when the batch size goes from B to B′: √(B′/B).

    Args:
        batch_size: B, in examples.
        new_batch_size: B′, in examples.

    Returns:
        The factor.

    Raises:
        ValueError: if a batch size is below one.

    Source: Malladi et al. (2022); that rule also takes 1−β to (B′/B)(1−β).
    """
    return math.sqrt(_change(batch_size, new_batch_size))


def _change(batch_size: int, new_batch_size: int) -> float:
    if not (batch_size >= 1 and new_batch_size >= 1):
        raise ValueError(f"batch sizes must be at least 1 example; got {batch_size} and {new_batch_size}.")
    return new_batch_size / batch_size
