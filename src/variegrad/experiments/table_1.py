"""Table 1: time to a training accuracy on two workers, with and without DropConnect, beside honest rivals.

    seconds = updates(configuration, B, γ, seed) × time per update(configuration, B, link)

Updates do not depend on the machine: they are counted in one process, at a step size tuned for each configuration,
batch size and target on seeds of their own (`table_1_runs`). The time per update needs the machine for itself, and few
updates (`table_1_times`). Whole runs, timed from end to end, confirm the product. The primary contrast of a link is the
time to 95 %, plain gradients over DropConnect, each at its best batch size; beside it is what theory predicts from the
times and from the updates of plain gradients alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from variegrad.experiments import updates_to_accuracy
from variegrad.experiments.experiment import Experiment, Records, Settings, Values
from variegrad.experiments.intervals import Interval, geometric
from variegrad.experiments.records import Cell
from variegrad.experiments.step_sizes import interior
from variegrad.experiments.table_1_runs import (
    HALF,
    NAME,
    PLAIN,
    VERSION,
    Configuration,
    expected_examples,
    masked,
    to_the_last,
    tuned,
)
from variegrad.experiments.table_1_times import Link, Times, run_times
from variegrad.experiments.verdict import AtLeast, Check, Contrast, Finding, paired, percent
from variegrad.reports.curves import Series, panels
from variegrad.theory.mechanism_speed import updates_factor

MARGIN = math.log(1.1)  # of times to a target
SAME = math.log(1.03)  # of the control that times equal updates twice
SHIFT = math.log(2) / 2  # of best batch sizes: half a doubling
CONFIRMED = 0.1  # how far the product may be from a whole run
KINDS = {"example": "a mask per example", "worker": "a mask per worker"}
PAPER = {"plain": (46.97, 57.39, 361.52), 0.4: (24.88, 39.12, 313.60), 0.5: (29.68, 43.24, 317.79)}  # seconds
PAPER_SIZES = (256, 512)  # the paper's best batch sizes, without and with DropConnect
SMALL: dict[str, Any] = {
    "problem": "mnist/2", "without_data": "digits", "max_examples": None, "network": "mnist-cnn:8", "workers": 2,
    "batch_sizes": [64, 128, 256, 512, 1024], "most_examples": [90_000, 90_000, 120_000, 200_000, 320_000],
    "drops": [0.4, 0.5], "targets": [0.90, 0.95, 0.98], "last_sizes": [256], "last_kinds": ["worker"],
    "last_seeds": 4, "last_examples": 600_000, "half_size": 256, "scored": 2000, "first": 3000,
    "expected_bound": 60, "expected_learning_rate": 0.4, "expected_updates": 120, "refinements": 1,
    "links": [None, 1000, 100, 10], "timed": [[120, 3], [120, 3], [40, 2], [16, 1]],
    "wholes": [[0.0, "example", None], [0.5, "example", None], [0.5, "worker", None], [0.0, "example", 1000],
               [0.5, "worker", 1000], [0.0, "example", 100], [0.5, "worker", 100], [0.0, "half", 100],
               [0.0, "example", 10], [0.5, "worker", 10]], "whole_copies": 5,
    "seeds": 8, "tuning": 2,
}  # fmt: skip
PROFILES = {
    "smoke": {**SMALL, "problem": "digits", "network": "mlp:16:relu", "workers": 1, "batch_sizes": [8, 32],
              "most_examples": [3000, 3000], "drops": [0.5], "targets": [0.5, 0.6, 0.7], "last_sizes": [32],
              "last_kinds": ["example", "worker"], "last_seeds": 2, "last_examples": 3000, "half_size": 32,
              "scored": 300, "first": 100,
              "expected_bound": 8, "expected_learning_rate": 0.7, "links": [None], "timed": [[3, 2]],
              "wholes": [[0.0, "example", None], [0.5, "worker", None]], "whole_copies": 2, "seeds": 2},
    "small": SMALL,
    "paper": {**SMALL, "problem": "mnist", "network": "mnist-cnn:32", "targets": [0.90, 0.95, 0.99],
              "last_sizes": [128, 256, 512, 1024], "last_kinds": ["example", "worker"], "last_seeds": 8, "tuning": 3},
}  # fmt: skip


def cells(settings: Settings, records: Records) -> list[Cell]:
    """Times, and runs to each accuracy; when both are finished, whole runs."""
    found = Times(settings, records)
    wanted = [*found.cells(), *found.updates.cells()]
    if all(cell.key in records for cell in wanted):
        wanted += found.whole_cells()
    return wanted


def run(group: Sequence[Cell]) -> list[Values]:
    """Cells of one kind."""
    return list(updates_to_accuracy.run(group) if group[0]["kind"] == "updates" else run_times(group))


def predicted(times: Times, configuration: Configuration, link: Link) -> float:
    """Theory's time of plain gradients over that of DropConnect, each at its best batch size.

    It rests on the measured times per update and on B_D from the updates of plain gradients, U∞·(1 + (B_D−1)/B).

    Args:
        times: of a finished run.
        configuration: with DropConnect.
        link: which.

    Returns:
        The ratio, above 1 if DropConnect is predicted to be faster.
    """
    bound = fitted_bound(times)

    def least(of: Configuration) -> float:
        t = of.drop / (1 - of.drop)
        return min(
            times.per_update(of, size, link)
            * updates_factor(bound=bound, batch_size=size, relative_variance=t, granularity=of.mask_for,
                             workers=times.settings["workers"])
            for size in times.settings["batch_sizes"]
        )  # fmt: skip

    return least(PLAIN) / least(configuration)


def fitted_bound(times: Times) -> float:
    """B_D, at least 1, from U = U∞·(1 + (B_D−1)/B), by least squares of relative errors of the updates to the target.

    Batch sizes at which some run of plain gradients does not arrive are left out.

    Args:
        times: of a finished run.

    Returns:
        Examples.
    """
    needed = {size: times.updates.needed(PLAIN, size, times.middle) for size in times.settings["batch_sizes"]}
    arrived = {size: geometric(counts).mean for size, counts in needed.items() if not _late(counts)}
    largest = float(max(needed))
    if len(arrived) < 2:
        return largest
    sizes, found = np.array(list(arrived), dtype=float), np.array(list(arrived.values()))
    rows = np.stack([np.ones_like(sizes), 1 / sizes], axis=1) / found[:, None]
    constant, falling = np.linalg.lstsq(rows, np.ones_like(sizes), rcond=None)[0]
    return float(1 + max(0.0, falling / constant)) if constant > 0 else largest


def plot(settings: Settings, records: Records) -> Figure:
    """Updates to the middle target by batch size; then seconds on each link, which is updates × time per update."""
    times = Times(settings, records)
    sizes, target = settings["batch_sizes"], times.middle

    def series(value: Callable[[Configuration, int], Sequence[float]]) -> list[Series]:
        return [
            Series.of(
                _short(each),
                _beside(sizes, place),
                [geometric(found) for found in by_size],
                beyond=[min(_late(found), default=None) for found in by_size],
            )
            for place, each in enumerate(tuned(settings))
            for by_size in [[value(each, size) for size in sizes]]
        ]

    parts = [("batch size B", "updates",
              series(lambda each, size: times.updates.needed(each, size, target)))]  # fmt: skip
    for link in settings["links"]:
        if times.measured(link):
            on_link = series(lambda each, size, link=link: times.seconds(each, size, target, link))  # type: ignore[misc]
            parts.append(("batch size B", f"s, {_where(link)}", on_link))
    return panels(f"Updates and seconds to {100 * target:g} % with DropConnect", parts, log_x=True, log_y=True)


def summary(settings: Settings, records: Records) -> list[Finding | Check]:
    """Controls; then, for each link, DropConnect and half precision against plain gradients; then best batch sizes."""
    times = Times(settings, records)
    links = [link for link in settings["links"] if times.measured(link)]
    found: list[Finding | Check] = [
        Check(claim=f"{_where(link)}: times over this link are measured", found="this link cannot be made here",
              met=None)
        for link in settings["links"] if link not in links
    ]  # fmt: skip
    found += [
        interior([
            times.updates.search(each, size, target)
            for target in settings["targets"]
            for each in (to_the_last if target == settings["targets"][-1] else tuned)(settings)
            for size in settings["last_sizes" if target == settings["targets"][-1] else "batch_sizes"]
        ]),
        _confirmed(times),
        _half_updates(times),
    ]  # fmt: skip
    for link in links:
        found.append(_twice(times, link))
    for link in links:
        found += [_masks(times, kind, link) for kind in KINDS]
        found.append(_half(times, link))
    found += [_shift(times, kind, links) for kind in KINDS]
    return found


def _masks(times: Times, kind: str, link: Link) -> Finding:
    """Masks of one kind against plain gradients: the mean over p of the log ratio is primary."""
    chosen = [each for each in masked(times.settings) if each.granularity == kind]
    target, last = times.middle, times.settings["targets"][-1]
    best = {each: times.best_size(each, link) for each in (PLAIN, *chosen)}

    def needed(each: Configuration, size: int, goal: float = target) -> list[float]:
        return times.seconds(each, size, goal, link)

    plain = needed(PLAIN, best[PLAIN])
    shown, secondary = {f"plain, B = {best[PLAIN]}, seconds": _shown(plain)}, []

    def against(what: str, each: Configuration, size: int, plain_size: int, goal: float = target) -> None:
        name = f"p = {each.drop:g}, {what}"
        secondary.append(paired(name, needed(each, size, goal), needed(PLAIN, plain_size, goal), margin=MARGIN))

    for each in chosen:
        forecast = predicted(times, each, link)
        name = f"p = {each.drop:g}, B = {best[each]}, seconds (theory predicts ×{forecast:.2f})"
        shown[name] = _shown(needed(each, best[each]))
        for goal in times.settings["targets"][:-1]:
            against(f"{100 * goal:g} %", each, best[each], best[PLAIN], goal)
        for size in times.settings["last_sizes"] if each in to_the_last(times.settings) else ():
            against(f"{100 * last:g} %, both at B = {size}", each, size, size, last)
        if best[each] != best[PLAIN]:
            against(f"both at B = {best[each]}", each, best[each], best[each])
        if {*PAPER_SIZES} <= {*times.settings["batch_sizes"]}:
            against("at the paper's batch sizes", each, PAPER_SIZES[1], PAPER_SIZES[0])
    pooled = [_mean(values) for values in zip(*(needed(each, best[each]) for each in chosen), strict=True)]
    return Finding(
        claim=f"{_where(link)}, {KINDS[kind]}: {_faster(target)}", numbers=shown, secondary=secondary,
        primary=paired("plain gradients over DropConnect, mean over p", pooled, plain, margin=MARGIN),
        learned=_arrived(times, [PLAIN, *chosen]),
    )  # fmt: skip


def _half(times: Times, link: Link) -> Finding:
    """Half precision against plain gradients at the same batch size: the time of an update, compared by turn."""
    size = times.best_size(PLAIN, link)
    half, plain = (times.turns(each, size, link) for each in (HALF, PLAIN))
    return Finding(
        claim=f"{_where(link)}, sums in half precision: an update is faster than with plain gradients, at their best "
        "batch",
        numbers={f"{name}, B = {size}, ms per update": geometric([1000 * seconds for seconds in turns])
                 for name, turns in (("half precision", half), ("plain", plain))},
        primary=paired("plain gradients over half precision, by turn", half, plain, margin=MARGIN),
    )  # fmt: skip


def _faster(target: float) -> str:
    return f"faster than plain gradients to {100 * target:g} %, each at its best batch"


def _half_updates(times: Times) -> Check:
    size, target = times.settings["half_size"], times.middle
    ours, plain = (times.updates.needed(each, size, target) for each in (HALF, PLAIN))
    found = paired("updates of plain gradients over those in half precision", ours, plain, margin=MARGIN)
    return Check(
        claim=f"control: a sum in half precision needs the updates of a plain one to {100 * target:g} %, within "
        f"{percent(MARGIN)}",
        found=f"B = {size}, {found}",
        met=found.agrees,
    )


def _twice(times: Times, link: Link) -> Check:
    """Plain gradients against themselves: the geometric mean over batch sizes of the time per update, by turn."""
    sides = [[_mean(values) for values in zip(*(times.turns(PLAIN, size, link, copy)
                                                for size in times.settings["batch_sizes"]), strict=True)]
             for copy in (0, 1)]  # fmt: skip
    found = paired("one over the other, by turn", *sides, margin=SAME)
    first, second = (1000 * statistics.fmean(side) for side in sides)
    return Check(
        claim=f"control, {_where(link)}: plain gradients timed twice agree within {percent(SAME)}",
        found=f"{found}; {first:.4g} and {second:.4g} ms per update, mean over batch sizes", met=found.agrees,
    )  # fmt: skip


def _confirmed(times: Times) -> Check:
    """Whole runs against the product, each the mean of its copies: one run of a second may be a tenth off by itself."""
    found = {}
    for copies in times.whole_runs():
        first, ratios = copies[0], [times.whole_over_product(cell) for cell in copies]
        of = Configuration(first["drop"], first["granularity"])
        found[f"{of}, {_where(first['megabits'])}, B = {first['batch_size']}, whole run over product"] = ratios
    means = [statistics.fmean(ratios) for ratios in found.values()]
    inside = sum(abs(mean - 1) <= CONFIRMED for mean in means)
    return Check(
        claim=f"control: whole runs timed end to end agree with updates × time per update within {100 * CONFIRMED:g} %",
        found=f"{inside} of {len(means)}; ratios " + ", ".join(f"{mean:.3f}" for mean in means),
        met=inside == len(means) > 0,
        numbers={name: f"{statistics.fmean(ratios):.3f}; {len(ratios)} copies, {min(ratios):.3f} to {max(ratios):.3f}"
                 for name, ratios in found.items()},
    )  # fmt: skip


def _shift(times: Times, kind: str, links: Sequence[Link]) -> Finding:
    """The best batch size of each seed with masks over that without, the mean over links and p of the log ratio."""
    target, chosen = times.middle, [each for each in masked(times.settings) if each.granularity == kind]

    def best_by_seed(each: Configuration, link: Link) -> list[int]:
        by_size = {size: times.seconds(each, size, target, link) for size in times.settings["batch_sizes"]}
        return [min(by_size, key=lambda size: by_size[size][k]) for k in range(times.settings["seeds"])]

    def shift(name: str, over: Sequence[Link]) -> Contrast:
        ours = [best_by_seed(each, link) for each in chosen for link in over]
        plain = [best_by_seed(PLAIN, link) for link in over]
        sides = [[_mean(list(map(float, sizes))) for sizes in zip(*side, strict=True)] for side in (plain, ours)]
        return paired(name, *sides, margin=SHIFT)

    shown = {}
    for link in links:
        sizes = ", ".join(f"{times.best_size(each, link)} (p = {each.drop:g})" for each in chosen)
        by_link = str(shift("by seed", [link]))
        shown[_where(link)] = f"best on tuning seeds {times.best_size(PLAIN, link)} → {sizes}; {by_link}"
    return Finding(
        claim=f"the best batch size grows with {KINDS[kind]}", numbers=shown,
        primary=shift("best batch size with masks over that without, mean over links and p", links),
        secondary=[shift(_where(link), [link]) for link in links],
        learned=_arrived(times, [PLAIN, *chosen]),
    )  # fmt: skip


def _arrived(times: Times, of: Sequence[Configuration]) -> bool:
    """Whether every configuration reaches the lowest target at some batch size with every seed."""
    lowest = times.settings["targets"][0]
    return all(
        any(not any(isinstance(count, AtLeast) for count in times.updates.needed(each, size, lowest))
            for size in times.settings["batch_sizes"])
        for each in of
    )  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    """The geometric mean; a least possible one if a value is."""
    mean = statistics.geometric_mean(values)
    return AtLeast(mean) if any(isinstance(value, AtLeast) for value in values) else mean


def _late(found: Sequence[float]) -> list[float]:
    """Those of runs that never reached the target: what they took at least."""
    return [value for value in found if isinstance(value, AtLeast)]


def _shown(found: Sequence[float]) -> Interval | str:
    late = _late(found)
    return f"more than {min(late):.3g} s in {len(late)} of {len(found)} runs" if late else geometric(found)


def _short(each: Configuration) -> str:
    return f"p = {each.drop:g}, per {each.granularity}" if each.drop else "plain gradients"


def _beside(sizes: Sequence[int], place: int) -> list[float]:
    return [size * 2 ** ((place - 2) / 16) for size in sizes]


def _where(link: Link) -> str:
    return "loopback" if link is None else f"{link} Mbit/s"


EXPERIMENT = Experiment(
    name=NAME,
    version=VERSION,
    title="Table 1: time to accuracy with DropConnect, two workers",
    claim="With DropConnect the best batch grows from 256 to 512, and two workers reach 90, 95 and 99 % training "
    "accuracy in " + " and ".join(f"{', '.join(f'{t:g}' for t in PAPER[p])} s (p = {p})" for p in (0.4, 0.5))
    + f" instead of {', '.join(f'{t:g}' for t in PAPER['plain'])} s.",
    choices="Seconds are updates × time per update. Accuracy is that of a fixed part of the training set. Each "
    "configuration has its own step size for each batch size and target. A mask per example saves no traffic; a mask "
    "per worker does; so does half precision, the rival.",
    profiles=PROFILES, cells=cells, run=run, plot=plot, summary=summary,
    group=lambda cell: cell.key if cell["kind"] == "updates" else (cell["kind"], cell["megabits"]),
    alone=lambda cell: cell["kind"] != "updates", length=expected_examples,
)  # fmt: skip
