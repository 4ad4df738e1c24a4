"""The hypotheses of decision 0020 with a verdict each, the rule on held-out tasks, and every predictor by regime."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from matplotlib.figure import Figure
from scipy.stats import binomtest, spearmanr

from variegrad.experiments.critical_batch.judge import KNOWN, TUNED, Case, cases, error_factor
from variegrad.experiments.experiment import Records, Settings
from variegrad.experiments.intervals import LEVEL, geometric
from variegrad.experiments.verdict import AtLeast, Check, Finding, paired
from variegrad.reports.curves import Series, panels

MARGIN, MARGIN_OF_LAW = math.log(1.25), math.log(2) / 2
WITHIN, ENOUGH = 2.0, 0.8  # the rule: within a factor 2 in at least 80 % of cells
BRANCH_WITHIN, BRANCH_ENOUGH, BRANCH_SHARE = math.sqrt(2), 0.9, 0.1
PREDICTORS = (
    "B_D", "B_D along the run", "B_D own norm", "B_D own norm along the run", "B_H", "B_H along the run",
    "B_D norm layers", "B_D norm layers along the run", "stability", "κ limit", "κ of the update",
    "least of stability and κ", "least of all", "largest of all", "rule", "stability of the mean step", "second rule",
)  # fmt: skip
STEP = "least of stability and κ"
SEEN = ("digits logistic", "sgd")  # the held-out run that was known when the second rule was declared


def summary(settings: Settings, records: Records) -> list[Finding | Check]:
    """The findings of the cells that were run."""
    every, without = cases(settings, records)
    return findings(every, without)


def findings(every: Sequence[Case], without: int = 0) -> list[Finding | Check]:
    """Hypotheses, rule and branch first; then a row per regime."""
    held_out = [case for case in every if case.held_out]
    plain = [case for case in every if case.optimizer in ("sgd", "momentum")]
    found: list[Finding | Check] = []

    def add(finding: Finding | Check | None) -> None:
        if finding is not None:
            found.append(finding)

    add(_calibrated([case for case in every if case.rule == TUNED and case.optimizer in KNOWN]))
    slow = [case for case in plain if case.rule == "linear" and case.slower > 1]
    add(
        _worse(
            "H2: linear rule, untuned rate, SGD and momentum: the step limits predict better than B_D",
            slow,
            "B_D",
            STEP,
        )
    )
    adam = [case for case in every if case.rule != TUNED and case.optimizer == "adamw"]
    add(_worse("H3: AdamW, a rule: preconditioned step limits predict better than B_D in AdamW's norm", adam,
               "B_D own norm", STEP))  # fmt: skip
    add(_norm_layers([case for case in every if case.rule == TUNED]))
    told = [case for case in held_out if not math.isnan(case.error("rule"))]
    add(_share("the declared rule, held-out tasks: within a factor 2", [c.error("rule") for c in told], WITHIN, ENOUGH))
    add(_worse("the declared rule, held-out tasks: it predicts better than B_D alone", told, "B_D", "rule"))
    after = [case for case in held_out if case.run != SEEN and not math.isnan(case.error("second rule"))]
    kinds = {kind: [c.error("second rule") for c in after if c.optimizer == kind] for kind in ("sgd", "momentum")}
    add(_share("the second rule, held-out runs since it was declared: within a factor 2",
               [c.error("second rule") for c in after], WITHIN, ENOUGH,
               {kind: _share_of(errors, WITHIN) for kind, errors in kinds.items() if errors}))  # fmt: skip
    add(_worse("the second rule, held-out runs since: it predicts better than B_D alone", after, "B_D", "second rule"))
    for name, group in (("held-out tasks", held_out), ("the other tasks", [c for c in every if not c.held_out])):
        branched = [case for case in group if not math.isnan(case.branch_share) and case.branch_share > 0]
        add(_branch(name, branched))
    for (rule, kind), group in _regimes(every).items():
        add(_regime(f"{rule}, {kind}", group))
    if without:
        found.append(Check(
            claim="every cell makes progress at B₀", met=False,
            found=f"{without} cells do not; they have no critical batch size and are left out",
        ))  # fmt: skip
    return found


def plot(settings: Settings, records: Records) -> Figure:
    """Prediction against truth: B_D and the declared rule, one panel per rule of the learning rate."""
    every, _ = cases(settings, records)
    parts = []
    for rule, name in ((TUNED, "tuned for each B"), ("linear", "linear rule"), ("square root", "square-root rule")):
        chosen = [case for case in every if case.rule == rule and case.optimizer in KNOWN]
        series = []
        for predictor, label in (("B_D", "$B_D$"), ("rule", "declared rule")):
            points = sorted(
                (c.truth, min(c.predicted[predictor], 4096.0)) for c in chosen if c.predicted[predictor] > 0
            )
            x, y = [float(t) for t, _ in points], [p for _, p in points]
            series.append(Series(label=label, x=x, mean=y, low=y, high=y, joined=False))
        ends = [8.0, 1024.0]
        series.append(Series.reference("prediction = measurement", ends, ends))
        parts.append((f"critical batch size, measured: {name}", "predicted", series))
    return panels("Predicted and measured critical batch size", parts, log_x=True, log_y=True)


def _by_run(group: Iterable[Case], value: Callable[[Case], float]) -> dict[tuple[str, str], float]:
    """Geometric mean over the cells of each run; cells without the value are left out."""
    logs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for case in group:
        if (found := value(case)) > 0 and math.isfinite(found):
            logs[case.run].append(math.log(found))
    return {run: math.exp(sum(each) / len(each)) for run, each in logs.items()}


def _worse(claim: str, group: Sequence[Case], one: str, other: str) -> Finding | None:
    """Whether the error factor of `one` exceeds that of `other`, run by run."""
    both = [case for case in group if not math.isnan(case.error(one) + case.error(other))]
    if not both:
        return None
    errors = {name: _by_run(both, lambda case, name=name: case.error(name)) for name in (one, other)}  # type: ignore[misc]
    runs = sorted(errors[one])
    contrast = paired(f"error factor of {other} to that of {one}", [errors[other][run] for run in runs],
                      [errors[one][run] for run in runs], margin=MARGIN)  # fmt: skip
    numbers = "; ".join(f"error factor of {name}: {geometric(list(errors[name].values()))}" for name in (one, other))
    return Finding(claim=claim, numbers=f"{numbers}; {len(both)} cells of {len(runs)} runs", primary=contrast)


def _calibrated(group: Sequence[Case]) -> Finding | None:
    """H1: truth over the law's prediction, run by run."""
    seen = [case for case in group if not isinstance(case.truth, AtLeast) and math.isfinite(_law(case))]
    if not seen:
        return None
    ratios = _by_run(seen, lambda case: case.truth / _law(case))
    values = list(ratios.values())
    worst = _share_of([error_factor(case.truth, _law(case)) for case in seen], math.sqrt(2))
    return Finding(
        claim="H1: tuned for each B, the critical batch differs from the law with the harmonic mean of B_D",
        numbers=f"{len(seen)} cells of {len(ratios)} runs, {len(group) - len(seen)} never double; within √2: {worst}",
        primary=paired("law to truth", [1.0] * len(values), values, margin=MARGIN_OF_LAW),
    )


