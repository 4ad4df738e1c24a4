"""The batch-size bound B_D estimated from a sample, with its interval: what every estimator here returns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import optim

from variegrad.advice import Advice, Limited, StepSizeRule, advise
from variegrad.estimators.coherence import Coherence, CoherenceLimits, coherence_limits, inverse_bound, least_coherence
from variegrad.moments import ZERO_TOTAL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Below this many independent values the jackknife's variance means nothing.
MINIMUM_EXAMPLES = 8
MINIMUM_WORKERS = 4


@dataclass(frozen=True, kw_only=True)
class BatchSizeEstimate:
    """B̂_D = 1/φ̂ with an interval, where φ̂ = ρ̂ for fresh data and 1/n + (1−1/n)ρ̂ for a population of n.

    Attributes:
        batch_size_bound: B̂_D in examples, ≥ 1; +inf if φ̂ ≤ 0 (then also `unbounded_above`), NaN if `undefined`.
        low: lower end of the two-sided interval, finite.
        high: upper end of the two-sided interval; +inf if `unbounded_above`.
        lower_confidence_bound: use this one to choose a batch size: finite, ≥ 1, and 1 if `cannot_tell`.
        coherence: ρ̂.
        standard_error: of ρ̂; inf if there are too few gradients to estimate it.
        confidence: nominal level of the interval and of the bound.
        count: m, the number of gradients (of examples, workers or steps) behind the estimate.
        population: n, the size of the data set they were drawn from without replacement; None for fresh data.
        parts: the same for each part of the model, if asked for.
    """

    batch_size_bound: float
    low: float
    high: float
    lower_confidence_bound: float
    coherence: float
    standard_error: float
    confidence: float
    count: int
    population: int | None = None
    parts: Mapping[str, BatchSizeEstimate] = field(default_factory=dict, repr=False)

    @property
    def undefined(self) -> bool:
        """All gradients are zero: B_D is 0/0, and the batch size does not matter."""
        return math.isnan(self.batch_size_bound)

    @property
    def unbounded_above(self) -> bool:
        """The data does not exclude B_D = ∞: read "B ≥ lower_confidence_bound"."""
        return math.isinf(self.high)

    @property
    def cannot_tell(self) -> bool:
        """The lower bound is the trivial 1 although B_D may be larger: more examples, or more steps, are needed."""
        return self.undefined or (self.lower_confidence_bound <= 1 and self.high > 1)

    @property
    def conflicting(self) -> bool:
        """B_D exceeds the size of the population at the given confidence: gradients oppose each other on average."""
        return self.population is not None and self.population < self.low

    @property
    def exact(self) -> bool:
        """The sample is the whole population, so there is no sampling error."""
        return self.standard_error == 0 and self.count == self.population

    def advice(
        self,
        batch_size: int,
        new_batch_size: int | None = None,
        optimizer: optim.Optimizer | type[optim.Optimizer] | StepSizeRule | None = None,
        limits: Limited | None = None,
    ) -> Advice:
        """What the estimate means for a batch: its regime, its efficiency, and the learning rate after a change.

        Args:
            batch_size: B, in examples of one update over all workers.
            new_batch_size: B′, if the batch is to change.
            optimizer: whose rule the learning rate follows, by its kind; or the rule itself.
            limits: from `vg.step_limits` at the same batch size and weights: the advice then says which limit binds at
                the learning rate in use, for every rule.

        Returns:
            The advice.

        Raises:
            ValueError: if a batch size is below one, or the limits are those of another batch size.
            TypeError: if no rule is known for the optimizer.
        """
        rule = None if optimizer is None else StepSizeRule.of(optimizer)
        return advise(self, batch_size, new_batch_size=new_batch_size, rule=rule, limits=limits)

    def to_dict(self) -> dict[str, Any]:
        """The estimate as plain JSON: +inf is the string "inf", and an undefined number is null.

        Returns:
            Bound, interval, flags, and `parts` by name.
        """
        numbers = ("batch_size_bound", "low", "high", "lower_confidence_bound", "coherence", "standard_error")
        same = ("confidence", "count", "population", "cannot_tell", "unbounded_above", "undefined")
        return {
            **{name: _json(getattr(self, name)) for name in numbers},
            **{name: getattr(self, name) for name in same},
            "parts": {name: part.to_dict() for name, part in self.parts.items()},
        }

    def plot(self) -> Figure:
        """Efficiency 1/(1 + (B−1)/B_D) against the batch size, with the interval as a band.

        Returns:
            A matplotlib figure.
        """
        from variegrad.reports.single import efficiency_of  # noqa: PLC0415 - matplotlib only if it is asked for

        bound = math.nan if self.cannot_tell else self.batch_size_bound
        return efficiency_of(bound, self.low, self.high, title="Efficiency of a batch, estimated", digits=2)

    def _repr_html_(self) -> str:
        from variegrad.reports.single import in_digits, shown  # noqa: PLC0415 - as above

        rows = [
            ("batch-size bound B_D (examples)", "?" if self.cannot_tell else in_digits(self.batch_size_bound, 2)),
            (f"{self.confidence:.0%} interval", f"{in_digits(self.low, 2)} – {in_digits(self.high, 2)}"),
            ("at least", "?" if self.cannot_tell else in_digits(self.lower_confidence_bound, 2)),
            ("examples measured", f"{self.count:,}"),
            *(
                (f"· {name}", "?" if part.cannot_tell else in_digits(part.batch_size_bound, 2))
                for name, part in self.parts.items()
            ),
        ]
        return shown(self.in_words(), rows, self.plot())

    def in_words(self) -> str:
        """The result in one sentence, degenerate cases included."""
        level = f"{self.confidence:.0%}"
        if self.undefined:
            return f"undefined: all {self.count} gradients are zero, so the batch size does not matter here."
        if self.exact:
            return f"B_D = {self.batch_size_bound:.4g} examples, exact: the sample is the whole population."
        if self.cannot_tell and self.unbounded_above:
            return f"cannot tell yet: {self.count} gradients bound B_D neither from below nor from above."
        if self.cannot_tell:
            return f"cannot tell yet: B_D is at most {self.high:.4g} examples ({level}), and may be as low as 1."
        if self.unbounded_above:
            return (
                f"B_D ≥ {self.lower_confidence_bound:.4g} examples (about {level}); "
                f"{self.count} gradients do not bound it from above."
            )
        sentence = (
            f"B_D = {self.batch_size_bound:.4g} examples, {level} interval [{self.low:.4g}, {self.high:.4g}], "
            f"and with about {level} at least {self.lower_confidence_bound:.4g}."
        )
        return sentence + (f" conflicting: B_D exceeds n = {self.population}." if self.conflicting else "")

    def __str__(self) -> str:
        return f"BatchSizeEstimate(m={self.count}, n={self.population or 'fresh data'}): {self.in_words()}"


def estimate_from_coherence(
    coherence: Coherence,
    *,
    population: int | None,
    confidence: float,
    sampled_fraction: float,
    minimum: int = MINIMUM_EXAMPLES,
    examples_per_row: float = 1.0,
    limits: CoherenceLimits | None = None,
) -> BatchSizeEstimate:
    """The estimate that belongs to one (unbatched) coherence.

    Args:
        coherence: ρ̂ of the rows, with its uncertainty.
        population: n, or None.
        confidence: nominal two-sided level, in (0, 1).
        sampled_fraction: the fraction of the population that was seen.
        minimum: rows below which no interval is given.
        examples_per_row: b if each row is the mean of b examples; ρ = ρ_w/(ρ_w + b(1−ρ_w)).
        limits: of the rows' ρ; by default `coherence_limits`.

    Returns:
        B̂_D with its interval.

    Raises:
        ValueError: if the confidence is outside (0, 1), or a gradient is not finite.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1; got {confidence}. Use 0.95, for example.")
    row = float(coherence.value)
    common = {"confidence": confidence, "count": coherence.rows, "population": population}
    if math.isnan(row):
        return BatchSizeEstimate(
            batch_size_bound=math.nan,
            low=1.0,
            high=math.inf,
            lower_confidence_bound=1.0,
            coherence=math.nan,
            standard_error=math.nan,
            **common,  # type: ignore[arg-type]
        )

    def bound(row_coherence: float) -> float:
        inverse = inverse_bound(_per_example(row_coherence, examples_per_row), population)
        # Up to rounding, a population whose gradients cancel has 1/B = 0.
        return math.inf if inverse <= ZERO_TOTAL else max(1.0, 1 / inverse)

    known = sampled_fraction == 1
    enough = known or (coherence.rows >= minimum and math.isfinite(coherence.variance))
    if known:
        limits = CoherenceLimits(coherence.value, coherence.value, coherence.value)
        standard_error = 0.0
    else:
        least = _per_row(least_coherence(population), examples_per_row)
        limits = limits or coherence_limits(
            coherence, confidence=confidence, least=least, sampled_fraction=sampled_fraction
        )
        scale = _slope(row, examples_per_row) * math.sqrt(1 - sampled_fraction)
        standard_error = scale * math.sqrt(float(coherence.variance)) if enough else math.inf

    def finite(lower: float) -> float:
        # An infinite lower bound would tell a controller to grow without end; it is never certain enough for that.
        return lower if math.isfinite(lower) else 1.0

    return BatchSizeEstimate(
        batch_size_bound=bound(row),
        low=finite(bound(float(limits.high))) if enough else 1.0,
        high=bound(float(limits.low)) if enough else math.inf,
        lower_confidence_bound=finite(bound(float(limits.safe_high))) if enough else 1.0,
        coherence=_per_example(row, examples_per_row),
        standard_error=standard_error,
        **common,  # type: ignore[arg-type]
    )


def _per_example(row: float, examples_per_row: float) -> float:
    """ρ of single examples from ρ_w of means of b: B = 1 + b(1/ρ_w − 1), increasing in ρ_w ≤ 1."""
    row = min(row, 1.0)
    return row / (row + examples_per_row * (1 - row))


def _per_row(example: float, examples_per_row: float) -> float:
    """The inverse of `_per_example`."""
    return examples_per_row * example / (1 + (examples_per_row - 1) * example)


def _slope(row: float, examples_per_row: float) -> float:
    """The derivative dρ/dρ_w."""
    return examples_per_row / (row + examples_per_row * (1 - row)) ** 2


def _json(value: float) -> float | str | None:
    if math.isfinite(value):
        return value
    return None if math.isnan(value) else "inf" if value > 0 else "-inf"
