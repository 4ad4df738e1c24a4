"""A reading: B_D with its interval over the latest steps of a training loop, and what it means for a batch.

It is the estimate pooled over the latest steps that were measured, with where it was taken and from what. As a record
of plain JSON, which has neither infinity nor NaN: +inf is the string "inf", an undefined number null.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer

from variegrad.estimators import Advice, BatchSizeEstimate, Limited, StepSizeRule, advise

REQUIRED = object()


def _entry(kind: type | tuple[type, ...], rule: str, holds: Callable[[Any], bool], missing: Any = REQUIRED) -> Any:
    """A field: its type and rule in a record, and its value if a record of an earlier version lacks it."""
    about = {"kind": kind, "rule": rule, "holds": holds, "missing": missing}
    if isinstance(missing, dict):
        return field(default_factory=dict, metadata=about)
    return field(metadata=about) if missing is REQUIRED else field(default=missing, metadata=about)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """B̂_D over the steps `first_step` to `step`, in units (examples, unless groups are measured), with its interval.

    Attributes:
        step: the last measured optimizer step, counted from 1.
        first_step: the first step that the estimate pools.
        examples: units that were measured at the last step, over all workers and micro-batches.
        batch_size: B, units of the last step, over all workers and micro-batches.
        usual_batch_size: the median of B over the pooled steps.
        source: where the measured gradients came from: "16 of 128 examples", "4 micro-batches", "2 workers", …
        batch_size_bound: B̂_D ≥ 1; +inf if nothing bounds it from above, NaN if all gradients were zero.
        low: lower end of the two-sided interval, finite.
        high: its upper end; +inf if `unbounded_above`.
        lower_confidence_bound: use this one to choose a batch size: finite, ≥ 1, and 1 if `cannot_tell`.
        unbounded_above: the data does not exclude B_D = ∞.
        cannot_tell: more steps are needed for an estimate.
        confidence: nominal level of the interval and of the bound, for this reading alone.
        pooled_steps: the number of pooled steps, including the last one.
        skipped: steps skipped so far because their gradients were not finite or could not be separated.
        population: n, the size of the data set behind the batches; None for fresh or augmented data.
        unit: what is counted: "examples", "sequences", "groups", ….
        group_size: examples per unit.
        missing: workers without examples at the last step.
        geometry: the norm of gradients: "euclidean" for SGD.
        average: (first step, B̂_D, low, high) over the steps of the last 64 readings, in logged readings; empty
            otherwise. A narrower interval, of the past.
        parts: part of the model → (B̂_D, low, high, lower confidence bound), if `Monitor(per=)` names parts.
    """

    step: int = _entry(int, "at least 0", lambda v: v >= 0)
    first_step: int = _entry(int, "at least 0", lambda v: v >= 0, 0)
    examples: int = _entry(int, "at least 1", lambda v: v >= 1)
    batch_size: int = _entry(int, "at least 1", lambda v: v >= 1)
    usual_batch_size: int = _entry(int, "at least 0", lambda v: v >= 0, 0)
    source: str = _entry(str, "text", lambda _: True)
    batch_size_bound: float = _entry(float, 'at least 1, "inf", or null for undefined', lambda v: not v < 1)
    low: float = _entry(float, "finite and at least 1", lambda v: 1 <= v < math.inf)
    high: float = _entry(float, '"inf" or at least low', lambda v: v >= 1)
    lower_confidence_bound: float = _entry(float, "finite and at least 1", lambda v: 1 <= v < math.inf)
    unbounded_above: bool = _entry(bool, "true or false", lambda _: True)
    cannot_tell: bool = _entry(bool, "true or false", lambda _: True)
    confidence: float = _entry(float, "between 0 and 1", lambda v: 0 < v < 1)
    pooled_steps: int = _entry(int, "at least 1", lambda v: v >= 1)
    skipped: int = _entry(int, "at least 0", lambda v: v >= 0)
    population: int | None = _entry((int, type(None)), "at least 1, or null", lambda v: v is None or v >= 1)
    unit: str = _entry(str, "text", lambda _: True, "examples")
    group_size: float = _entry(float, "at least 1", lambda v: 1 <= v < math.inf, 1.0)
    missing: int = _entry(int, "at least 0", lambda v: v >= 0, 0)
    geometry: str = _entry(str, "text", lambda _: True, "euclidean")
    average: tuple[float, ...] = _entry(tuple, "four numbers or none", lambda v: len(v) in (0, 4), ())
    parts: Mapping[str, tuple[float, float, float, float]] = _entry(
        dict, "four numbers for each name", lambda v: all(len(four) == 4 for four in v.values()), {}
    )

    @classmethod
    def from_estimate(cls, estimate: BatchSizeEstimate, **taken: Any) -> Reading:
        """The reading for an estimate.

        Args:
            estimate: of B_D, pooled over steps.
            **taken: the attributes that say where it was taken: step, batch_size, source, ….

        Returns:
            The reading.
        """
        same = (
            "batch_size_bound", "low", "high", "lower_confidence_bound", "unbounded_above", "cannot_tell", "confidence",
            "population",
        )  # fmt: skip
        return cls(**{name: getattr(estimate, name) for name in same} | taken)

    @property
    def undefined(self) -> bool:
        """All gradients were zero: B_D is 0/0, and the batch size does not matter."""
        return math.isnan(self.batch_size_bound)

    def advice(
        self,
        batch_size: int | None = None,
        new_batch_size: int | None = None,
        optimizer: Optimizer | type[Optimizer] | StepSizeRule | None = None,
        limits: Limited | None = None,
    ) -> Advice:
        """What the reading means for a batch size: its regime, its efficiency, the learning rate after a change.

        Args:
            batch_size: B, in units; the usual one of these steps by default.
            new_batch_size: B′, where the batch is to change; the same as B by default.
            optimizer: whose rule the step size follows, by its kind: linear, capped, for SGD, √(B′/B) for Adam's
                family; or the rule itself. None leaves the rule open: both factors are methods of the advice.
            limits: from `vg.step_limits` at the same batch size and weights: the advice then says which limit binds at
                the learning rate in use, for every rule.

        Returns:
            The advice; its `step_size_factor` is None if no rule was chosen.

        Raises:
            ValueError: if a batch size is below one, or the limits are those of another batch size.
            TypeError: if no rule is known for the optimizer.
        """
        return advise(
            self,
            (self.usual_batch_size or self.batch_size) if batch_size is None else batch_size,
            new_batch_size=new_batch_size,
            rule=None if optimizer is None else StepSizeRule.of(optimizer),
            limits=limits,
        )

    def in_examples(self) -> Reading:
        """The same bound in examples instead of groups.

        Returns:
            A reading whose unit is the example; this one if it is already.
        """
        return self if self.group_size == 1 else self.in_units("examples", self.group_size)

    def in_units(self, unit: str, per_unit: float) -> Reading:
        """The same bound in smaller units: `in_units("tokens", 512)` if sequences of 512 tokens are counted.

        Args:
            unit: what to count.
            per_unit: how many of them one current unit contains, on average.

        Returns:
            A reading with that unit.

        Raises:
            ValueError: if `per_unit` is not positive.
        """
        if not per_unit > 0:
            raise ValueError(f"per_unit must be positive; got {per_unit}.")
        bounds = ("batch_size_bound", "low", "high", "lower_confidence_bound")
        scaled = {name: max(1.0, getattr(self, name) * per_unit) for name in bounds}
        if self.cannot_tell:
            scaled |= {"low": 1.0, "lower_confidence_bound": 1.0}
        counts = {
            name: round(getattr(self, name) * per_unit) for name in ("examples", "batch_size", "usual_batch_size")
        }
        population = None if self.population is None else round(self.population * per_unit)
        parts: Any = {name: tuple(max(1.0, one * per_unit) for one in four) for name, four in self.parts.items()}
        return dataclasses.replace(
            self, **scaled, **counts, population=population, unit=unit, group_size=1.0, parts=parts
        )

    def to_record(self) -> dict[str, Any]:
        """The reading as plain JSON: +inf is the string "inf", an undefined number null.

        Returns:
            One entry for each attribute.
        """
        return {name: _to_json(getattr(self, name)) for name in FIELDS}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Reading:
        """The reading that `to_record` wrote.

        Args:
            record: one entry for each attribute; attributes of later versions may be missing.

        Returns:
            The reading.

        Raises:
            ValueError: if an entry is missing, unknown, of another type, or out of its range.
        """
        return cls(**checked(record))

    def __str__(self) -> str:
        return f"{self.steps()} · {self.in_words()} · {self.advice()} · {self._origin()}"

    def steps(self) -> str:
        """The steps over which the estimate is an average.

        Returns:
            "steps 568–689", or "step 1" for a single one.
        """
        if not 0 < self.first_step < self.step:
            return f"step {self.step:,}" if self.first_step else f"up to step {self.step:,}"
        return f"steps {self.first_step:,}–{self.step:,}"

    def in_words(self) -> str:
        """B_D with its interval, as far as it is known.

        Returns:
            A phrase such as "B_D = 120 [60, 220] (95%), at least 51".
        """
        level = f"{self.confidence:.0%}"
        unit = "" if self.unit == "examples" else f" {self.unit}"
        if self.undefined:
            return "B_D undefined: all gradients are zero"
        if self.cannot_tell and self.unbounded_above:
            return "B_D: cannot tell yet"
        if self.cannot_tell:
            return f"B_D: cannot tell yet, at most {in_examples(self.high)}{unit} ({level} confidence)"
        if self.unbounded_above:
            return f"B_D is at least {in_examples(self.lower_confidence_bound)}{unit} ({level} confidence)"
        return (
            f"B_D = {in_examples(self.batch_size_bound)}{unit} [{in_examples(self.low)}, {in_examples(self.high)}] "
            f"({level}), at least {in_examples(self.lower_confidence_bound)}"
        )

    def _origin(self) -> str:
        steps = f"{self.pooled_steps:,} step" + "s" * (self.pooled_steps != 1)
        norm = "" if self.geometry == "euclidean" else f", {self.geometry} norm"
        return f"{self.source}, {steps}{norm}" + (f", {self.skipped:,} skipped" if self.skipped else "")


FIELDS = {entry.name: entry.metadata for entry in dataclasses.fields(Reading)}
"""The entries of a record, in its order: type, rule, and value if missing."""


def in_examples(value: float) -> str:
    """A bound as people read it: two significant digits, no exponent; ∞, and a dash if undefined."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    digits = max(0, math.floor(math.log10(value)) - 1) if value >= 1 else 0
    return f"{round(value, -digits):,.0f}" if value >= 10 else f"{value:.2g}"


