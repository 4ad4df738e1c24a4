"""Truth against prediction, cell by cell: what the sweep found, what each number said, what the declared rule says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from variegrad.experiments.critical_batch.cells import runs_of, tuned_of, window_cells
from variegrad.experiments.critical_batch.measure import BASE, KEPT, STARTS
from variegrad.experiments.critical_batch.stack import MOMENTUM
from variegrad.experiments.critical_batch.tuned import Tuned
from variegrad.experiments.experiment import Records, Settings
from variegrad.experiments.records import Record
from variegrad.experiments.verdict import AtLeast

TUNED = "tuned"
HALF = 0.5  # share of the efficiency of B₀ at which the critical batch of tuned rates is read
PROGRESS = 1.65  # standard errors by which the base must make progress: a lower 95 % limit
BOUNDS = ("B_D", "B_D own norm", "B_H", "B_D norm layers")
KNOWN = ("sgd", "momentum", "adamw")  # optimizers for which the declared rule names a number
LEAST_SLACK = 0.5  # frozen on the tasks that were not held out
MOMENTA = {"sgd": 0.0, "momentum": MOMENTUM}  # optimizers of which the second rule speaks


@dataclass(frozen=True, kw_only=True)
class Case:
    """One critical batch size that was measured.

    Attributes:
        task: its name.
        optimizer: its name.
        held_out: whether the rule is judged here, and not frozen.
        rule: of the learning rate: "tuned", "linear" or "square root".
        slower: the learning rate is the tuned one divided by this.
        checkpoint: examples before it.
        truth: in examples; `AtLeast` the largest batch tried.
        predicted: by the name of the predictor; NaN where it says nothing.
        branch: the middle of the branch check's interval, NaN if it was not asked or undecided.
        branch_share: its examples over those of the sweep.
        branch_between: its interval.
    """

    task: str
    optimizer: str
    held_out: bool
    rule: str
    slower: int
    checkpoint: int
    truth: float
    predicted: Mapping[str, float]
    branch: float = math.nan
    branch_share: float = math.nan
    branch_between: tuple[float, float] = field(default=(math.nan, math.nan))

    @property
    def run(self) -> tuple[str, str]:
        """Its cluster: cells of one task and optimizer are not independent."""
        return self.task, self.optimizer

    def error(self, predictor: str) -> float:
        """max(prediction/truth, truth/prediction) ≥ 1; NaN without a prediction."""
        return error_factor(self.truth, self.predicted.get(predictor, math.nan))


def error_factor(truth: float, predicted: float) -> float:
    """By which factor a prediction is wrong; 1 if it reaches a truth that is only known from below.

    Args:
        truth: B, or `AtLeast` B.
        predicted: in examples, +inf allowed.

    Returns:
        The factor; NaN if there is no prediction.
    """
    if math.isnan(predicted):
        return math.nan
    if isinstance(truth, AtLeast):
        return max(1.0, truth / max(predicted, 1.0))
    predicted = min(predicted, 1e6)  # no limit found: as wrong as a million examples
    return max(predicted / truth, truth / max(predicted, 1.0))


def cases(settings: Settings, records: Records) -> tuple[list[Case], int]:
    """Every critical batch size of the finished tasks, and how many cells have none for lack of progress at B₀."""
    found: list[Case] = []
    without = 0
    for name, optimizers in runs_of(settings).items():
        task = settings["tasks"][name]
        for optimizer in optimizers:
            tuned = tuned_of(settings, records, name, optimizer)
            if tuned is None:
                continue
            cells = window_cells(settings, name, optimizer, tuned.best)
            if any(cell.key not in records for cell in cells):
                continue
            *windows, along = (records[cell.key] for cell in cells)
            known = {"task": name, "optimizer": optimizer, "held_out": task["held_out"]}
            for place, start in enumerate(STARTS):
                at_tuned = next(
                    w for w in windows if w.cell["slower"] == 1 and w.cell["checkpoint"] == task["length"] // start
                )
                truth = doubled(tuned, place)
                found.append(Case(
                    **known, rule=TUNED, slower=1, checkpoint=task["length"] // start, truth=truth,
                    predicted=_for_tuned(along, at_tuned, task["length"] // start),
                ))  # fmt: skip
            for window in windows:
                mean, error = window["progress"]
                for rule, kept in KEPT.items():
                    if not mean > PROGRESS * error:
                        without += 1
                        continue
                    found.append(Case(
                        **known, rule=rule, slower=window.cell["slower"], checkpoint=window.cell["checkpoint"],
                        truth=crossing(window["batch_sizes"], [ratio for ratio, _ in window[rule]], kept),
                        predicted=_for_rule(window["predicted"], rule, kept)
                        | _second_rule(window["predicted"], rule, kept, optimizer, window.cell["slower"]),
                        **(_branched(window) if rule == "linear" else {}),
                    ))  # fmt: skip
    return found, without


def _branched(window: Record) -> dict[str, Any]:
    """The answer of the branch check: the middle of its interval; NaN if it has no upper end for lack of a decision."""
    low, high = window["branch"]
    decided = high < math.inf or "undecided" not in window["branch_verdicts"]
    return {
        "branch": math.nan if not decided else math.sqrt(low * high) if high < math.inf else AtLeast(low),
        "branch_between": (low, high),
        "branch_share": window["branch_examples"] / window["sweep_examples"],
    }


def crossing(sizes: Sequence[int], shares: Sequence[float], kept: float) -> float:
    """The B at which progress falls to a share, between two sizes linear in log B.

    Where a window ends worse than it began the fall is a cliff: the middle of the two.

    Args:
        sizes: B, ascending.
        shares: progress relative to B₀.
        kept: the share in question.

    Returns:
        B; `AtLeast` the largest if it never falls so far.
    """
    for (size, share), (larger, after) in pairwise([(BASE, 1.0), *zip(sizes, shares, strict=True)]):
        if not after >= kept:
            way = (share - kept) / (share - after) if after > 0 else 0.5
            return float(size * (larger / size) ** way)
    return AtLeast(sizes[-1])


def doubled(tuned: Tuned, target: int) -> float:
    """The B at which a target takes twice the examples of B₀, its rate tuned for each B."""
    sizes = sorted(tuned.examples)
    needed = [tuned.examples[size][target] for size in sizes]
    return crossing(sizes[1:], [needed[0] / n if n < math.inf else 1e-9 for n in needed[1:]], HALF)


def law(bound: float, kept: float) -> float:
    """The B at which (B̄+B₀−1)/(B̄+B−1) falls to a share.

    Args:
        bound: B̄, in examples.
        kept: the share.

    Returns:
        B, in examples.
    """
    return 1 + (BASE - 1 + (1 - kept) * bound) / kept


def _for_tuned(along: Record, window: Record, checkpoint: int) -> dict[str, float]:
    found = {}
    for name in BOUNDS:
        if name not in along.values:
            continue
        found[name] = law(window["predicted"].get(name, math.nan), HALF)
        found[f"{name} along the run"] = law(harmonic_mean(along["examples"], along[name], checkpoint), HALF)
    stability = window["predicted"].get("stability", math.nan)
    found["stability"] = BASE / stability if stability > 0 else math.nan
    own = "B_D own norm along the run" if window.cell["optimizer"] == "adamw" else "B_D along the run"
    capped = found[own] if math.isnan(found["stability"]) else min(found[own], found["stability"])
    found["rule"] = capped if window.cell["optimizer"] in KNOWN else math.nan
    return found


def harmonic_mean(examples: Sequence[float], bounds: Sequence[float], until: float) -> float:
    """Over the examples of a run: their number over the integral of 1/B_D, by trapezoids.

    Args:
        examples: at which B_D was measured, from 0.
        bounds: B_D there; +inf and what is not positive count as no noise.
        until: the end, one of `examples`.

    Returns:
        B̄.
    """
    inverse = [1 / b if b > 0 else 0.0 for b in bounds]
    points = [(n, i) for n, i in zip(examples, inverse, strict=True) if n <= until]
    area = sum((m - n) * (i + j) / 2 for (n, i), (m, j) in pairwise(points))
    return until / area if area > 0 else math.inf


def _for_rule(at: Mapping[str, float], rule: str, kept: float) -> dict[str, float]:
    found = {name: law(at[name], kept) for name in BOUNDS if name in at}
    own = at["kappa of update"]
    found["κ of the update"] = _update_limit(own, rule, kept)
    if "kappa" not in at:
        return {**found, "rule": math.nan}
    power = {"linear": 1, "square root": 2}[rule]
    stable = BASE / at["stability"] ** power if at["stability"] > 0 else math.inf
    kappa = at[f"kappa limit, {rule}"]
    found |= {"stability": stable, "κ limit": kappa}
    both = [value for value in (stable, kappa) if not math.isnan(value)]
    found["least of stability and κ"] = min(both) if len(both) == 2 else math.nan
    every = [found["B_D"], *both]
    found |= {"least of all": min(every), "largest of all": max(every)}
    slack = 1 / (2 * at["kappa"]) if at["kappa"] > 0 else math.inf
    found["rule"] = found["least of stability and κ"] if slack >= LEAST_SLACK else min(found["B_D"], stable)
    return found


def _second_rule(at: Mapping[str, float], rule: str, kept: float, optimizer: str, slower: int) -> dict[str, float]:
    """What was declared second: 2(1−β)/(γλ_max) below the tuned rate; at it the law with B_D, at most that."""
    if rule != "linear" or optimizer not in MOMENTA or not at["stability"] > 0:
        return {}
    beta = MOMENTA[optimizer]
    stable = BASE / (at["stability"] * (1 + beta) / (1 - beta))
    return {"stability of the mean step": stable,
            "second rule": stable if slower > 1 else min(law(at["B_D"], kept), stable)}  # fmt: skip


def _update_limit(kappa: float, rule: str, kept: float) -> float:
    """B at which f/k·(1 − f·κ)/(1 − κ) falls to a share; κ grows with the learning rate and keeps its noise."""
    if not kappa < 1:
        return math.nan
    factor: Callable[[float], float] = (lambda k: k) if rule == "linear" else math.sqrt
    low, high = 1.0, 1e6

    def share(k: float) -> float:
        return factor(k) / k * (1 - factor(k) * kappa) / (1 - kappa)

    if share(high) >= kept:
        return math.inf
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if share(middle) >= kept else (low, middle)
    return BASE * low
