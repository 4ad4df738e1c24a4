"""A reading: B_D with its interval at one step of somebody else's training loop, and what it means for their batch.

It is the estimate pooled over the latest steps that were looked at, together with where it was taken and from what.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from variegrad.estimators import Advice, BatchSizeEstimate, StepSizeRule, advise
from variegrad.monitor.record import KINDS, checked, to_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """B̂_D at a step, in examples, with its interval.

    Attributes:
        step: the optimiser step that was looked at, counted from 1.
        examples: examples that this step's measurement rests on, over all workers and micro-batches.
        batch_size: B, examples of the whole step, over all workers and micro-batches.
        source: what the gradients were, in words: "subset of 16 examples", "4 micro-batches", "2 workers", …
        batch_size_bound: B̂_D ≥ 1; +inf where nothing bounds it from above, NaN where all gradients were zero.
        low: lower end of the two-sided interval, finite.
        high: its upper end; +inf where `unbounded_above`.
        lower_confidence_bound: what a batch-size controller should use: finite, ≥ 1, and 1 where `cannot_tell`.
        unbounded_above: the data does not exclude B_D = ∞.
        cannot_tell: more steps are needed before anything can be said.
        confidence: nominal level of the interval and of the bound.
        pooled_steps: steps that the estimate rests on, this one included.
        skipped: steps left out so far because their gradients were not finite, or could not be told apart.
        population: n, the size of the data set behind the batches; None for fresh or augmented data.
    """

    step: int
    examples: int
    batch_size: int
    source: str
    batch_size_bound: float
    low: float
    high: float
    lower_confidence_bound: float
    unbounded_above: bool
    cannot_tell: bool
    confidence: float
    pooled_steps: int
    skipped: int
    population: int | None

    @classmethod
    def from_estimate(
        cls,
        estimate: BatchSizeEstimate,
        *,
        step: int,
        examples: int,
        batch_size: int,
        source: str,
        pooled_steps: int,
        skipped: int,
    ) -> Reading:
        """The reading that belongs to an estimate.

        Args:
            estimate: of B_D, pooled over steps.
            step: the optimiser step, counted from 1.
            examples: what this step's measurement rests on.
            batch_size: B of the whole step.
            source: what the gradients were, in words.
            pooled_steps: steps behind the estimate.
            skipped: steps left out so far.

        Returns:
            The reading.
        """
        return cls(
            step=step,
            examples=examples,
            batch_size=batch_size,
            source=source,
            batch_size_bound=estimate.batch_size_bound,
            low=estimate.low,
            high=estimate.high,
            lower_confidence_bound=estimate.lower_confidence_bound,
            unbounded_above=estimate.unbounded_above,
            cannot_tell=estimate.cannot_tell,
            confidence=estimate.confidence,
            pooled_steps=pooled_steps,
            skipped=skipped,
            population=estimate.population,
        )

    @property
    def undefined(self) -> bool:
        """All gradients were zero: B_D is 0/0, and any batch size is harmless."""
        return math.isnan(self.batch_size_bound)

    def advice(
        self,
        batch_size: int | None = None,
        new_batch_size: int | None = None,
        optimizer: Optimizer | type[Optimizer] | StepSizeRule | None = None,
    ) -> Advice:
        """What the reading means for a batch: its regime, its efficiency 1/(1+(B−1)/B_D), the step after a change.

        Args:
            batch_size: B, in examples; the step's own by default.
            new_batch_size: B′, where the batch is to change; the same as B by default.
            optimizer: whose rule the step size follows, by its kind: linear, capped, for SGD, √(B′/B) for Adam's
                family; or the rule itself. None leaves the rule open: both factors are methods of the advice.

        Returns:
            The advice; its `step_size_factor` is None where the rule was left open.

        Raises:
            ValueError: if a batch size is below one.
            TypeError: if no rule is known for the optimizer.
        """
        return advise(
            self,
            self.batch_size if batch_size is None else batch_size,
            new_batch_size=new_batch_size,
            rule=None if optimizer is None else StepSizeRule.of(optimizer),
        )

    def to_record(self) -> dict[str, Any]:
        """The reading as plain JSON: +inf is the string "inf", an undefined number null.

        Returns:
            One entry for each attribute.
        """
        return {name: to_json(getattr(self, name)) for name in KINDS}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Reading:
        """The reading that `to_record` wrote.

        Args:
            record: one entry for each attribute.

        Returns:
            The reading.

        Raises:
            ValueError: if an entry is missing, unknown, of another type, or out of its range.
        """
        return cls(**checked(record))

    def __str__(self) -> str:
        return f"step {self.step:,} · {self._in_words()} · {self.advice()} · {self._origin()}"

    def _in_words(self) -> str:
        level = f"{self.confidence:.0%}"
        if self.undefined:
            return "B_D undefined: all gradients are zero"
        if self.cannot_tell and self.unbounded_above:
            return "B_D: cannot tell yet"
        if self.cannot_tell:
            return f"B_D: cannot tell yet, at most {in_examples(self.high)} ({level})"
        if self.unbounded_above:
            return f"B_D ≥ {in_examples(self.lower_confidence_bound)} (about {level})"
        return (
            f"B_D = {in_examples(self.batch_size_bound)} [{in_examples(self.low)}, {in_examples(self.high)}] "
            f"({level}), at least {in_examples(self.lower_confidence_bound)}"
        )

    def _origin(self) -> str:
        steps = f"{self.pooled_steps:,} step" + "s" * (self.pooled_steps != 1)
        return f"{self.source}, {steps}" + (f", {self.skipped:,} skipped" if self.skipped else "")


def in_examples(value: float) -> str:
    """A bound as people read it: three digits, no exponent.

    Args:
        value: in examples.

    Returns:
        Its text; ∞, and a dash where undefined.
    """
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
