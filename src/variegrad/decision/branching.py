"""The branch check: measure the critical batch size of a training loop directly, for any model and optimizer.

From one checkpoint, the same windows of data are trained at batch B₀ and at batch k·B₀, and the losses at their ends
are compared. With P_r = F₀ − F_r(1) the progress of window r at B₀ and Q_r = F₀ − F_r(k) that at k·B₀,

    D_r = Q_r − (1−ε)·P_r,

k·B₀ is *accepted* once the lower confidence limit of E D is positive: it keeps at least 1−ε of the progress per
example. It is *refused* once the upper limit is negative. Windows are added until one of the two happens or the budget
is spent: then it is *undecided*. Windows are evaluated after 4, 8, 16, … of them; each look has its share of the error.

k = 2, 4, 8, … are tested in this order, and nothing is accepted after the first k that was not. In such a fixed order
no correction for testing several k is needed (Maurer, Hothorn and Lehmacher, 1995).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from statistics import fmean, stdev

from scipy.stats import t as student
from torch import optim

from variegrad.decision.limits import Estimate, StepLimits
from variegrad.decision.measured import fieller
from variegrad.decision.rules import LearningRateRule

FIRST_LOOK = 4  # windows
UPDATES = 4  # a window holds at least this many updates of the largest batch


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One window to train, passed to `run`.

    Attributes:
        batch_size: k·B₀, in examples.
        k: the batch size as a multiple of B₀; 1 for the base.
        examples: length of the window; train `examples // batch_size` updates.
        seed: of the window's data. The same seed must give the same examples in the same order for every batch size.
        rule: how the learning rate follows.
        half_lives: whether β of momentum and β₁, β₂ of Adam become βᵏ, so that they average over the same number of
            examples.
    """

    batch_size: int
    k: int
    examples: int
    seed: int
    rule: LearningRateRule
    half_lives: bool

    @property
    def updates(self) -> int:
        """Updates of the window."""
        return self.examples // self.batch_size

    @property
    def learning_rate_factor(self) -> float:
        """f(k): 1 for the base."""
        return self.rule.factor(self.k)

    def rescale(self, optimizer: optim.Optimizer) -> None:
        """Set an optimizer that holds the checkpoint's settings to this batch size, in place.

        Args:
            optimizer: its learning rates are multiplied by f(k); with `half_lives` its β become βᵏ.
        """
        for group in optimizer.param_groups:
            group["lr"] *= self.learning_rate_factor
            if self.half_lives:
                if "momentum" in group:
                    group["momentum"] **= self.k
                if "betas" in group:
                    group["betas"] = tuple(beta**self.k for beta in group["betas"])