def _law(case: Case) -> float:
    """The law with the harmonic mean of B_D along the run; for AdamW in its own norm."""
    return case.predicted["B_D own norm along the run" if case.optimizer == "adamw" else "B_D along the run"]


def _norm_layers(group: Sequence[Case]) -> Finding | None:
    """H4: error after one calibration factor each, norm layers against all parameters."""
    names = ("B_D along the run", "B_D norm layers along the run")
    seen = [case for case in group if all(math.isfinite(case.predicted.get(name, math.nan)) for name in names)
            and not isinstance(case.truth, AtLeast)]  # fmt: skip
    if not seen:
        return None
    errors = []
    for name in names:
        logs = [math.log(case.truth / case.predicted[name]) for case in seen]
        middle = sum(logs) / len(logs)
        scaled = {id(case): math.exp(abs(log - middle)) for case, log in zip(seen, logs, strict=True)}
        errors.append(_by_run(seen, lambda case, scaled=scaled: scaled[id(case)]))  # type: ignore[misc]
    runs = sorted(errors[0])
    return Finding(
        claim="H4: tuned for each B, the norm layers' B_D, calibrated, predicts worse than that of all parameters",
        numbers=f"{len(seen)} cells of {len(runs)} runs",
        primary=paired(
            "error factor of all parameters to that of norm layers",
            [errors[0][run] for run in runs],
            [errors[1][run] for run in runs],
            margin=MARGIN,
        ),
    )


def _share(
    claim: str, errors: Sequence[float], within: float, enough: float, numbers: Mapping[str, str] | None = None
) -> Check | None:
    if not errors:
        return None
    met = _enough(sum(error <= within for error in errors), len(errors), enough)
    found = _share_of(errors, within)
    return Check(claim=f"{claim} in at least {enough:.0%} of cells", found=found, met=met, numbers=numbers or {})