def checked(record: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a record; ValueError if an entry is missing, unknown, of another type, or out of its range."""
    required = {name for name, about in FIELDS.items() if about["missing"] is REQUIRED}
    if odd := (record.keys() - FIELDS.keys()) | (required - record.keys()):
        raise ValueError(
            f"a reading has the entries {', '.join(FIELDS)}; missing or unknown here: {', '.join(sorted(odd))}."
        )
    values = {
        name: _value(name, record[name], about["kind"]) if name in record else about["missing"]
        for name, about in FIELDS.items()
    }
    for name, about in FIELDS.items():
        if not about["holds"](values[name]):
            raise ValueError(f"a reading's {name} must be {about['rule']}; got {record[name]!r}.")
    if not values["high"] >= values["low"]:
        raise ValueError(f'a reading\'s high must be "inf" or at least low; got {record["high"]!r}.')
    if values["unbounded_above"] is not math.isinf(values["high"]):
        raise ValueError(
            f'a reading\'s unbounded_above must be true if high is "inf", and only then; got {record["high"]!r}.'
        )
    return values


def _to_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _to_json(four) for name, four in value.items()}
    if isinstance(value, tuple):
        return [_to_json(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf"
    return value


def _value(name: str, value: Any, kind: type | tuple[type, ...]) -> Any:
    if kind is tuple and isinstance(value, list):
        return tuple(_value(name, one, float) for one in value)
    if kind is dict and isinstance(value, dict):
        return {part: _value(name, four, tuple) for part, four in value.items()}
    if kind is float:
        return _number(name, value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        wanted = {
            "int": "a whole number",
            "str": "text",
            "bool": "true or false",
            "tuple": "a list of numbers",
            "dict": "four numbers for each name",
        }.get(getattr(kind, "__name__", ""), "a whole number or null")
        raise ValueError(f"a reading's {name} must be {wanted}; got {value!r}.")
    return value


def _number(name: str, value: Any) -> float:
    if value is None or value == "inf":
        return math.nan if value is None else math.inf
    if type(value) in (float, int) and math.isfinite(value):
        return float(value)
    raise ValueError(f'a reading\'s {name} must be a finite number, "inf" for +inf or null; got {value!r}.')
