"""The paper's open question: how width, depth and activation change gradient diversity, at the start and along a run.

One factor is varied at a time, for a multilayer perceptron and for a convolutional network; B_D is exact, over the same
examples for all of them. Step sizes are tuned for each network alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.figure import Figure

from variegrad.experiments import stacked_runs, training_run
from variegrad.experiments.experiment import Experiment, Records, Settings
from variegrad.experiments.intervals import Interval, geometric
from variegrad.experiments.records import Cell, Record
from variegrad.experiments.tuned_runs import Configuration, TunedRuns
from variegrad.experiments.verdict import Check, Contrast, Finding, learned, paired
from variegrad.reports.curves import Series, panels

NAME, VERSION = "structure", 2
MARGIN = math.log(1.1)  # primary contrast: B_D along the run, between the ends of a factor, or tanh over ReLU
SMALL: dict[str, Any] = {
    "problem": "mnist", "without_data": "digits", "max_examples": 500, "batch_size": 32, "passes": 16, "points": 4,
    "grid": [-20, -16, -12, -8], "seeds": 40, "tuning": 2,
    "width": {"mlp:16x16:relu": 16, "mlp:64x64:relu": 64, "mlp:256x256:relu": 256, "mlp:1024x1024:relu": 1024},
    "channels": {"mnist-cnn:2": 2, "mnist-cnn:4": 4, "mnist-cnn:8": 8, "mnist-cnn:16": 16},
    "depth": {"mlp:64:relu": 1, "mlp:64x64:relu": 2, "mlp:64x64x64x64:relu": 4,
              "mlp:64x64x64x64x64x64x64x64:relu": 8},
    "activation": {"mlp:64x64:relu": "relu", "mlp:64x64:gelu": "gelu", "mlp:64x64:tanh": "tanh",
                   "mlp:64x64:sigmoid": "sigmoid", "mlp:64x64:identity": "none"},
    "cnn activation": {"mnist-cnn:4": "relu", "mnist-cnn:4:gelu": "gelu", "mnist-cnn:4:tanh": "tanh"},
}  # fmt: skip
PROFILES = {
    "smoke": {**SMALL, "problem": "digits", "max_examples": 96, "passes": 1, "points": 2, "grid": [-20, -16, -12],
              "seeds": 2, "width": {"mlp:4:relu": 4, "mlp:16:relu": 16}, "channels": {},
              "depth": {"mlp:4:relu": 1, "mlp:4x4:relu": 2}, "activation": {"mlp:4:relu": "relu", "mlp:4:tanh": "tanh"},
              "cnn activation": {}},
    "small": SMALL,
    "paper": {**SMALL, "problem": "cifar10", "max_examples": 10_000, "passes": 20, "seeds": 10,
              "channels": {f"convnet:{c}": c for c in (8, 16, 32, 64)},
              "cnn activation": {f"convnet:16:{a}": a for a in ("relu", "gelu", "tanh")}},
}  # fmt: skip
FACTORS = ("depth", "width", "channels", "activation", "cnn activation")
MOMENTS: dict[str, Callable[[Record], float]] = {
    "at the start": lambda record: float(record["bounds"][0]),
    "least on the way": lambda record: min(map(float, record["bounds"])),
    "at the end": lambda record: float(record["bounds"][-1]),
    "along the run": lambda record: len(record["bounds"]) / sum(1 / float(bound) for bound in record["bounds"]),
}  # the last is the harmonic mean, on which the passes that a batch needs depend
MAIN = "along the run"


def cells(settings: Settings, records: Records) -> list[Cell]:
    """Every network's step-size search, and its repeats at the step size found."""
    return RUNS.cells(settings, records, _configurations(settings))


def bounds(settings: Settings, records: Records, word: str, moment: str) -> list[float]:
    """B_D of a network at its tuned step size, by seed.

    Args:
        settings: of the profile.
        records: finished.
        word: the network.
        moment: one of MOMENTS.

    Returns:
        One number per seed.
    """
    return [MOMENTS[moment](record) for record in _repeats(settings, records, word)]


