"""Table 1: time to a training accuracy on two workers, with and without DropConnect, beside honest controls.

Every arm, at every batch size, has its own tuned step size: plain gradients; DropConnect on each example's gradient, as
in the paper, rescaled and not; and one mask per worker, the only kind that could save traffic. Tuning counts passes, so
that its runs need no quiet machine. Each arm is then timed, alone, at every batch size on loopback, and at the one that
is fastest for it on every link; plain gradients are timed there, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from matplotlib.figure import Figure

from variegrad.experiments.experiment import Experiment, Records, Settings, Values, seeds
from variegrad.experiments.intervals import geometric
from variegrad.experiments.records import Cell, Record
from variegrad.experiments.step_sizes import step_size
from variegrad.experiments.timed_run import run_timed
from variegrad.experiments.tuned_runs import Configuration, TunedRuns
from variegrad.experiments.verdict import AtLeast, Check, Contrast, Finding, paired
from variegrad.reports.curves import Series, panels

NAME, VERSION = "table-1", 3
MARGIN = math.log(1.1)  # primary contrast: time to the middle target, plain over the arm, each at its best batch
SAME = math.log(1.03)  # of the control that compares two equal arms
SMALL: dict[str, Any] = {
    "problem": "mnist", "without_data": "digits", "max_examples": 600, "network": "mnist-cnn:8", "workers": 2,
    "batch_sizes": [64, 256], "drops": [0.4, 0.5], "grid": [-16, -12, -8], "passes": 20, "every": 1.0,
    "targets": [0.90, 0.95, 0.99], "links": [None, 1000, 100], "seeds": 3, "tuning": 2,
}  # fmt: skip
PROFILES = {
    "smoke": {**SMALL, "problem": "digits", "max_examples": 96, "network": "mlp:16:relu", "workers": 1,
              "batch_sizes": [8, 32], "drops": [0.5], "grid": [-8, -4], "passes": 4, "targets": [0.2, 0.3, 0.4],
              "links": [None], "seeds": 2},
    "small": SMALL,
    "paper": {**SMALL, "max_examples": None, "network": "mnist-cnn:32", "batch_sizes": [64, 128, 256, 512, 1024],
              "seeds": 5},
}  # fmt: skip
PAPER = {"plain": (46.97, 57.39, 361.52), 0.4: (24.88, 39.12, 313.60), 0.5: (29.68, 43.24, 317.79)}  # seconds
Arm = tuple[float, bool, str]  # drop probability, rescaled, granularity
PLAIN: Arm = (0.0, True, "example")


def cells(settings: Settings, records: Records) -> list[Cell]:
    """The searches; then every arm at every batch size on loopback; then each arm at its best batch on every link."""
    wanted = list(product(_arms(settings), settings["batch_sizes"]))
    every = [cell for arm, size in wanted for cell in _tuning(settings).search(settings, records, _of(arm, size)).cells]
    if any(cell.key not in records for cell in every):
        return every
    every += [cell for arm, size in wanted for cell in _repeats(settings, records, arm, size, None)]
    if any(cell.key not in records for cell in every):
        return every
    for arm, link in product(_arms(settings), settings["links"]):
        size = _best_size(settings, records, arm)
        every += [*_repeats(settings, records, arm, size, link), *_repeats(settings, records, PLAIN, size, link)]
    return every


def run(group: Sequence[Cell]) -> list[Values]:
    """Runs on the same workers and link."""
    specs = [{key: value for key, value in cell.values.items() if key != "tuning"} for cell in group]
    return list(run_timed(specs, workers=group[0]["workers"], megabits=group[0]["megabits"]))


def seconds_to(record: Record, target: float) -> float:
    """Seconds until the training accuracy first reaches a target; +inf where it does not.

    Args:
        record: of a timed run.
        target: the accuracy.

    Returns:
        Seconds.
    """
    pairs = zip(record["seconds"], record["accuracies"], strict=True)
    return next((float(seconds) for seconds, accuracy in pairs if accuracy >= target), math.inf)


def plot(settings: Settings, records: Records) -> Figure:
    """Time to each target on each link, for every arm at its best batch size."""
    arms, links, parts = _arms(settings), settings["links"], []
    for target in settings["targets"]:
        series = []
        for place, arm in enumerate(arms):
            x = [2 ** (k + (place - (len(arms) - 1) / 2) / 12) for k in range(len(links))]  # beside each other
            size = _best_size(settings, records, arm)
            found = [[seconds_to(r, target) for r in _found(settings, records, arm, size, link)] for link in links]
            series.append(Series.of(_short(arm), x, [geometric(one or [math.nan]) for one in found], joined=False))
        parts.append(("link", f"seconds to {100 * target:g} % accuracy", series))
    figure = panels("Time to accuracy with DropConnect", parts, log_x=True, log_y=True)
    for ax in figure.axes:
        ax.set_xlim(2**-0.5, 2 ** (len(links) - 0.5))
        ax.set_xticks([2**k for k in range(len(links))], [_where(link) for link in links])
    return figure


def summary(settings: Settings, records: Records) -> list[Finding | Check]:
    """For each link: plain gradients; each arm against them, at each side's best batch; two equal arms."""
    findings: list[Finding | Check] = []
    drops, middle = settings["drops"], settings["targets"][1]
    for link in settings["links"]:
        where, own = _where(link), _best_size(settings, records, PLAIN)
        plain = [records[cell.key] for cell in _repeats(settings, records, PLAIN, own, link)]
        if reason := next((record["skipped"] for record in plain if "skipped" in record.values), None):
            findings.append(
                Check(claim=f"{where}: times over this link are measured", found=f"0 runs: {reason}", met=False)
            )
            continue
        times = _times(settings, plain)
        findings.append(Check(
            claim=f"{where}, plain gradients: they reach each accuracy", found=_shown(own, times),
            met=not any(isinstance(time, AtLeast) for of_target in times.values() for time in of_target),
        ))  # fmt: skip
        for arm in _arms(settings)[1:-1]:
            size = _best_size(settings, records, arm)
            found, here = (
                [records[cell.key] for cell in _repeats(settings, records, a, size, link)] for a in (arm, PLAIN)
            )
            timed, same = _times(settings, found), _times(settings, here)

            def gain(target: float, than: Mapping[float, list[float]], at: int,
                     of: Mapping[float, list[float]] = timed, b: int = size) -> Contrast:  # fmt: skip
                name = f"plain at B = {at} over the arm at B = {b}, {100 * target:g} %"
                return paired(name, of[target], than[target], margin=MARGIN)

            others = [target for target in settings["targets"] if target != middle]
            findings.append(Finding(
                claim=f"{where}, {_name(arm)}: faster than plain gradients to {100 * middle:g} %",
                numbers=_shown(size, timed), primary=gain(middle, times, own),
                secondary=[gain(target, times, own) for target in others]
                + ([gain(middle, same, size)] if size != own else []),
                learned=_have_learned(settings, [*plain, *found]),
            ))  # fmt: skip
        findings.append(_control(settings, records, (drops[-1], True, "example"), _arms(settings)[-1], link))
    tuned = [_of(arm, size) for arm, size in product(_arms(settings), settings["batch_sizes"])]
    return [*findings, _tuning(settings).interior(settings, records, tuned)]


