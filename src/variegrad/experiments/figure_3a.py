"""Figure 3a: runs on data sets that differ in one example from the first, and how far their weights end up from it.

All runs of a seed start alike and draw the same positions; several examples are replaced, one at a time, and all twins
are compared with one unchanged run. √(‖w−w′‖²/(‖w‖²+‖w′‖²)) and the differential B_D(w, w′) along the way, with the
step size γ of the sum held fixed across batch sizes, and with the step size tuned for each.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.data import TensorDataset

from variegrad.experiments import data, training_run
from variegrad.experiments.experiment import Experiment, Records, Settings, Values, seeds
from variegrad.experiments.intervals import geometric
from variegrad.experiments.records import Cell, Record
from variegrad.experiments.step_sizes import step_size
from variegrad.experiments.tuned_runs import Configuration, TunedRuns
from variegrad.experiments.verdict import Check, Contrast, Finding, learned, paired
from variegrad.measurement import measure_differential
from variegrad.per_example.evaluate import Losses, NotFinite
from variegrad.problems import neighbours
from variegrad.reports.curves import Series, panels
from variegrad.training import TrainConfig, train
from variegrad.training.evaluation import mean_of

NAME, VERSION = "figure-3a", 2
MARGIN = math.log(1.1)  # primary contrast: the distance at the end, from the smallest to the largest batch
BOUNDS_EVERY = 2  # B_D(w, w′) is measured at every second point, for the first replaced example
SMALL: dict[str, Any] = {
    "problem": "cifar10/2", "without_data": "digits", "max_examples": 1024, "network": "convnet:8",
    "batch_sizes": [16, 64, 256], "grid": [-20, -16, -12, -8], "passes": 40, "points": 8, "replaced": 4, "seeds": 10,
    "tuning": 2,
}  # fmt: skip
PROFILES = {
    "smoke": {**SMALL, "problem": "digits", "max_examples": 96, "network": "mlp:8:relu", "batch_sizes": [8, 32],
              "grid": [-16, -12], "passes": 2, "points": 2, "replaced": 2, "seeds": 2},
    "small": SMALL,
    "paper": {**SMALL, "problem": "cifar10", "max_examples": None, "network": "convnet:64",
              "batch_sizes": [32, 128, 512, 1024], "passes": 50, "points": 20, "seeds": 3},
}  # fmt: skip


def cells(settings: Settings, records: Records) -> list[Cell]:
    """A step-size search for each batch size; then twins at its step size, and at the largest one's γ."""
    configurations = _configurations(settings)
    searches = [RUNS.search(settings, records, configuration) for configuration in configurations]
    every = [cell for found in searches for cell in found.cells]
    if all(found.best is not None for found in searches):
        for size in settings["batch_sizes"]:
            for fixed in (True, False):
                every += [cell for of_seed in _twins(settings, records, size, fixed=fixed) for cell in of_seed]
    return list({cell.key: cell for cell in every}.values())


def run(group: Sequence[Cell], device: torch.device = data.CPU) -> list[Values]:
    """A run of the search; or the twins of one unchanged run."""
    if "replaced" not in group[0].values:
        return [training_run.run_once(group[0], device)]
    cell = group[0]
    problem = data.problem(cell["problem"], cell["max_examples"])
    whole = data.on_device(cell["problem"], cell["max_examples"], device)
    model = training_run.fresh(cell, data.tensors(cell["problem"], cell["max_examples"])).to(device)
    start = mean_of(problem.losses, model, whole)
    base = _trajectory(model, problem.losses, whole, cell)
    losses = [start, *[_loss_at(weights, model, problem.losses, whole) for weights in base]]
    losses += [math.inf] * (len(cell["at"]) - len(base))
    found: list[Values] = []
    for twin in group:
        held_out = data.test_set(twin["problem"], device)
        pair = neighbours(whole, held_out, seed=1000 * twin["seed"] + twin["replaced"])
        assert isinstance(pair.second, TensorDataset)
        other = _trajectory(model, problem.losses, pair.second, twin)
        bounds = [] if twin["replaced"] else [
            _bound(model, problem.losses, whole, *weights)
            for weights in list(zip(base, other, strict=False))[BOUNDS_EVERY - 1 :: BOUNDS_EVERY]
        ]  # fmt: skip
        far = [_distance(*weights) for weights in zip(base, other, strict=False)]
        found.append({
            "passes": [samples / len(whole) for samples in cell["at"]], "losses": losses, "bounds": bounds,
            "distances": [*far, *[math.nan] * (len(cell["at"]) - len(far))],
        })  # fmt: skip
    return found


