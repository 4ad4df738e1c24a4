"""What a cell computes: loss curves from the start, or windows from a checkpoint and what was predicted there."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from variegrad.decision.branching import Trial, branch
from variegrad.decision.limits import Estimate, StepLimits
from variegrad.decision.measured import step_limits
from variegrad.decision.rules import LearningRateRule
from variegrad.estimators import Sign, Spectral, estimate, estimate_in_dual_norm
from variegrad.experiments.critical_batch.stack import EPS, MOMENTUM, Runs, Stack, second_moments
from variegrad.experiments.critical_batch.tasks import Task, task
from variegrad.experiments.records import Cell

BASE = 8  # B₀
KEPT = {"linear": 0.9, "square root": 0.5}  # share of progress at which the critical batch is read, by rule
RULES = {"linear": LearningRateRule.LINEAR, "square root": LearningRateRule.SQUARE_ROOT}
STARTS = (8, 2, 1)  # checkpoints and targets stand at N divided by these
SLOWER = (1, 4, 16)  # learning rates: the tuned one divided by these
BRANCH_SEED, CHECKPOINT_SEED, UPDATE_SEED = 10_000, 20_000, 30_000
UPDATES_LOOKED_AT = 16
PER_OCTAVE, LONGEST = 3, 3  # points of a curve; curves run to 3N


def task_of(cell: Cell) -> Task:
    """The task that a cell is about."""
    return task(cell["source"], cell["max_examples"], cell["network"], cell["pool"], cell["evaluated"])


@lru_cache(maxsize=2)
def stack_of(source: str, max_examples: int, word: str, pool: int, evaluated: int, optimizer: str) -> Stack:
    """Its runs, built once in a process."""
    return Stack(task(source, max_examples, word, pool, evaluated), optimizer)


def _stack(cell: Cell) -> Stack:
    named = ("source", "max_examples", "network", "pool", "evaluated", "optimizer")
    return stack_of(*(cell[name] for name in named))


def curves(cell: Cell) -> Mapping[str, Any]:
    """Mean loss along runs from the start at one batch size, for each learning rate of the grid.

    Args:
        cell: with `half_octaves`, the grid.

    Returns:
        `examples` of each point and `losses` [learning rate][point].
    """
    stack, batch_size = _stack(cell), cell["batch_size"]
    rates = torch.tensor([2.0 ** (k / 2) for k in cell["half_octaves"]])
    seeds = list(range(cell["seed"], cell["seed"] + cell["repeats"]))
    first, last = cell["length"] / STARTS[0] / 2, LONGEST * cell["length"]
    count = math.floor(PER_OCTAVE * math.log2(last / first))
    points = sorted({round(last / 2 ** (j / PER_OCTAVE) / batch_size) for j in range(count + 1)} - {0})
    runs = stack.start(len(rates)).spread(len(seeds))
    seen, losses = 0, []
    for updates in points:
        runs = stack.train(runs, rates, seeds=seeds, batch_size=batch_size, examples=updates * batch_size, skipped=seen)
        seen = updates * batch_size
        losses.append(stack.losses(runs).mean(0))
    start = float(stack.losses(stack.start(1))[0, 0])
    return {
        "examples": [updates * batch_size for updates in points],
        "losses": torch.stack(losses, 1).tolist(),
        "start_loss": start,
    }


def windows(cells: Sequence[Cell]) -> list[Mapping[str, Any]]:
    """Windows from checkpoints of one task and optimizer, at one learning rate each, and what was predicted there.

    Args:
        cells: one per (learning rate, checkpoint), and one for the run at the tuned rate ("along").

    Returns:
        The values of each, in their order.
    """
    one = cells[0]
    stack = _stack(one)
    wanted = [cell for cell in cells if cell["part"] == "windows"]
    slower = sorted({cell["slower"] for cell in wanted} | {1})
    tuned = 2.0 ** (one["best"] / 2)
    rates = torch.tensor([tuned / s for s in slower])
    runs, seen = stack.start(len(rates)), 0
    states: dict[tuple[int, int], Runs] = {}
    along: dict[str, list[float]] = {}
    starts = sorted(one["length"] // s for s in STARTS)
    for examples in sorted({0, *(one["length"] // 2**j // BASE * BASE for j in range(7)), *starts}):
        if examples:
            runs = stack.train(
                runs, rates, seeds=[one["seed"] + CHECKPOINT_SEED], batch_size=BASE, examples=examples, skipped=seen
            )
            seen = examples
        for name, value in {"examples": examples, **_bounds(stack, runs.at(slice(None), slice(0, 1)), tuned)}.items():
            along.setdefault(name, []).append(value)
        if examples in starts:
            for j, s in enumerate(slower):
                states[s, examples] = runs.at(slice(None), slice(j, j + 1))
    keys = [(cell["slower"], cell["checkpoint"]) for cell in wanted]
    found = _swept(stack, [states[key] for key in keys], [tuned / s for s, _ in keys], one)
    branched = _branches(stack, [states[key] for key in keys], [tuned / s for s, _ in keys], one)
    values: dict[tuple[int, int] | None, Mapping[str, Any]] = {None: along}
    for j, key in enumerate(keys):
        values[key] = {**found[j], **branched[j], "predicted": _predicted(stack, states[key], tuned / key[0], one)}
    return [values[(cell["slower"], cell["checkpoint"]) if cell["part"] == "windows" else None] for cell in cells]


def _side_by_side(states: Sequence[Runs], rows: int) -> Runs:
    def wide(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors), 1).expand(rows, -1, *tensors[0].shape[2:])

    return Runs(
        weights={name: wide([s.weights[name] for s in states]) for name in states[0].weights},
        moments={name: wide([s.moments[name] for s in states]) for name in states[0].moments},
        updates=wide([s.updates for s in states]),
    )


def _ends(
    stack: Stack, states: Sequence[Runs], rates: Sequence[float], seeds: Sequence[int], batch_size: int, window: int
) -> Tensor:
    """Losses (R, states) at the ends of windows."""
    runs = _side_by_side(states, len(seeds))
    return stack.losses(
        stack.train(runs, torch.tensor(list(rates)), seeds=seeds, batch_size=batch_size, examples=window)
    )


def _swept(stack: Stack, states: Sequence[Runs], rates: Sequence[float], cell: Cell) -> list[dict[str, Any]]:
    """Relative progress at every batch size and rule, from all repeats."""
    seeds = [cell["seed"] + r for r in range(cell["windows"])]
    start = stack.losses(_side_by_side(states, 1))[0]
    base = start - _ends(stack, states, rates, seeds, BASE, cell["window"])
    found: list[dict[str, Any]] = [
        {
            "start_loss": float(start[j]),
            "progress": [float(base[:, j].mean()), float(base[:, j].std()) / len(seeds) ** 0.5],
            "batch_sizes": list(cell["batch_sizes"]),
            **{rule: [] for rule in RULES},
            "sweep_examples": cell["window"] * len(seeds) * (1 + len(cell["batch_sizes"])),
        }
        for j in range(len(states))
    ]
    for batch_size in cell["batch_sizes"]:
        factors = [rule.factor(batch_size / BASE) for rule in RULES.values()]
        ends = _ends(
            stack,
            [*states] * len(factors),
            [eta * f for f in factors for eta in rates],
            seeds,
            batch_size,
            cell["window"],
        )
        for i, rule in enumerate(RULES):
            for j in range(len(states)):
                made = start[j] - ends[:, i * len(states) + j]
                made = made.clamp_min(-abs(float(start[j])))  # divergence is no progress
                ratio = float(made.mean() / base[:, j].mean())
                error = float((made - ratio * base[:, j]).std() / len(seeds) ** 0.5 / base[:, j].mean())
                found[j][rule].append([ratio, error])
    return found


def _branches(stack: Stack, states: Sequence[Runs], rates: Sequence[float], cell: Cell) -> list[dict[str, Any]]:
    """`vg.branch` by the linear rule at every state, on windows of its own; the stack computes them ahead."""
    seeds = [cell["seed"] + BRANCH_SEED + r for r in range(cell["branch_windows"])]
    start = stack.losses(_side_by_side(states, 1))[0].tolist()
    losses: dict[int, Tensor] = {}
    for k in (1, *(b // BASE for b in cell["batch_sizes"] if b % BASE == 0 and math.log2(b // BASE).is_integer())):
        losses[k] = _ends(stack, states, [k * eta for eta in rates], seeds, k * BASE, cell["window"])
    found = []
    for j in range(len(states)):

        def run(trial: Trial, j: int = j) -> float:
            return float(losses[trial.k][trial.seed, j])

        try:
            result = branch(
                run, batch_size=BASE, start_loss=start[j], window=cell["window"], windows=cell["branch_windows"]
            )
        except ValueError:  # the learning rate in use diverges
            found.append({"branch": [math.nan, math.nan], "branch_examples": 0, "branch_verdicts": []})
            continue
        found.append({
            "branch": [float(result.low), result.high], "branch_examples": result.examples,
            "branch_verdicts": [tested.verdict.value for tested in result.tested],
        })  # fmt: skip
    return found


def _loaded(stack: Stack, runs: Runs) -> nn.Module:
    model = copy.deepcopy(stack.task.model)
    model.load_state_dict({name: w[0, 0] for name, w in runs.weights.items()}, strict=False)
    return model


def _bounds(stack: Stack, runs: Runs, rate: float) -> dict[str, float]:
    """B_D of the gradient, of the norm layers, and in the optimizer's norm; B_H."""
    model, losses, batch = _loaded(stack, runs), stack.task.losses, stack.task.evaluated
    layers = stack.task.norm_layers()
    found = estimate(model, losses, batch, per=lambda name: "norm" if name in layers else "rest")
    bounds = {"B_D": found.batch_size_bound, "B_H": math.nan}
    if layers:
        bounds["B_D norm layers"] = found.parts["norm"].batch_size_bound
    if stack.optimizer == "adamw" and float(runs.updates[0, 0]):
        moments = second_moments(runs)
        named = {p: moments[name] for name, p in model.named_parameters()}
        bounds["B_D own norm"] = estimate(model, losses, batch, preconditioner=named).batch_size_bound
    elif stack.optimizer in ("sign", "muon"):
        bracket = estimate_in_dual_norm(
            model, losses, batch, geometry=Sign() if stack.optimizer == "sign" else Spectral()
        )
        bounds["B_D own norm"] = math.sqrt(bracket.plug_in * bracket.cross_fitted)
    else:
        bounds["B_D own norm"] = bounds["B_D"]
    bounds["B_H"] = step_limits(model, losses, batch, learning_rate=rate, batch_size=BASE).curvature_bound.value
    return bounds