def _control(settings: Settings, records: Records, one: Arm, other: Arm, link: int | None) -> Finding:
    """Rescaled and unscaled masks, with step sizes that make them the same runs: their times differ by noise alone."""
    size, middle = _best_size(settings, records, one), settings["targets"][1]
    runs = [[records[cell.key] for cell in _repeats(settings, records, arm, size, link)] for arm in (one, other)]
    times = [_times(settings, found) for found in runs]
    return Finding(
        claim=f"control, {_where(link)}: {_name(one)}, not rescaled, which is the same run, takes longer than rescaled",
        numbers=f"rescaled {_shown(size, times[0])}; not rescaled {_shown(size, times[1])}",
        primary=paired(f"time to {100 * middle:g} %", times[0][middle], times[1][middle], margin=SAME),
        secondary=[paired(f"{100 * t:g} %", times[0][t], times[1][t], margin=SAME) for t in settings["targets"]
                   if t != middle],
        learned=_have_learned(settings, [*runs[0], *runs[1]]),
    )  # fmt: skip


def _times(settings: Settings, runs: Sequence[Record]) -> dict[float, list[float]]:
    """Seconds to each target, by seed; at least those of the whole run, if it was not reached."""
    return {target: [_censored(record, target) for record in runs] for target in settings["targets"]}


def _censored(record: Record, target: float) -> float:
    seconds = seconds_to(record, target)
    return seconds if math.isfinite(seconds) else AtLeast(record["seconds"][-1])


def _shown(batch_size: int, times: Mapping[float, Sequence[float]]) -> str:
    return f"B = {batch_size}: " + ", ".join(f"{100 * target:g} %: {_said(found)}" for target, found in times.items())


def _said(times: Sequence[float]) -> str:
    late = [time for time in times if isinstance(time, AtLeast)]
    return f"more than {min(late):.3g} s in {len(late)} of {len(times)} runs" if late else f"{geometric(times)} s"


def _have_learned(settings: Settings, runs: Sequence[Record]) -> bool:
    """Whether every run reaches the lowest of the targets: timed runs keep no losses."""
    return all(max(record["accuracies"]) >= min(settings["targets"]) for record in runs)


