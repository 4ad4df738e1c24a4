"""Theorem 6: at a fixed step size a batch beyond the bound costs accuracy, (1+δ)-fold; and what retuning makes of it.

Simulated mini-batch SGD on the construction of `theory.worst_case`, beside its exact recurrence. The control runs the
same batch with γ/(1+δ).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from variegrad.experiments.experiment import Experiment, Records, Settings, Values, seeds
from variegrad.experiments.intervals import interval
from variegrad.experiments.records import Cell
from variegrad.experiments.verdict import Contrast, Finding, paired
from variegrad.reports.curves import Series, panels
from variegrad.theory.worst_case_rates import simulate, worst_case

NAME, VERSION = "theorem-6", 1
PROFILES = {
    "smoke": {"step_size": 1e-2, "deltas": [0.0, 2.0], "dimension": 8, "runs": 20, "seeds": 3},
    "small": {"step_size": 1e-3, "deltas": [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0], "dimension": 64, "runs": 50,
              "seeds": 10},
    "paper": {"step_size": 1e-4, "deltas": [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0], "dimension": 64, "runs": 200,
              "seeds": 20},
}  # fmt: skip
FLOOR = 0.1  # the constant c′ that the construction reaches with curvature 4λ
MARGIN = math.log(1.1)  # primary contrasts: the error over the floor, and the control's over δ = 0, at the worst δ


def cells(settings: Settings, records: Records) -> list[Cell]:  # noqa: ARG001 - an experiment's signature
    """Every δ, with the fixed and with the retuned step size, for every seed."""
    return [
        _cell(settings, delta, retuned, seed)
        for delta in settings["deltas"] for retuned in (False, True) for seed in seeds(settings)
    ]  # fmt: skip


def run(group: Sequence[Cell]) -> list[Values]:
    """The mean squared error at the end, simulated, and by the recurrence."""
    (cell,) = group
    case = worst_case(step_size=cell["step_size"], delta=cell["delta"], dimension=cell["dimension"])
    scale = case.step_size * case.second_moment / case.strong_convexity  # γM²/λ
    if cell["retuned"]:
        gamma = case.step_size / (1 + case.delta)
        shrinks = -2 * math.log(abs(1 - gamma * case.smoothness * case.batch_size))  # what a step leaves of the error
        case = worst_case(
            step_size=gamma, batch_size=case.batch_size, dimension=case.dimension,
            initial_error=float(case.errors[0]), iterations=math.ceil(6 / shrinks),
        )  # fmt: skip
    errors, projected = simulate(case, runs=cell["runs"], seed=cell["seed"])
    return [{"error": float(errors.mean()), "expected": float(case.errors[-1]), "scale": scale, "projected": projected,
             "batch_size": case.batch_size, "iterations": len(case.errors) - 1}]  # fmt: skip


def plot(settings: Settings, records: Records) -> Figure:
    """The error in units of γM²/λ against 1+δ."""
    fixed, retuned = (
        [interval(_errors(settings, records, d, again)) for d in settings["deltas"]] for again in (False, True)
    )
    x = [1 + delta for delta in settings["deltas"]]
    series = [
        Series.of("fixed γ", x, fixed),
        Series.of("γ/(1+δ)", x, retuned),
        Series.reference("0.1·(1+δ)", x, [FLOOR * one for one in x]),
    ]
    return panels(
        "Beyond the bound, at a fixed step size", [("1 + δ", "E‖w − w*‖² in units of γM²/λ", series)],
        log_x=True, log_y=True,
    )  # fmt: skip


def summary(settings: Settings, records: Records) -> list[Finding]:
    """The floor at every δ, and the control: of each seed the δ where the claim is nearest to failing."""
    deltas = settings["deltas"]
    fixed = {delta: _errors(settings, records, delta, False) for delta in deltas}
    retuned = {delta: _errors(settings, records, delta, True) for delta in deltas}
    per_delta = {delta: [error / (1 + delta) for error in fixed[delta]] for delta in deltas}
    allowed = [1.1 * error for error in fixed[deltas[0]]]

    def above(delta: float) -> Contrast:
        return paired(f"δ = {delta:g}", [FLOOR] * len(allowed), per_delta[delta], margin=MARGIN)

    def saved(delta: float) -> Contrast:
        return paired(f"δ = {delta:g}", retuned[delta], allowed, margin=MARGIN)

    least = [min(of_seed) for of_seed in zip(*per_delta.values(), strict=True)]
    most = [max(of_seed) for of_seed in zip(*retuned.values(), strict=True)]
    return [
        Finding(
            claim="E‖w_T − w*‖² ≥ 0.1·(1+δ)γM²/λ at a fixed step size, at every δ",
            numbers={f"error over (1+δ)γM²/λ, δ = {d:g}": interval(per_delta[d]) for d in deltas},
            primary=paired("least error over the floor", [FLOOR] * len(least), least, margin=MARGIN),
            secondary=[above(delta) for delta in deltas],
        ),
        Finding(
            claim="control: with γ/(1+δ) the error is no larger than at δ = 0, up to a tenth, at every δ",
            numbers={f"error over γM²/λ with γ/(1+δ), δ = {d:g}": interval(retuned[d]) for d in deltas},
            primary=paired("1.1 times the error at δ = 0 over the largest", most, allowed, margin=MARGIN),
            secondary=[saved(delta) for delta in deltas],
        ),
    ]  # fmt: skip


def _cell(settings: Settings, delta: float, retuned: bool, seed: int) -> Cell:
    fixed = {name: settings[name] for name in ("step_size", "dimension", "runs")}
    return Cell(
        experiment=NAME, version=VERSION, values={**fixed, "delta": delta, "retuned": retuned, "seed": seed}
    )  # fmt: skip


def _errors(settings: Settings, records: Records, delta: float, retuned: bool) -> list[float]:
    found = [records[_cell(settings, delta, retuned, seed).key] for seed in seeds(settings)]
    return [record["error"] / record["scale"] for record in found]


EXPERIMENT = Experiment(
    name=NAME,
    version=VERSION,
    title="Theorem 6: the bound is tight for strongly convex functions",
    claim="There are strongly convex functions for which a batch (1 + δ)-fold beyond the bound costs the accuracy a "
    "factor (1 + δ), at the same step size and number of gradients.",
    choices="f_i(w) = (β/2)‖w − x_i‖² with β = 4λ and points ±a·e_j, started at the stationary error. δ is measured in "
    "units of the ratio M²/‖∇F‖² of expectations there. The control divides γ by 1 + δ and runs until e⁻⁶ of "
    "the error of its start is left.",
    profiles=PROFILES, cells=cells, run=run, plot=plot, summary=summary,
)  # fmt: skip