def plot(settings: Settings, records: Records) -> Figure:
    """B_D at the start, its least and at the end, against each factor."""
    parts, words_at = [], []
    for factor in (f for f in FACTORS if settings[f]):
        levels = settings[factor]
        numeric = all(isinstance(level, int) for level in levels.values())
        x = list(levels.values()) if numeric else [2**k for k in range(len(levels))]
        series = [
            Series.of(
                moment, x, [geometric(bounds(settings, records, word, moment)) for word in levels], joined=numeric
            )
            for moment in MOMENTS
        ]
        parts.append((factor, "$B_D$ (examples)", series))
        words_at.append(None if numeric else (x, list(levels.values())))
    figure = panels("Structure and gradient diversity", parts, log_x=True, log_y=True)
    for ax, places in zip(figure.axes, words_at, strict=True):
        if places is not None:
            ax.set_xticks(*places)
    return figure


def summary(settings: Settings, records: Records) -> list[Finding | Check]:
    """For width, channels and depth: does more of it mean more diversity? For activations: does tanh, beside ReLU?

    Levels whose network does not learn with every seed are left out, and named.
    """
    findings: list[Finding | Check] = []
    for factor in (f for f in FACTORS if settings[f]):
        levels = {level: word for word, level in settings[factor].items()}
        able = [level for level, word in levels.items() if learned(_repeats(settings, records, word))]
        ordered = all(isinstance(level, int) for level in levels)
        first, last = ((able or list(levels))[0], (able or list(levels))[-1]) if ordered else ("relu", "tanh")

        def contrast(moment: str, one: Any, other: Any, of: dict[Any, str] = levels) -> Contrast:
            pair = (bounds(settings, records, of[level], moment) for level in (one, other))
            return paired(f"{one} to {other}, {moment}", *pair, margin=MARGIN)

        others = [] if ordered else [level for level in able if level not in (first, last)]
        numbers: dict[str, Interval | str] = {
            str(level): geometric(bounds(settings, records, word, MAIN))
            if level in able
            else "left out: does not learn"
            for level, word in levels.items()
        }
        findings.append(Finding(
            claim=f"B_D along the run grows with {factor}" if ordered else
            f"B_D along the run is larger with tanh than with relu, {factor}",
            numbers=numbers,
            primary=contrast(MAIN, first, last),
            secondary=[*(contrast(moment, first, last) for moment in MOMENTS if moment != MAIN),
                       *(contrast(MAIN, first, level) for level in others)],
            learned=len(able) > 1 and {first, last} <= set(able),
        ))  # fmt: skip
    return [*findings, RUNS.interior(settings, records, _configurations(settings))]


def _repeats(settings: Settings, records: Records, word: str) -> list[Record]:
    return RUNS.repeats(settings, records, {"network": word, "batch_size": settings["batch_size"]})


def _configurations(settings: Settings) -> list[Configuration]:
    words = dict.fromkeys(word for factor in FACTORS for word in settings[factor])
    return [{"network": word, "batch_size": settings["batch_size"]} for word in words]


def _values(settings: Settings, configuration: Configuration, tuning: bool) -> Mapping[str, Any]:
    at = training_run.aligned(settings["passes"], settings["points"], settings["examples"], configuration["batch_size"])
    fixed = {name: settings[name] for name in ("problem", "max_examples", "data")}
    return {**fixed, "at": at[-1:] if tuning else at, "bounds_every": 0 if tuning else 1}


RUNS = TunedRuns(experiment=NAME, version=VERSION, values=_values)
EXPERIMENT = Experiment(
    name=NAME,
    version=VERSION,
    title="Open question: structure and gradient diversity",
    claim="Left open by the paper: how width, depth and activation functions impact gradient diversity.",
    choices="One factor at a time, from a perceptron with two hidden layers of 64 and a convolutional network with 4 "
    "and 8 channels, in PyTorch's default initialisation. The same training examples for every network (500 in the "
    "small profile, 16 passes at B = 32), one step size for each network, of least mean training loss; B_D is exact.",
    profiles=PROFILES, cells=cells, run=stacked_runs.run, plot=plot, summary=summary, on_device=True,
    stack=stacked_runs.stack,
)  # fmt: skip