def distances(settings: Settings, records: Records, batch_size: int, *, fixed: bool) -> list[list[float]]:
    """The distances along the run of every seed, geometric means over its replaced examples.

    Args:
        settings: of the profile.
        records: finished.
        batch_size: B.
        fixed: whether γ is the same for all batch sizes.

    Returns:
        One list per seed.
    """
    return [
        [geometric(at).mean for at in zip(*(records[cell.key]["distances"] for cell in of_seed), strict=True)]
        for of_seed in _twins(settings, records, batch_size, fixed=fixed)
    ]


def plot(settings: Settings, records: Records) -> Figure:
    """Distance against passes, for each batch size and both choices of the step size."""
    parts = []
    for fixed, title in ((True, "same γ"), (False, "γ tuned for each B")):
        series = []
        for size in settings["batch_sizes"]:
            runs = distances(settings, records, size, fixed=fixed)
            passes = records[_twins(settings, records, size, fixed=fixed)[0][0].key]["passes"]
            series.append(Series.of(f"B = {size}", passes, [geometric(at) for at in zip(*runs, strict=True)]))
        parts.append(("passes over the data", f"distance, {title}", series))
    return panels("Normalised distance of twin runs", parts, log_y=True, same_y=True)


def summary(settings: Settings, records: Records) -> list[Finding | Check]:
    """Whether the distance at the end grows with the batch size."""
    sizes = settings["batch_sizes"]
    findings: list[Finding | Check] = []
    for fixed, title in ((False, "with γ tuned for each B"), (True, "with the same γ for all B")):
        ends = {size: [run[-1] for run in distances(settings, records, size, fixed=fixed)] for size in sizes}

        def growth(few: int, many: int, far: Mapping[int, Sequence[float]] = ends) -> Contrast:
            return paired(f"B = {few} to {many}", far[few], far[many], margin=MARGIN)

        findings.append(Finding(
            claim=f"the normalised distance at the end grows with B, {title}",
            numbers={f"B = {size}": geometric(ends[size]) for size in sizes},
            primary=growth(sizes[0], sizes[-1]), secondary=[growth(*pair) for pair in pairwise(sizes)],
            learned=_have_learned(settings, records, fixed=fixed),
        ))  # fmt: skip
    least = {
        size: [min(map(float, records[of_seed[0].key]["bounds"])) for of_seed in
               _twins(settings, records, size, fixed=False)]
        for size in sizes
    }  # fmt: skip

    def below(size: int) -> Contrast:
        return paired(f"least B_D(w, w′) over B = {size}", [size] * len(least[size]), least[size], margin=MARGIN)

    findings.append(Finding(
        claim="the largest batch stays below the differential bound B_D(w, w′) met along the run (empirical, no bound)",
        numbers={f"least B_D(w, w′), B = {size}": geometric(least[size]) for size in sizes},
        primary=below(sizes[-1]), secondary=[below(size) for size in sizes[:-1]],
        learned=_have_learned(settings, records, fixed=False),
    ))  # fmt: skip
    return [*findings, RUNS.interior(settings, records, _configurations(settings))]


def _have_learned(settings: Settings, records: Records, *, fixed: bool) -> bool:
    """Whether the unchanged runs have."""
    runs: list[Record] = [
        records[of_seed[0].key] for size in settings["batch_sizes"]
        for of_seed in _twins(settings, records, size, fixed=fixed)
    ]  # fmt: skip
    return learned(runs)


