"""Figure 2a: how much a large batch falls behind a small one under r-replication; logistic regression, two classes.

For each r, with and without DropConnect: the loss at batch size B over the loss at a small one, at equal numbers of
samples, averaged over all updates. All runs of one (seed, r, B) are one stack (`stacked_logistic`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import torch
from matplotlib.figure import Figure
from torch.utils.data import TensorDataset

from variegrad.experiments import data
from variegrad.experiments.experiment import Experiment, Records, Settings, Values
from variegrad.experiments.intervals import geometric, interval
from variegrad.experiments.loss_ratio import MARGIN, configurations, online_ratios, repeats, replication
from variegrad.experiments.records import Cell, Record
from variegrad.experiments.stacked_logistic import run_stack
from variegrad.experiments.training_run import aligned
from variegrad.experiments.tuned_runs import Configuration, TunedRuns
from variegrad.experiments.verdict import Check, Contrast, Finding, learned, paired
from variegrad.problems import logistic_regression, replicate
from variegrad.reports.curves import Series, panels

NAME, VERSION = "figure-2a", 2
SMALL: dict[str, Any] = {
    "problem": "cifar10-pair", "without_data": "digits", "max_examples": None,
    "replications": [1, 2, 4, 8, 16, 32, 64, 128], "batch_sizes": [16, 512], "drops": [0.0, 0.5],
    "grid": list(range(-40, -12, 4)), "passes": 10, "points": 20, "seeds": 20, "tuning": 3,
}  # fmt: skip
PROFILES = {
    "smoke": {**SMALL, "problem": "digits", "max_examples": 240, "replications": [1, 8], "batch_sizes": [4, 32],
              "grid": [-16, -12, -8], "passes": 4, "points": 4, "seeds": 3, "tuning": 2},
    "small": SMALL,
    "paper": {**SMALL, "passes": 100, "points": 100},
}  # fmt: skip


def cells(settings: Settings, records: Records) -> list[Cell]:
    """Every configuration's step-size search, and every seed at the step size found."""
    return RUNS.cells(settings, records, configurations(settings))


