"""Theorem 7 on real gradients: B_D, B_DIM and B_eff for the three mechanisms along a run, drawn and in closed form.

B_DIM is n·E Σ‖m(g_i)‖²/E‖Σ m(g_i)‖², one draw of the mechanism an example; B_eff is what Lemma 1 needs, defined by
E‖Σ_b m(g_s)‖² = b·M²·(1 + (b−1)/B_eff) for b draws with replacement, with fresh noise for each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Size, Tensor
from torch.utils.data import TensorDataset

from variegrad.experiments import data
from variegrad.experiments.experiment import Experiment, Records, Settings, Values, seeds
from variegrad.experiments.intervals import Interval, geometric
from variegrad.experiments.records import Cell
from variegrad.experiments.training_run import aligned, fresh
from variegrad.experiments.verdict import Check, Finding, paired
from variegrad.keys import generator, hashed
from variegrad.mechanisms import DropConnect, Langevin, Mechanism, Quantize
from variegrad.mechanisms.draws import Draws
from variegrad.moments import GradientMoments
from variegrad.per_example import example_gradients
from variegrad.reports.curves import Series, panels
from variegrad.shapes import Float
from variegrad.training import TrainConfig, train

NAME, VERSION = "mechanisms", 3
MARGIN = math.log(1.02)  # primary contrast: drawn over closed form, geometric mean over points and mechanisms
SMALL: dict[str, Any] = {
    "problem": "mnist", "without_data": "digits", "max_examples": 500, "network": "mnist-cnn:2", "batch_size": 32,
    "step_size": 2**-3 / 32, "passes": 8, "points": 5, "p": 0.5, "noise": 1.0, "draws": 20, "batches": 60, "seeds": 12,
}  # fmt: skip
PROFILES = {
    "smoke": {**SMALL, "problem": "digits", "max_examples": 64, "network": "mlp:4:relu", "passes": 2, "points": 1,
              "draws": 10, "batches": 20, "seeds": 2},
    "small": SMALL,
    "paper": {**SMALL, "max_examples": 2000, "network": "mnist-cnn:8", "draws": 100, "batches": 200, "seeds": 10},
}  # fmt: skip
NAMES = ("DropConnect", "Langevin", "quantisation")
QUANTITIES = ("B_DIM", "B_eff")


def cells(settings: Settings, records: Records) -> list[Cell]:  # noqa: ARG001 - an experiment's signature
    """Each mechanism along the run of each seed."""
    return [_cell(settings, name, seed) for name in NAMES for seed in seeds(settings)]


def run(group: Sequence[Cell]) -> list[Values]:
    """Measure one mechanism at points of a plain run."""
    (cell,) = group
    problem = data.problem(cell["problem"], cell["max_examples"])
    examples = data.tensors(cell["problem"], cell["max_examples"])
    found: dict[str, list[float]] = {
        name: [] for name in ("passes", "B_D", "B_DIM", "B_eff", "B_DIM drawn", "B_eff drawn")
    }
    mechanism: Mechanism | None = None
    for passes, gradients in _along(cell, problem.losses, examples):
        mechanism = mechanism or _mechanism(cell, gradients)
        exact = GradientMoments.from_gradients(gradients)
        l1 = float((gradients.double().abs().sum(1) * gradients.double().norm(dim=1)).sum())
        diversity = GradientMoments(
            count=exact.count, sum_sq_norms=exact.sum_sq_norms, gradient_sum=exact.gradient_sum, sum_l1_l2_norms=l1
        ).diversity
        one_each, in_batches = _drawn(cell, mechanism, gradients, round(passes * len(gradients)))
        for name, value in (
            ("passes", passes), ("B_D", diversity.batch_size_bound), ("B_DIM", diversity.bound_with(mechanism)),
            ("B_eff", diversity.effective_bound_with(mechanism)), ("B_DIM drawn", one_each),
            ("B_eff drawn", in_batches),
        ):  # fmt: skip
            found[name].append(value)
    return [found]


def plot(settings: Settings, records: Records) -> Figure:
    """The three bounds along the run, for each mechanism."""
    parts = []
    for name in NAMES:
        found = [records[_cell(settings, name, seed).key] for seed in seeds(settings)]
        passes = found[0]["passes"]

        def series(quantity: str, runs: Any = found) -> list[Interval]:
            return [geometric(at) for at in zip(*(record[quantity] for record in runs), strict=True)]

        parts.append(("passes over the data", f"{name}: examples", [
            Series.of("$B_D$", passes, series("B_D")),
            Series.of(r"$B_{\mathrm{DIM}}$, drawn", passes, series("B_DIM drawn")),
            Series.of(r"$B_{\mathrm{eff}}$, drawn", passes, series("B_eff drawn")),
            Series.reference("closed forms", passes, [one.mean for one in series("B_DIM")]),
            Series.reference("", passes, [one.mean for one in series("B_eff")]),
        ]))  # fmt: skip
    return panels("Effect of each mechanism on the bound", parts, log_y=True)


def summary(settings: Settings, records: Records) -> list[Finding | Check]:
    """Theorem 7 in closed form at every point met, and how well the closed forms predict the draws."""
    findings: list[Finding | Check] = []
    runs = {name: [records[_cell(settings, name, seed).key] for seed in seeds(settings)] for name in NAMES}
    for name, quantity in product(NAMES, QUANTITIES):
        raised = [[b / a for a, b in zip(record["B_D"], record[quantity], strict=True)] for record in runs[name]]
        least = min(map(min, raised))
        findings.append(Check(
            claim=f"{name} raises the bound: {quantity} > B_D at every point of every run (closed form)", met=least > 1,
            found=f"least {quantity}/B_D = {least:.4g}; at the end {geometric([run[-1] for run in raised])}",
        ))  # fmt: skip
    for quantity in QUANTITIES:
        off = {name: [_mean_ratio(record[quantity], record[f"{quantity} drawn"]) for record in found]
               for name, found in runs.items()}  # fmt: skip
        pooled = [math.prod(of_seed) ** (1 / len(NAMES)) for of_seed in zip(*off.values(), strict=True)]
        findings.append(Finding(
            claim=f"{quantity}: the draws differ from the closed form",
            numbers={name: geometric(values) for name, values in off.items()},
            primary=paired("drawn over closed form", [1.0] * len(pooled), pooled, margin=MARGIN),
            secondary=[paired(name, [1.0] * len(pooled), values, margin=MARGIN) for name, values in off.items()],
        ))  # fmt: skip
    return findings


def _mean_ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """The geometric mean of other/one along a run."""
    return math.exp(sum(math.log(b / a) for a, b in zip(one, other, strict=True)) / len(one))


def _drawn(cell: Cell, mechanism: Mechanism, gradients: Float[Tensor, "n d"], place: int) -> tuple[float, float]:
    """B_DIM and B_eff from draws of the mechanism."""
    count, calls = len(gradients), 0

    def draw(rows: Float[Tensor, "t d"]) -> Float[Tensor, "t d"]:
        nonlocal calls
        calls += 1
        key = hashed(cell["seed"], cell["mechanism"], place, calls)
        norms = rows.double().norm(dim=1)
        return mechanism.draw(rows, Draws(
            key=key, example_key=key, positions=range(len(rows)), shape=Size(rows.shape[1:]), like=rows, norms=norms,
        ))  # fmt: skip

    parts = total = 0.0
    for _ in range(cell["draws"]):
        noisy = draw(gradients).double()
        parts += float(noisy.square().sum())
        total += float(noisy.sum(0).square().sum())
    mean_square = parts / cell["draws"] / count
    b = count  # the larger, the more of the sum is what B_eff is read from; the law holds for every b
    choice = generator(cell["seed"], "batches", place)
    of_batch = 0.0
    for _ in range(cell["batches"]):
        of_batch += float(draw(gradients[choice.integers(0, count, size=b)]).double().sum(0).square().sum())
    excess = of_batch / cell["batches"] / (b * mean_square) - 1
    return count * parts / total, (b - 1) / excess if excess > 0 else math.inf


def _along(cell: Cell, losses: Any, examples: TensorDataset) -> Iterator[tuple[float, Tensor]]:
    """Per-example gradients at the start and at the points of a plain run."""
    model = fresh(cell, examples)
    batch = examples.tensors

    def gradients() -> Tensor:
        chunks = example_gradients(model, losses, batch)
        return torch.cat([torch.cat([rows.flatten(1) for rows in chunk.values()], 1) for chunk in chunks])

    yield 0.0, gradients()
    config = TrainConfig(
        batch_size=cell["batch_size"], step_size=cell["step_size"], passes=cell["at"][-1] / len(examples),
        seed=cell["seed"],
    )  # fmt: skip
    for step in train(model, losses, examples, config):
        if step.examples in cell["at"]:
            yield step.passes, gradients()


def _mechanism(cell: Cell, gradients: Float[Tensor, "n d"]) -> Mechanism:
    """The mechanism of a cell; Langevin's σ is relative to the gradients at the start: dσ² = noise·M²."""
    sigma = math.sqrt(cell["noise"] * float(gradients.double().square().mean()))
    chosen: dict[str, Mechanism] = {
        "DropConnect": DropConnect(cell["p"]), "Langevin": Langevin(sigma), "quantisation": Quantize(),
    }  # fmt: skip
    return chosen[cell["mechanism"]]


def _cell(settings: Settings, name: str, seed: int) -> Cell:
    fixed = {key: settings[key] for key in (
        "problem", "max_examples", "data", "network", "batch_size", "step_size", "p", "noise", "draws", "batches"
    )}  # fmt: skip
    at = aligned(settings["passes"], settings["points"], settings["examples"], settings["batch_size"])
    return Cell(experiment=NAME, version=VERSION, values={**fixed, "mechanism": name, "seed": seed, "at": at})


EXPERIMENT = Experiment(
    name=NAME,
    version=VERSION,
    title="Theorem 7 on real gradients: three mechanisms along a run",
    claim="DropConnect, stochastic gradient Langevin dynamics and quantised gradients raise the batch-size bound "
    "wherever it is at most n.",
    choices="Drawn on the per-example gradients of a convolutional network at points of one plain run per seed: p = "
    "0.5, and Langevin noise whose squared norm dσ² equals the mean squared gradient norm M² at the start. Both forms "
    "of the bound: one draw per example (B_DIM, the paper's) and fresh noise for each draw with replacement (B_eff, "
    "what Lemma 1 needs).",
    profiles=PROFILES, cells=cells, run=run, plot=plot, summary=summary,
)  # fmt: skip