def _trajectory(model: nn.Module, losses: Losses, examples: TensorDataset, cell: Cell) -> list[Tensor]:
    """The weights at each point of a run from the model's own, which are left as they are; fewer if it diverges."""
    start = parameters_to_vector(model.parameters()).detach().clone()
    config = TrainConfig(
        batch_size=cell["batch_size"], step_size=cell["step_size"], passes=cell["at"][-1] / len(examples),
        seed=cell["seed"],
    )  # fmt: skip
    found: list[Tensor] = []
    try:
        for step in train(model, losses, examples, config):
            if step.examples >= cell["at"][len(found)]:
                weights = parameters_to_vector(model.parameters()).detach().clone()
                if not weights.isfinite().all():
                    break
                found.append(weights)
    except NotFinite:
        pass
    vector_to_parameters(start, model.parameters())
    return found


def _distance(w: Tensor, v: Tensor) -> float:
    one, other = w.double(), v.double()
    return float((one - other).norm() / (one @ one + other @ other).sqrt())


def _loss_at(weights: Tensor, model: nn.Module, losses: Losses, examples: TensorDataset) -> float:
    return mean_of(losses, _with(model, weights), examples)


def _bound(model: nn.Module, losses: Losses, examples: TensorDataset, w: Tensor, v: Tensor) -> float:
    """B_D(w, w′) over all examples; +inf where the weights are equal."""
    if torch.equal(w, v):
        return math.inf
    return measure_differential(_with(model, w), _with(model, v), losses, examples).batch_size_bound


def _with(model: nn.Module, weights: Tensor) -> nn.Module:
    other = copy.deepcopy(model)
    vector_to_parameters(weights, other.parameters())
    return other


def _twins(settings: Settings, records: Records, batch_size: int, *, fixed: bool) -> list[list[Cell]]:
    """The cells of every seed, one per replaced example."""
    of = max(settings["batch_sizes"]) if fixed else batch_size
    gamma = step_size(RUNS.best(settings, records, {"batch_size": of}), of)
    return [
        [
            Cell(experiment=NAME, version=VERSION, values={
                **_values(settings, {}, False), "batch_size": batch_size, "step_size": gamma, "seed": seed,
                "replaced": replaced,
            })
            for replaced in range(settings["replaced"])
        ]
        for seed in seeds(settings)
    ]  # fmt: skip


def _configurations(settings: Settings) -> list[Configuration]:
    return [{"batch_size": size} for size in settings["batch_sizes"]]


def _values(settings: Settings, configuration: Configuration, tuning: bool) -> Mapping[str, Any]:  # noqa: ARG001
    fixed = {name: settings[name] for name in ("problem", "max_examples", "data", "network")}
    at = training_run.aligned(
        settings["passes"], settings["points"], settings["examples"], max(settings["batch_sizes"])
    )
    return {**fixed, "at": at[-1:] if tuning else at}


RUNS = TunedRuns(
    experiment=NAME, version=VERSION, values=_values, score=lambda record: float(record["end_loss"])
)  # fmt: skip
EXPERIMENT = Experiment(
    name=NAME,
    version=VERSION,
    title="Figure 3a: stability, the distance of twin runs",
    claim="The normalised distance between the models of two data sets that differ in one point grows with the "
    "batch size.",
    choices="The replaced example comes from the test set; all runs of a seed draw the same positions, with "
    "replacement, without augmentation or dropout. Four examples are replaced per seed, one at a time. The step size "
    "is tuned for the mean loss over the last pass. The paper does not say how it depends on the batch: both readings "
    "are shown. The small profile has 1,024 images of 16 × 16 pixels, an eighth of the network's channels and batches "
    "of 16 to 256.",
    profiles=PROFILES, cells=cells, run=run, plot=plot, summary=summary, on_device=True,
    group=lambda cell: (cell["batch_size"], cell["step_size"], cell["seed"], "replaced" in cell.values),
)  # fmt: skip
