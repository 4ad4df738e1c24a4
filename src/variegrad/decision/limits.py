"""What limits the batch at the learning rate in use: noise, curvature or stability.

One step of SGD with learning rate η (of the mean gradient) and batch B, from weights with gradient G = ∇F and Hessian
H, lowers F in expectation by η‖G‖²(1 − κ):

    κ(B, η) = ½·η·(C + (T − C)/B)/‖G‖²,       C = GᵀHG,   T = E g_iᵀHg_i,   B_H = T/C.

κ is the share of the first-order progress that curvature and noise take away; κ = ½ at the best η for that B, and the
slack u = 1/(2κ) says how far η is below it. Progress per example, relative to (B₀, η₀), then depends on the rule:

    η tuned for each B     (B_D + B₀ − 1)/(B_D + B − 1)                            the law of B_D
    η = η₀·f(B/B₀)         (B₀/B)·f·(1 − κ(B, η₀f))/(1 − κ(B₀, η₀))                one step, second order

and a step is stable on a quadratic only while η·λ_max(H) < 2, or 2(1+β) with momentum β. With a diagonal
preconditioner P, ⟨·,·⟩ and H are those of P^½w: the diagnosis of the step in use, not a law in B.

Source: McCandlish et al. (2018), the quadratic model; the curvature-weighted bound is derived in docs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from variegrad.decision.rules import LearningRateRule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from variegrad.decision.timing import StepTime

TOLERANCE = 0.1  # loss of progress per example that counts as none
MOMENTUM = (
    "with momentum, the stability limit of a quadratic was about 20 times too large in training (experiment "
    "critical-batch): confirm a larger batch with vg.branch"
)
DESCRIBED = "for a preconditioned optimizer this describes the present step: confirm a larger batch with vg.branch"


class Limit(Enum):
    """What stops the batch from growing without loss."""

    NOISE = "noise"
    CURVATURE = "curvature"
    STABILITY = "stability"
    RULE = "the learning-rate rule"
    NONE = "nothing found"
    UNDECIDED = "undecided"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: the estimate.
        low: lower end.
        high: upper end; +inf if the batch cannot bound it.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{_digits(self.value)} [{_digits(self.low)}, {_digits(self.high)}]"

    def scaled(self, factor: float) -> Estimate:
        """The same number in units 1/factor as large."""
        return Estimate(value=self.value * factor, low=self.low * factor, high=self.high * factor)


@dataclass(frozen=True, kw_only=True)
class BatchLimit:
    """The largest batch that loses at most `tolerance` of the progress per example, under a rule.

    Attributes:
        rule: how the learning rate follows the batch.
        batch_size: that batch, in examples; +inf if nothing was found to limit it, NaN if undecided.
        low: the same at the unfavourable ends of the intervals.
        high: the same at the favourable ends.
        binds: what limits it. `UNDECIDED` if the step in use may make no progress at all (κ ≥ 1), or the batch measured
            is too small to tell.
        because: why there is no batch size, if there is none.
    """

    rule: LearningRateRule
    batch_size: float
    low: float
    high: float
    binds: Limit
    because: str = ""

    def __str__(self) -> str:
        if self.because:
            return f"{self.rule.value}: {self.because}"
        if math.isinf(self.batch_size):
            return f"{self.rule.value}: no limit found, at least batch {_digits(self.low)}"
        return (
            f"{self.rule.value}: up to batch {_digits(self.batch_size)} [{_digits(self.low)}, {_digits(self.high)}], "
            f"limited by {self.binds.value}"
        )


@dataclass(frozen=True, kw_only=True)
class BatchChange:
    """What another batch size costs for the same progress, in units of what it takes now.

    Attributes:
        batch_size: B, in examples.
        examples: to the same progress; +inf if the learning rate is too large for any, NaN if undecided.
        updates: the same in updates.
        time: the same in seconds; None without a step time.
    """

    batch_size: float
    examples: Estimate
    updates: Estimate
    time: Estimate | None = None

    def __str__(self) -> str:
        if math.isnan(self.examples.value):
            return f"at {self.batch_size:,}: undecided"
        if math.isinf(self.examples.value):
            best = self.examples.low
            hedge = "" if math.isinf(best) else f" by the estimate, at best in {_digits(best)} times the examples"
            return f"at {self.batch_size:,}: no progress{hedge}; the learning rate is too large"
        text = f"at {self.batch_size:,}: {self.examples} times the examples, {self.updates} times the updates"
        return text if self.time is None else f"{text}, {self.time} times the time"


@dataclass(frozen=True, kw_only=True)
class StepLimits:
    """The three limits of the batch size at the current weights and learning rate.

    Attributes:
        batch_size: B₀, examples of one update over all workers.
        learning_rate: η₀, of the mean gradient.
        momentum: β of heavy-ball momentum; η/(1−β) is the learning rate of the slow directions.
        preconditioned: whether norms are those of the optimizer's preconditioner.
        examples: m, the number of measured examples.
        confidence: of each interval, separately.
        batch_size_bound: B_D.
        curvature_bound: B_H = T/C.
        kappa: κ(B₀, η₀); negative if the loss curves downwards along the step.
        stability: η₀·λ_max/2, or η₀·λ_max/(2(1+β)); below 1 if stable. λ_max is approached from below.
        sq_gradient: ‖G‖².
        gradient_curvature: C = GᵀHG.
        example_curvature: T = E g_iᵀHg_i.
        largest_curvature: λ_max, from below, with the sampling error of the batch.
    """

    batch_size: int
    learning_rate: float
    momentum: float
    preconditioned: bool
    examples: int
    confidence: float
    batch_size_bound: Estimate
    curvature_bound: Estimate
    kappa: Estimate
    stability: Estimate
    sq_gradient: float
    gradient_curvature: float
    example_curvature: float
    largest_curvature: Estimate

    @property
    def slack(self) -> Estimate:
        """U = 1/(2κ): the best learning rate at B₀ divided by the current one; +inf without curvature."""
        return Estimate(value=_slack(self.kappa.value), low=_slack(self.kappa.high), high=_slack(self.kappa.low))

    def kappa_at(self, batch_size: float, learning_rate: float) -> float:
        """κ(B, η), the share of first-order progress that is lost to curvature and noise.

        Args:
            batch_size: B ≥ 1, in examples.
            learning_rate: η > 0.

        Returns:
            κ.
        """
        return self._kappa(batch_size, learning_rate / self.learning_rate, self.kappa.value)

    def _kappa(self, batch_size: float, factor: float, kappa: float) -> float:
        """κ(B, η₀·factor) if κ(B₀, η₀) = kappa."""
        c, noise = self.gradient_curvature, self.example_curvature - self.gradient_curvature
        now = c + noise / self.batch_size
        return kappa * factor * ((c + noise / batch_size) / now if now else 1.0)

    def relative_progress(self, batch_size: float, rule: LearningRateRule) -> float:
        """Progress per example at batch size B under a rule, relative to that at B₀.

        Args:
            batch_size: B ≥ 1, in examples.
            rule: how the learning rate follows. `TUNED` compares with a learning rate that is tuned at B₀, too; every
                other rule compares with the one in use.

        Returns:
            The ratio; 1 means that the change costs no progress per example, 0 that the step is unstable or makes none.
            NaN if there is nothing to compare with, because the step in use makes none.

        Raises:
            ValueError: if the batch size is below 1.
        """
        if not batch_size >= 1:
            raise ValueError(f"batch_size must be at least 1 example; got {batch_size}.")
        bound = self.batch_size_bound.value
        if rule is LearningRateRule.TUNED:
            return 1.0 if math.isinf(bound) else (bound + self.batch_size - 1) / (bound + batch_size - 1)
        if self.stability.value * rule.factor(batch_size / self.batch_size) >= 1:
            return 0.0
        return max(0.0, self._progress(batch_size, rule, self.kappa.value)) if self.kappa.value < 1 else math.nan

    def progress_interval(self, batch_size: float, rule: LearningRateRule) -> Estimate:
        """`relative_progress` with its values at the ends of the intervals of B_D, or of κ and the stability margin.

        Args:
            batch_size: B ≥ 1, in examples.
            rule: how the learning rate follows.

        Returns:
            The ratio and its range, [0, ∞] if the current step may make no progress at all.
        """
        value = self.relative_progress(batch_size, rule)
        ends = [
            replace(
                self,
                batch_size_bound=_exactly(getattr(self.batch_size_bound, end)),
                kappa=_exactly(getattr(self.kappa, other)),
                stability=_exactly(getattr(self.stability, other)),
            ).relative_progress(batch_size, rule)
            for end, other in (("low", "high"), ("high", "low"))
        ]
        if any(map(math.isnan, ends)):  # at the unfavourable end the step in use makes no progress to compare with
            return Estimate(value=value, low=0.0, high=math.inf)
        return Estimate(value=value, low=min(*ends, value), high=max(*ends, value))

    def change(self, batch_size: float, rule: LearningRateRule, *, step_time: StepTime | None = None) -> BatchChange:
        """Examples, updates and time to the same progress at another batch size, in units of what B₀ takes.

        Args:
            batch_size: B ≥ 1, in examples.
            rule: how the learning rate follows.
            step_time: α and c′ of an update (`vg.decision.step_time`), if time is asked for.

        Returns:
            The three factors, with the interval of `progress_interval`.

        Raises:
            ValueError: if the batch size is below 1.
        """
        progress = self.progress_interval(batch_size, rule)
        inverse = (
            math.inf if made == 0 else 1 / made for made in (progress.value, progress.high, progress.low)
        )  # NaN stays NaN
        value, low, high = inverse
        examples = Estimate(value=value, low=low, high=high)
        updates = examples.scaled(self.batch_size / batch_size)
        if step_time is None:
            return BatchChange(batch_size=batch_size, examples=examples, updates=updates)
        alpha, c = step_time.seconds_per_step, step_time.seconds_per_example.value
        time = updates.scaled((alpha + c * batch_size) / (alpha + c * self.batch_size))
        return BatchChange(batch_size=batch_size, examples=examples, updates=updates, time=time)

    def in_words(self, new_batch_size: int | None = None) -> list[str]:
        """The learning rate in use, and by rule how far the batch can grow, which limit binds, what a change costs.

        Args:
            new_batch_size: a batch size that is considered.

        Returns:
            The lines.
        """
        now = f"learning rate {self.learning_rate:.3g}: the best one at batch {self.batch_size:,} is {self.slack} times"
        return [f"{now} as large; {self.stability} of the largest stable one", *self._by_rule(new_batch_size)]

    def _by_rule(self, new_batch_size: int | None = None) -> list[str]:
        lines = [f"largest batch that keeps {1 - TOLERANCE:.0%} of the progress per example, by learning-rate rule:"]
        open_rules: dict[str, list[LearningRateRule]] = {}  # by the reason
        for rule in LearningRateRule:
            limit = self.limit(rule)
            change = None if new_batch_size is None else self.change(new_batch_size, rule)
            if limit.because:
                unstable = change is not None and math.isinf(change.examples.value)
                reason = f"{limit.because}; {change}" if unstable else limit.because
                open_rules.setdefault(reason, []).append(rule)
                continue
            text = str(limit) if change is None else f"{limit}; {change}"
            if rule is LearningRateRule.TUNED:
                text += f" (against batch {self.batch_size:,} with a tuned learning rate)"
            lines.append(text)
        lines += [f"{', '.join(rule.value for rule in rules)}: {why}" for why, rules in open_rules.items()]
        if open_rules:
            lines.append("to decide, lower the learning rate, measure more examples, or use vg.branch")
        if self.preconditioned:
            lines.append(DESCRIBED)
        elif self.momentum:
            lines.append(MOMENTUM)
        return lines

    def plot(self, *, tolerance: float = TOLERANCE) -> Figure:
        """Progress per example against the batch size: at a tuned learning rate, and by the linear rule.

        Args:
            tolerance: the accepted loss of progress, drawn as a dashed line.

        Returns:
            A matplotlib figure; the current batch size is marked, and intervals are bands. A rule that is undecided has
            no line.

        Raises:
            ValueError: if the tolerance is out of range.
        """
        from variegrad.reports.limits_figure import progress_per_example  # noqa: PLC0415 - matplotlib only if asked for

        def curve(rule: LearningRateRule) -> Callable[[float], tuple[float, float, float]] | None:
            def at(size: float) -> tuple[float, float, float]:
                found = self.progress_interval(size, rule)
                return found.value, found.low, found.high

            return None if self.limit(rule, tolerance=tolerance).binds is Limit.UNDECIDED else at

        drawn = (LearningRateRule.TUNED, LearningRateRule.LINEAR)
        return progress_per_example(
            {f"learning rate {rule.value}": curve(rule) for rule in drawn}, self.batch_size, tolerance
        )

    def _repr_html_(self) -> str:
        from variegrad.reports.single import shown  # noqa: PLC0415 - as above

        rows = [
            ("noise: batch-size bound B_D (examples)", str(self.batch_size_bound)),
            ("curvature: share of progress lost κ", str(self.kappa)),
            ("stability: share of the largest stable learning rate", str(self.stability)),
        ]
        limits = {rule: str(self.limit(rule)).split(": ", 1)[1] for rule in LearningRateRule}
        rows += [(f"largest batch, learning rate {rule.value}", limit) for rule, limit in limits.items()]
        title = f"Batch {self.batch_size}, learning rate {self.learning_rate:.3g}: what limits a larger batch"
        return shown(title, rows, self.plot(), alt="Progress per example against the batch size")

    def _progress(self, batch_size: float, rule: LearningRateRule, kappa: float) -> float:
        k = batch_size / self.batch_size
        factor = rule.factor(k)
        return factor / k * (1 - self._kappa(batch_size, factor, kappa)) / (1 - kappa)

    def limit(self, rule: LearningRateRule, *, tolerance: float = TOLERANCE) -> BatchLimit:
        """The largest batch size that keeps 1 − tolerance of the current progress per example.

        Args:
            rule: how the learning rate follows the batch.
            tolerance: ε in (0, 1).

        Returns:
            The batch size, and the limit that applies.

        Raises:
            ValueError: if the tolerance is out of range.
        """
        if not 0 < tolerance < 1:
            raise ValueError(f"tolerance must lie between 0 and 1; got {tolerance}.")
        if rule is LearningRateRule.TUNED:
            bound = self.batch_size_bound
            value, low, high = (
                1 + (self.batch_size - 1 + tolerance * b) / (1 - tolerance)
                for b in (bound.value, bound.low, bound.high)
            )
            return BatchLimit(rule=rule, batch_size=value, low=max(low, self.batch_size), high=high, binds=Limit.NOISE)
        if why := self._no_comparison(rule):
            return BatchLimit(
                rule=rule,
                batch_size=math.nan,
                low=self.batch_size,
                high=math.inf,
                binds=Limit.UNDECIDED,
                because=why,
            )
        size, binds = self._limit(rule, 1 - tolerance, self.kappa.value, self.stability.value)
        ends = [
            self._limit(rule, 1 - tolerance, kappa, margin)[0]
            for kappa, margin in ((self.kappa.high, self.stability.high), (self.kappa.low, self.stability.low))
        ]
        return BatchLimit(rule=rule, batch_size=size, low=min(*ends, size), high=max(*ends, size), binds=binds)

    def _no_comparison(self, rule: LearningRateRule) -> str:
        """Why other batch sizes cannot be compared with the step in use; empty if they can."""
        if self.kappa.low >= 1:
            return f"one step in use loses more than it gains (κ = {self.kappa})"
        if not self.kappa.high < 1:
            may = f"κ may reach {_digits(self.kappa.high)}" if math.isfinite(self.kappa.high) else "κ has no upper end"
            return f"undecided, the step in use may make no progress ({may})"
        if rule is LearningRateRule.FIXED and self.stability.value >= 1:
            return "the learning rate in use exceeds the largest stable one at every batch size"
        return ""

    def _limit(self, rule: LearningRateRule, kept: float, kappa: float, margin: float) -> tuple[float, Limit]:
        """Where progress falls to `kept`, or stability ends, whichever is first."""
        smooth = _crossing(lambda b: self._progress(b, rule, kappa), self.batch_size, kept)
        power = {LearningRateRule.LINEAR: 1, LearningRateRule.SQUARE_ROOT: 2}.get(rule)
        stable = math.inf if power is None or margin <= 0 else self.batch_size / margin**power
        if math.isinf(min(smooth, stable)):
            return math.inf, Limit.NONE
        if stable <= smooth:
            return stable, Limit.STABILITY
        if rule is not LearningRateRule.LINEAR:
            return smooth, Limit.RULE  # a rate that grows more slowly than B makes less progress per example at once
        return smooth, Limit.CURVATURE

    def __str__(self) -> str:
        lines = [
            f"batch {self.batch_size}, learning rate {self.learning_rate:.3g}"
            + (f", momentum {self.momentum:g}" if self.momentum else "")
            + (", in the preconditioned norm" if self.preconditioned else "")
            + f"; from {self.examples} examples, intervals {self.confidence:.0%}",
            f"  noise       B_D = {self.batch_size_bound} examples (curvature-weighted B_H = {self.curvature_bound})",
            f"  curvature   κ = {self.kappa} of the progress is lost; best learning rate: {self.slack} times this one",
            f"  stability   {self.stability} of the largest stable learning rate (λ_max found from below)",
        ]
        lines += [f"  {line}" for line in self._by_rule()]
        return "\n".join(lines)


def _exactly(value: float) -> Estimate:
    return Estimate(value=value, low=value, high=value)


def _digits(value: float) -> str:
    """Two significant digits, with separators."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10 else f"{rounded:g}"


def _slack(kappa: float) -> float:
    return 1 / (2 * kappa) if kappa > 0 else math.inf


def _crossing(progress: Callable[[float], float], start: float, kept: float) -> float:
    """The batch above `start` at which a falling curve reaches `kept`, by bisection; +inf if it never does."""
    low, high = start, 2 * start
    while progress(high) >= kept:
        low, high = high, 2 * high
        if high > 1e15 * start:
            return math.inf
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if progress(middle) >= kept else (low, middle)
    return low