def _predicted(stack: Stack, runs: Runs, rate: float, cell: Cell) -> dict[str, float]:
    """Everything that a prediction rests on, at one state and learning rate."""
    found = dict(_bounds(stack, runs, rate))
    scales = None
    if stack.optimizer == "adamw":
        scales = [1 / (v.sqrt() + EPS) for v in second_moments(runs).values()]
    limits = step_limits(
        _loaded(stack, runs), stack.task.losses, stack.task.evaluated, learning_rate=rate, batch_size=BASE,
        momentum=MOMENTUM if stack.optimizer == "momentum" else 0.0,
        preconditioner=scales,
    )  # fmt: skip
    if stack.optimizer in ("sgd", "momentum", "adamw"):
        found |= {"kappa": limits.kappa.value, "kappa low": limits.kappa.low, "kappa high": limits.kappa.high,
                  "stability": limits.stability.value}  # fmt: skip
        found |= {f"kappa limit, {rule}": _alone(limits, rule) for rule in RULES}
        found |= {
            f"step limit, {rule}": limits.limit(RULES[rule], tolerance=1 - KEPT[rule]).batch_size for rule in RULES
        }
    found["kappa of update"] = _kappa_of_update(stack, runs, rate, cell)
    return found


def _alone(limits: StepLimits, rule: str) -> float:
    """The κ limit without stability, at the estimate of κ; NaN if the step makes no progress at that κ."""
    kappa = limits.kappa.value
    if not kappa < 1:
        return math.nan
    exact, none = Estimate(value=kappa, low=kappa, high=kappa), Estimate(value=0.0, low=0.0, high=0.0)
    return replace(limits, kappa=exact, stability=none).limit(RULES[rule], tolerance=1 - KEPT[rule]).batch_size


def _kappa_of_update(stack: Stack, runs: Runs, rate: float, cell: Cell) -> float:
    """½ΔᵀHΔ/|⟨G, Δ⟩| over updates Δ of B₀ examples, from losses at w + Δ and w − Δ."""
    seeds = [cell["seed"] + UPDATE_SEED + r for r in range(UPDATES_LOOKED_AT)]
    here = runs.spread(len(seeds))
    there = stack.train(here, torch.tensor([rate]), seeds=seeds, batch_size=BASE, examples=BASE)
    back = replace(there, weights={name: 2 * w - there.weights[name] for name, w in here.weights.items()})
    ahead, behind, now = (float(stack.losses(each).mean()) for each in (there, back, runs))
    first = (behind - ahead) / 2
    return (ahead + behind - 2 * now) / 2 / first if first > 0 else math.nan