def _enough(good: int, count: int, enough: float, level: float = LEVEL) -> bool | None:
    """Whether a share is at least so large, by its exact binomial interval; None if that reaches both sides."""
    ends = binomtest(good, count).proportion_ci(level)
    return True if ends.low >= enough else False if ends.high < enough else None


def _share_of(errors: Sequence[float], within: float) -> str:
    good = sum(error <= within for error in errors)
    ends = binomtest(good, len(errors)).proportion_ci(LEVEL)
    return f"{good} of {len(errors)} cells, {good / len(errors):.0%} [{ends.low:.0%}, {ends.high:.0%}]"


def _branch(name: str, group: Sequence[Case]) -> Check | None:
    if not group:
        return None
    decided = [case for case in group if not math.isnan(case.branch)]
    errors = [_branch_error(case) if not math.isnan(case.branch) else math.inf for case in group]
    cost = sum(case.branch_share for case in group) / len(group)
    held = sum(case.branch_between[0] <= case.truth <= case.branch_between[1] for case in group)
    good = sum(error <= BRANCH_WITHIN + 1e-9 for error in errors)
    return Check(
        claim=f"branch check, {name}: within √2 of the sweep in at least 90 % of linear cells, at no more than 10 % of "
        "the sweep's examples",
        found=f"{_share_of(errors, BRANCH_WITHIN + 1e-9)}; {good} of the {len(decided)} that it decided; "
        f"{cost:.1%} of the examples on average, at most {max(case.branch_share for case in group):.1%}; "
        f"the interval holds the truth in {held} of {len(group)}",
        met=_enough(good, len(errors), BRANCH_ENOUGH) if cost <= BRANCH_SHARE else False,
    )


def _branch_error(case: Case) -> float:
    """How far truth and branch are apart; two lower limits agree."""
    if isinstance(case.branch, AtLeast):
        return max(1.0, case.branch / case.truth)
    if isinstance(case.truth, AtLeast):
        return max(1.0, case.truth / case.branch)
    return max(case.branch / case.truth, case.truth / case.branch)


def _regimes(every: Sequence[Case]) -> Mapping[tuple[str, str], list[Case]]:
    """Rule × (optimizer, rate)."""
    found: dict[tuple[str, str], list[Case]] = defaultdict(list)
    for case in every:
        rate = "" if case.rule == TUNED else ", tuned rate" if case.slower == 1 else ", a quarter or sixteenth of it"
        found[case.rule if case.rule == TUNED else f"{case.rule} rule", f"{case.optimizer}{rate}"].append(case)
    return dict(sorted(found.items()))


def _regime(name: str, group: Sequence[Case]) -> Check | None:
    """Every predictor in one regime: rank correlation, truth/prediction, cells within a factor 2."""
    told = {p: [case for case in group if not math.isnan(case.error(p))] for p in PREDICTORS}
    said = {p: _said(seen, p) for p, seen in told.items() if len(seen) > 1}
    if not said:
        return None
    level = 1 - (1 - LEVEL) / len(said)  # the best of several is no finding: Bonferroni over the predictors

    told_enough = {
        p: _enough(sum(case.error(p) <= WITHIN for case in told[p]), len(group), ENOUGH, level) for p in said
    }
    good = [p for p, enough in told_enough.items() if enough]
    met = True if good else None if None in told_enough.values() else False
    return Check(
        claim=f"{name}: some number predicts it within a factor 2 in at least 80 % of cells", met=met,
        found=f"{', '.join(good) or 'none'}; {len(group)} cells",
        numbers=said,
    )  # fmt: skip


def _said(told: Sequence[Case], predictor: str) -> str:
    predicted, truth = [min(case.predicted[predictor], 1e9) for case in told], [float(case.truth) for case in told]
    rank = spearmanr(predicted, truth).statistic if len(set(predicted)) > 1 and len(set(truth)) > 1 else math.nan
    seen = [case for case in told if not isinstance(case.truth, AtLeast) and math.isfinite(case.predicted[predictor])]
    ratios = list(_by_run(seen, lambda case: case.truth / case.predicted[predictor]).values())
    good = sum(case.error(predictor) <= WITHIN for case in told)
    return f"{rank:.2f}, {_factor(ratios)}, {good}/{len(told)}"


def _factor(ratios: Sequence[float]) -> str:
    """A calibration factor; with its interval from three runs on."""
    if not ratios:
        return "–"
    found = geometric(ratios)
    return f"×{found}" if found.count > 2 else f"×{found.mean:.3g}"