def run(group: Sequence[Cell]) -> list[Values]:
    """The runs of one seed, replication and batch size, as one stack."""
    first = group[0]
    x, y = data.tensors(first["problem"], first["max_examples"]).tensors
    features = torch.cat([x.flatten(1), torch.ones(len(x), 1)], 1)  # the last weight is the intercept
    signs = torch.where(2 * y > y.max(), 1.0, -1.0)  # with more than two classes: their upper against their lower half
    weights = torch.cat(
        [p.detach().ravel() for p in logistic_regression(x[0].numel(), seed=first["seed"]).parameters()]
    )
    each = TensorDataset(torch.arange(len(y)))
    copies = each if first["r"] == 1 else replicate(each, first["r"], seed=first["seed"])
    assert isinstance(copies, TensorDataset)
    curves = run_stack(
        features, signs, weights, copies.tensors[0],
        batch_size=first["batch_size"], step_sizes=[cell["step_size"] for cell in group],
        drops=[cell["drop"] for cell in group], seed=first["seed"],
        at=[samples // first["batch_size"] for samples in first["at"]],
    )  # fmt: skip
    return [{"losses": c.losses, "bounds": c.bounds, "online_loss": c.online_loss} for c in curves]


def ratios(settings: Settings, records: Records, drop: float, r: int) -> tuple[list[float], list[float]]:
    """The mean loss over all updates, large B over small B, and the large batch's over the B_D it met, by seed.

    Args:
        settings: of the profile.
        records: finished.
        drop: p of DropConnect, 0 for none.
        r: the replication.

    Returns:
        The ratios, and (B−1)/B_D averaged over the large batch's run.
    """
    small, large = settings["batch_sizes"]
    one, other = (_repeats(settings, records, drop, r, size) for size in (small, large))
    crowding = [sum((large - 1) / bound for bound in many["bounds"]) / len(many["bounds"]) for many in other]
    return online_ratios(one, other), crowding


def plot(settings: Settings, records: Records) -> Figure:
    """The ratio against r, and against how far the batch is beyond B_D."""
    small, large = settings["batch_sizes"]
    by_r, by_bound = [], []
    for drop in settings["drops"]:
        both = [ratios(settings, records, drop, r) for r in settings["replications"]]
        label = f"DropConnect {drop:g}" if drop else "no mechanism"
        means = [geometric(ratio) for ratio, _ in both]
        by_r.append(Series.of(label, settings["replications"], means))
        notes = [f"r = {r}" for r in settings["replications"]] if not drop else ()
        by_bound.append(Series.of(label, [interval(c).mean for _, c in both], means, joined=False, notes=notes))
    what = f"mean loss, B = {large} over {small}"
    return panels(
        "A large batch falls behind under replication",
        [("replication r", what, by_r), ("(B − 1)/$B_D$, mean over the run", what, by_bound)],
        log_x=True, log_y=True,
    )  # fmt: skip


def summary(settings: Settings, records: Records) -> list[Finding | Check]:
    """Whether the ratio grows with r, and whether DropConnect lowers it; the loss itself as the control."""
    runs = repeats(RUNS, settings, records)
    plain, dropped = settings["drops"]
    every, large = settings["replications"], settings["batch_sizes"][1]
    losses = {(drop, r): [float(record["online_loss"]) for record in runs[drop, r, large]]
              for drop, r in product(settings["drops"], every)}  # fmt: skip

    def pooled(drop: float) -> list[float]:
        return [math.prod(of_seed) ** (1 / len(every)) for of_seed in
                zip(*(losses[drop, r] for r in every), strict=True)]  # fmt: skip

    def gain(r: int) -> Contrast:
        return paired(f"r = {r}", losses[dropped, r], losses[plain, r], margin=MARGIN)

    return [
        *replication(settings, runs),
        Finding(
            claim=f"control, not in the paper: at B = {large} itself DropConnect lowers the mean loss",
            numbers={f"loss without over with DropConnect, r = {r}": geometric(
                [a / b for a, b in zip(losses[plain, r], losses[dropped, r], strict=True)]) for r in every},
            primary=paired("without over with DropConnect, mean over r", pooled(dropped), pooled(plain), margin=MARGIN),
            secondary=[gain(r) for r in every], learned=all(map(learned, runs.values())),
        ),
        RUNS.interior(settings, records, configurations(settings)),
    ]  # fmt: skip


def _repeats(settings: Settings, records: Records, drop: float, r: int, batch_size: int) -> list[Record]:
    return RUNS.repeats(settings, records, {"drop": drop, "r": r, "batch_size": batch_size})


def _values(settings: Settings, configuration: Configuration, tuning: bool) -> Mapping[str, Any]:  # noqa: ARG001
    at = aligned(settings["passes"], settings["points"], settings["examples"], max(settings["batch_sizes"]))
    return {**{key: settings[key] for key in ("problem", "max_examples", "data")}, "at": at[-1:] if tuning else at}


RUNS = TunedRuns(experiment=NAME, version=VERSION, values=_values)
EXPERIMENT = Experiment(
    name=NAME,
    version=VERSION,
    title="Figure 2a: replication and DropConnect, logistic regression",
    claim="The more the data are replicated, the more a large batch falls behind a small one; it does best with "
    "DropConnect.",
    choices="Airplane against automobile, n = 10,000. Draws with replacement (equation 2), no weight decay. "
    "DropConnect with p = 0.5 on each example's gradient, rescaled. Losses over the replicated training set "
    "at equal numbers of samples. One step size for each configuration, of least mean training loss over all "
    "iterations: with r ≥ 2 there are fewer distinct examples than twice the parameters, the data become "
    "separable, and a criterion that looks at late losses alone would prefer ever larger steps.",
    profiles=PROFILES, cells=cells, run=run, plot=plot, summary=summary,
    group=lambda cell: (cell["seed"], cell["r"], cell["batch_size"]),
)  # fmt: skip