def _arms(settings: Settings) -> list[Arm]:
    drops = settings["drops"]
    masks = [(p, True, "example") for p in drops] + [(p, True, "worker") for p in drops]
    return [PLAIN, *masks, (drops[-1], False, "example")]


def _name(arm: Arm) -> str:
    p, rescaled, granularity = arm
    kind = f"DropConnect {p:g} per {granularity}{'' if rescaled else ', not rescaled'}"
    return kind if p else "plain"


def _short(arm: Arm) -> str:
    p, rescaled, granularity = arm
    return f"p = {p:g}, per {granularity}{'' if rescaled else ', unscaled'}" if p else "no mechanism"


def _where(link: int | None) -> str:
    return "loopback" if link is None else f"{link} Mbit/s"


def _found(settings: Settings, records: Records, arm: Arm, batch_size: int, link: int | None) -> list[Record]:
    """The repeats that have times: none where a link could not be made."""
    every = [records[cell.key] for cell in _repeats(settings, records, arm, batch_size, link)]
    return [record for record in every if "skipped" not in record.values]


def _best_size(settings: Settings, records: Records, arm: Arm) -> int:
    target = settings["targets"][1]

    def mean(size: int) -> float:
        found = [seconds_to(record, target) for record in _tuned(settings, records, arm, size)]
        return sum(found) / len(found)

    return int(min(settings["batch_sizes"], key=mean))


def _score(settings: Settings, record: Record) -> float:
    """Passes to the middle target, interpolated; for a run that does not reach it more than it had, by its accuracy."""
    target, passes, accuracies = settings["targets"][1], [0.0, *record["passes"]], [0.0, *record["accuracies"]]
    reached = next((k for k, accuracy in enumerate(accuracies) if accuracy >= target), None)
    if reached is None:
        return math.inf if record["diverged"] else float(settings["passes"] * (2 + target - max(accuracies)))
    share = (target - accuracies[reached - 1]) / (accuracies[reached] - accuracies[reached - 1])
    return float(passes[reached - 1] + share * (passes[reached] - passes[reached - 1]))


def _tuned(settings: Settings, records: Records, arm: Arm, batch_size: int) -> list[Record]:
    return [records[cell.key] for cell in _repeats(settings, records, arm, batch_size, None)]


def _repeats(settings: Settings, records: Records, arm: Arm, batch_size: int, link: int | None) -> list[Cell]:
    best = _tuning(settings).best(settings, records, _of(arm, batch_size))
    values = {**_fixed(settings), **_of(arm, batch_size), "step_size": step_size(best, batch_size), "megabits": link,
              "tuning": False, "target": max(settings["targets"])}  # fmt: skip
    return [Cell(experiment=NAME, version=VERSION, values={**values, "seed": seed}) for seed in seeds(settings)]


def _of(arm: Arm, batch_size: int) -> Configuration:
    drop, rescaled, granularity = arm
    return {"drop": drop, "rescale": rescaled, "granularity": granularity, "batch_size": batch_size}


def _fixed(settings: Settings) -> dict[str, Any]:
    names = ("problem", "max_examples", "data", "network", "workers", "passes", "every")
    return {key: settings[key] for key in names}


def _tuning(settings: Settings) -> TunedRuns:
    target = settings["targets"][1]
    return TunedRuns(
        experiment=NAME, version=VERSION, score=lambda record: _score(settings, record),
        values=lambda of, *_: {**_fixed(of), "megabits": None, "tuning": True, "target": target},
    )  # fmt: skip


EXPERIMENT = Experiment(
    name=NAME,
    version=VERSION,
    title="Table 1: time to accuracy with DropConnect, two workers",
    claim="With DropConnect the best batch grows from 256 to 512, and two workers reach 90, 95 and 99 % training "
    "accuracy in " + " and ".join(f"{', '.join(f'{t:g}' for t in PAPER[p])} s (p = {p})" for p in (0.4, 0.5))
    + f" instead of {', '.join(f'{t:g}' for t in PAPER['plain'])} s.",
    choices="Times are those of the updates alone, one thread per worker; training accuracy after each pass. "
    "Masks on each example's gradient save no traffic; a mask per worker could. Theory predicts no fewer iterations "
    "from a mechanism whose step size is tuned.",
    profiles=PROFILES, cells=cells, run=run, plot=plot, summary=summary,
    group=lambda cell: (cell["drop"], cell["rescale"], cell["granularity"], cell["batch_size"], cell["megabits"],
                        cell["tuning"]),
    alone=lambda cell: not cell["tuning"],
)  # fmt: skip