class Verdict(Enum):
    """What the windows say of a batch size."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNDECIDED = "undecided"


@dataclass(frozen=True, kw_only=True)
class Tested:
    """A batch size against the base.

    Attributes:
        batch_size: k·B₀.
        windows: pairs of windows that were compared.
        relative_progress: ΣQ/ΣP with a 95 % interval, looks not accounted for; NaN if the base makes no progress.
        verdict: by the test at its looks.
    """

    batch_size: int
    windows: int
    relative_progress: Estimate
    verdict: Verdict

    @property
    def comparable(self) -> bool:
        """Whether the base clearly makes progress, so that there is something to compare with."""
        return math.isfinite(self.relative_progress.high)


@dataclass(frozen=True, kw_only=True)
class BranchResult:
    """The interval of the critical batch size at a checkpoint, for a learning-rate rule.

    Attributes:
        batch_size: B₀.
        rule: of the learning rate.
        tolerance: ε.
        low: largest accepted batch size; B₀ if none was.
        high: smallest rejected batch size; +inf if none was.
        tested: the result for each batch size, in order.
        examples: trained on in total, without evaluations.
        stopped: why testing ended.
        limits: at the checkpoint, if they were passed.
    """

    batch_size: int
    rule: LearningRateRule
    tolerance: float
    low: int
    high: float
    tested: Sequence[Tested]
    examples: int
    stopped: str
    limits: StepLimits | None = None

    @property
    def critical(self) -> float:
        """The batch size at which relative progress falls to 1−ε, interpolated in log B.

        +inf if it stayed above; NaN if nothing was tested, or the base makes no clear progress.
        """
        if not self.tested or not all(tested.comparable for tested in self.tested):
            return math.nan
        before, progress = float(self.batch_size), 1.0
        for tested in self.tested:
            found = tested.relative_progress.value
            if found < 1 - self.tolerance:
                share = (progress - (1 - self.tolerance)) / max(progress - found, 1e-12)
                return float(before * (tested.batch_size / before) ** min(1.0, max(0.0, share)))
            before, progress = tested.batch_size, found
        return math.inf

    def __str__(self) -> str:
        if math.isinf(self.high) and self.low == self.batch_size:
            between = "undecided"
        elif math.isinf(self.high):
            between = f"at least {self.low:,} examples"
        else:
            between = f"between {self.low:,} and {int(self.high):,} examples"
        lines = [
            f"critical batch size: {between} (loss of progress up to {self.tolerance:.0%}, "
            f"learning rate {self.rule.value}); {self.examples:,} examples trained; {self.stopped}"
        ]
        lines += [
            f"  batch {t.batch_size:>7,}: {t.verdict.value:<9}  "
            + (f"progress per example {t.relative_progress} of that at " if t.comparable else "no clear progress at ")
            + f"batch {self.batch_size:,}; {t.windows} windows"
            for t in self.tested
        ]
        if math.isfinite(self.high) and self.rule is not LearningRateRule.LINEAR:
            k = self.high / self.batch_size
            lines.append(
                f"  by this rule a step far below the tuned one keeps {self.rule.factor(k) / k:.0%} at batch "
                f"{int(self.high):,}, however little noise there is: compare the linear rule"
            )
        if self.limits is not None:
            lines.append(f"  predicted from one step: {self.limits.limit(self.rule, tolerance=self.tolerance)}")
        return "\n".join(lines)


def branch(
    run: Callable[[Trial], float],
    *,
    batch_size: int,
    start_loss: float,
    window: int,
    rule: LearningRateRule = LearningRateRule.LINEAR,
    half_lives: bool = False,
    tolerance: float = 0.1,
    confidence: float = 0.95,
    windows: int = 32,
    budget: int | None = None,
    limits: StepLimits | None = None,
    ledger: str | Path | None = None,
    settings: Mapping[str, object] | None = None,
    on_window: Callable[[Trial, float, int], None] | None = None,
) -> BranchResult:
    """Find the largest batch size that makes as much progress per example as yours, by training short branches.

    Args:
        run: trains one window from the checkpoint and returns the loss at its end: `run(trial) → loss`. It restores
            model and optimizer, calls `trial.rescale(optimizer)`, makes `trial.updates` updates of `trial.batch_size`
            examples in the order of `trial.seed`, and evaluates on fixed data.
        batch_size: B₀, in examples.
        start_loss: F₀, the loss at the checkpoint on the same fixed data.
        window: examples per window, a multiple of 8·B₀, at best a power of two times B₀. The largest batch tested is
            window/4, or the last one that divides the window: both branches must see the same examples.
        rule: how the learning rate follows the batch; not `TUNED`.
        half_lives: whether to rescale β of momentum and of Adam as well.
        tolerance: ε in (0, 1), the accepted loss of progress per example.
        confidence: of the interval [low, high].
        windows: at most this many pairs of windows per batch size, ≥ 4.
        budget: examples to train on in total; None for no limit except `windows`.
        limits: from `step_limits` at the checkpoint; the result then names the limit that applies.
        ledger: a file that stores each finished window, so that an interrupted call can be resumed.
        settings: what else the windows depend on, such as optimizer and learning rate, as plain JSON values: a ledger
            with other settings is refused.
        on_window: called with (trial, loss, examples trained so far) after each window.

    Returns:
        The interval of the critical batch size, the result for each batch size, and the cost.

    Raises:
        ValueError: if an argument is out of range, the ledger belongs to another check, or the loss returned by `run`
            at B₀ is not finite. A branch that diverges counts as one whose loss doubles.

    Cost: at most 2·windows·window examples for the first batch size and windows·window for each further one.
    """
    _check(batch_size, window, tolerance, confidence, windows, rule, start_loss)
    looks = [FIRST_LOOK * 2**j for j in range(1 + int(math.log2(windows / FIRST_LOOK)))]
    level = 1 - (1 - confidence) / 2 / len(looks)
    runs = _Runs(
        run=run,
        start_loss=start_loss,
        batch_size=batch_size,
        window=window,
        rule=rule,
        half_lives=half_lives,
        budget=budget,
        on_window=on_window,
        ledger=None if ledger is None else Path(ledger),
        settings=settings or {},
    )
    runs.read()
    tested: list[Tested] = []
    low, high, stopped, unsure = (
        batch_size,
        math.inf,
        "reached the largest batch size that fits in the window: use a longer one, a power of two times the batch size",
        0,
    )
    k = 2
    while k * batch_size * UPDATES <= window and window % (k * batch_size) == 0:  # both branches see all examples
        found = _test(runs, k, looks, tolerance, level)
        if found is None:
            stopped = "budget spent"
            break
        tested.append(found)
        if found.verdict is Verdict.REFUSED:
            high = found.batch_size
            stopped = "decided up to a batch size that stays undecided" if unsure else "decided"
            break
        if found.verdict is Verdict.UNDECIDED:
            unsure += 1
            if runs.spent:
                stopped = "budget spent"
                break
            if not found.comparable:
                stopped = (
                    f"batch {batch_size:,} itself makes no clear progress in these windows: lower the learning rate, "
                    "or use longer or more windows"
                )
                break
            if unsure == 2:
                stopped = "undecided within the allowed number of windows"
                break
        elif not unsure:  # nothing is accepted after the first that was not
            low = found.batch_size
        k *= 2
    return BranchResult(
        batch_size=batch_size,
        rule=rule,
        tolerance=tolerance,
        low=low,
        high=high,
        tested=tested,
        examples=runs.examples,
        stopped=stopped,
        limits=limits,
    )


def _test(runs: _Runs, k: int, looks: Sequence[int], tolerance: float, level: float) -> Tested | None:
    """Add windows until k is accepted, refused or out of windows; None if the budget does not reach the first look."""
    base: list[float] = []
    other: list[float] = []
    verdict = Verdict.UNDECIDED
    for look in looks:
        while len(base) < look:
            pair = runs.progress(1, len(base)), runs.progress(k, len(base))
            if pair[0] is None or pair[1] is None:
                break
            base.append(pair[0])
            other.append(pair[1])
        # The size of a divergence says nothing, and would hide its mean in its spread.
        floor = -max([abs(runs.start_loss), *base])
        other = [max(made, floor) for made in other]
        if len(base) < look:
            break
        kept = [q - (1 - tolerance) * p for p, q in zip(base, other, strict=True)]
        if _limit(base, level, upper=False) <= 0:
            continue  # the base itself makes no progress that could be lost
        if _limit(kept, level, upper=False) > 0:
            verdict = Verdict.ACCEPTED
        elif _limit(kept, level, upper=True) < 0:
            verdict = Verdict.REFUSED
        if verdict is not Verdict.UNDECIDED:
            break
    if len(base) < 2:
        return None
    return Tested(
        batch_size=k * runs.batch_size, windows=len(base), relative_progress=_ratio(other, base), verdict=verdict
    )


@dataclass(kw_only=True)
class _Runs:
    """Windows that are trained when they are asked for, once, within the budget; kept in the ledger."""

    run: Callable[[Trial], float]
    start_loss: float
    batch_size: int
    window: int
    rule: LearningRateRule
    half_lives: bool
    budget: int | None
    on_window: Callable[[Trial, float, int], None] | None
    ledger: Path | None
    settings: Mapping[str, object]
    examples: int = 0
    losses: dict[tuple[int, int], float] = field(default_factory=dict)

    @property
    def spent(self) -> bool:
        """Whether the budget does not allow another window."""
        return self.budget is not None and self.examples + self.window > self.budget

    def progress(self, k: int, seed: int) -> float | None:
        """F₀ − F at the end of a window, −inf if it diverged; None if the budget does not allow it."""
        if (k, seed) not in self.losses:
            if self.spent:
                return None
            trial = Trial(
                batch_size=k * self.batch_size,
                k=k,
                examples=self.window,
                seed=seed,
                rule=self.rule,
                half_lives=self.half_lives,
            )
            loss = float(self.run(trial))
            if k == 1 and not math.isfinite(loss):
                raise ValueError(
                    f"run: the loss at the current batch size ({self.batch_size}) is {loss} after a window."
                )
            self._keep(k, seed, loss)
            self.examples += self.window
            if self.on_window is not None:
                self.on_window(trial, loss, self.examples)
        loss = self.losses[k, seed]
        return self.start_loss - loss if math.isfinite(loss) else -math.inf

    def _settings(self) -> dict[str, object]:
        return {
            "batch_size": self.batch_size,
            "window": self.window,
            "rule": self.rule.name,
            "half_lives": self.half_lives,
            "start_loss": self.start_loss,
            **self.settings,
        }

    def read(self) -> None:
        """Take over the windows that the ledger keeps, or begin it."""
        if self.ledger is None:
            return
        if not self.ledger.exists():
            self.ledger.parent.mkdir(parents=True, exist_ok=True)
            self.ledger.write_text(json.dumps(self._settings()) + "\n", encoding="utf-8")
            return
        text = self.ledger.read_text(encoding="utf-8")
        first, *rest = text.splitlines() or [""]
        if first != json.dumps(self._settings()):
            raise ValueError(
                f"{self.ledger} does not contain windows of this call (its first line is {first!r}): "
                "choose another file."
            )
        if not text.endswith("\n"):  # a kill cut the last line off: the next window begins on a line of its own
            with self.ledger.open("a", encoding="utf-8") as file:
                file.write("\n")
        for line in rest:
            try:
                k, seed, loss = json.loads(line)
            except ValueError:
                continue  # the line that a kill cut off
            self.losses[k, seed] = float(loss)
            self.examples += self.window

    def _keep(self, k: int, seed: int, loss: float) -> None:
        self.losses[k, seed] = loss
        if self.ledger is not None:
            with self.ledger.open("a", encoding="utf-8") as file:
                file.write(json.dumps([k, seed, str(loss)]) + "\n")


def _limit(values: Sequence[float], level: float, *, upper: bool) -> float:
    """The one-sided confidence limit of a mean, by Student's t."""
    half = float(student.ppf(level, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) + half if upper else fmean(values) - half


def _ratio(above: Sequence[float], below: Sequence[float]) -> Estimate:
    """The ratio of two means of pairs, with Fieller's 95 % interval."""
    count, top, bottom = len(above), fmean(above), fmean(below)
    if not bottom > 0:
        return Estimate(value=math.nan, low=-math.inf, high=math.inf)
    both = sum((a - top) * (b - bottom) for a, b in zip(above, below, strict=True)) / (count - 1) / count
    spread = [[stdev(above) ** 2 / count, both], [both, stdev(below) ** 2 / count]]
    low, high = fieller(top, bottom, spread, float(student.ppf(0.975, count - 1)))
    return Estimate(value=top / bottom, low=low, high=high)


def _check(
    batch_size: int,
    window: int,
    tolerance: float,
    confidence: float,
    windows: int,
    rule: LearningRateRule,
    start_loss: float,
) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 example; got {batch_size}.")
    if window < 1 or window % (2 * UPDATES * batch_size):
        raise ValueError(
            f"window must be a multiple of {2 * UPDATES} batches of {batch_size}, at best a power of two times "
            f"{batch_size}; got {window}."
        )
    for name, value in (("tolerance", tolerance), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie between 0 and 1; got {value}.")
    if windows < FIRST_LOOK:
        raise ValueError(f"windows must be at least {FIRST_LOOK}; got {windows}.")
    if rule is LearningRateRule.TUNED:
        raise ValueError("rule: branch needs a rule that determines the learning rate: linear, square root or fixed.")
    if not math.isfinite(start_loss):
        raise ValueError(f"start_loss must be finite; got {start_loss}.")
