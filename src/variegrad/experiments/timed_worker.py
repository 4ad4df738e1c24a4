"""What each process of a timed run does: `python -m variegrad.experiments.timed_worker SPECIFICATION RESULT`.

The specification is JSON: {"turns": …} for the time per update of several configurations in turns, or {"wholes": …} for
whole runs; worker 0 writes the results. Seconds are wall-clock time of updates (data, gradients, communication);
evaluations and the first updates of a configuration, in which the engine learns its model, do not count.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import TensorDataset

from variegrad.distributed.workers import workers
from variegrad.distributed.world import World
from variegrad.experiments import data
from variegrad.experiments.training_run import fresh
from variegrad.experiments.updates_to_accuracy import evaluated
from variegrad.files import write_whole
from variegrad.mechanisms import DropConnect
from variegrad.per_example.evaluate import NotFinite
from variegrad.training import TrainConfig, WithReplacement, train
from variegrad.training.evaluation import mean_of

WARM = 3  # updates before the first that is timed
SETTLED = 0.03  # seconds of updates before a turn: after the update of a larger batch, memory is not as it was


def in_turns(specs: Sequence[Mapping[str, Any]], world: World, *, turns: int, updates: int) -> list[list[list[float]]]:
    """The time per update of several configurations, which take turns in random order: all see the same machine.

    Args:
        specs: of each configuration: problem, max_examples, network, batch_size, step_size, seed, drop and granularity
            ("example", "worker", or "half": plain gradients that are added up in float16).
        world: the workers.
        turns: how often each has its turn.
        updates: timed in a turn; before them come some that are not, for `SETTLED` seconds, at least one.

    Returns:
        By configuration and turn, the seconds of each timed update on this worker.
    """
    running = [_updates(spec, world, _model(spec, world)) for spec in specs]
    before = []  # updates before a turn, the same on every worker
    for updates_of in running:
        each = world.add_up([min(_seconds(updates_of, WARM))])[0] / world.size
        before.append(max(1, math.ceil(SETTLED / each)))
    found: list[list[list[float]]] = [[] for _ in specs]
    for turn in range(turns):
        for k in torch.randperm(len(specs), generator=torch.Generator().manual_seed(turn)).tolist():
            world.add_up([0.0])  # all begin together
            found[k].append(_seconds(running[k], before[k] + updates)[before[k] :])
    return found


def whole(spec: Mapping[str, Any], world: World) -> dict[str, Any]:
    """One run from its starting weights to an accuracy, its updates timed.

    Args:
        spec: as for `in_turns`, and `target`, `most_examples`, `first` and `scored` as for `updates_to_accuracy`.
        world: the workers.

    Returns:
        `updates`, `accuracies` and `seconds` since the start, at each evaluation.
    """
    problem, examples = data.problem(spec["problem"], spec["max_examples"]), _examples(spec)
    scored = TensorDataset(*(column[: spec["scored"]] for column in examples.tensors))
    assert problem.accuracy is not None
    model = _model(spec, world)
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    _seconds(_updates(spec, world, model), WARM)
    model.load_state_dict(start)
    found: dict[str, list[float]] = {"updates": [], "accuracies": [], "seconds": []}
    size, total = spec["batch_size"], 0.0
    running = _updates(spec, world, model)
    world.add_up([0.0])  # all begin together, here and after each evaluation: no update waits for another worker's
    for number in range(1, math.ceil(spec["most_examples"] / size) + 1):
        try:
            total += _seconds(running, 1)[0]
        except NotFinite:  # the same on all workers
            break
        if evaluated((number - 1) * size, number * size, spec["first"]):
            accuracy = mean_of(problem.accuracy, model, scored)
            for name, value in (("updates", number), ("accuracies", accuracy), ("seconds", total)):
                found[name].append(value)
            if accuracy >= spec["target"]:
                break
            world.add_up([0.0])
    return dict(found)


def _updates(spec: Mapping[str, Any], world: World, model: nn.Module) -> Iterator[object]:
    """The updates of a run, without end."""
    if spec["granularity"] == "half":
        return _in_half_precision(spec, world, model)
    config = TrainConfig(
        batch_size=spec["batch_size"], step_size=spec["step_size"], passes=math.inf, seed=spec["seed"],
        mechanism=DropConnect(spec["drop"]) if spec["drop"] else None, granularity=spec["granularity"],
    )  # fmt: skip
    return iter(
        train(model, data.problem(spec["problem"], spec["max_examples"]).losses, _examples(spec), config, world)
    )


def _in_half_precision(spec: Mapping[str, Any], world: World, model: nn.Module) -> Iterator[object]:
    """Plain gradients, added up over workers in float16: the mean over the batch, as DDP's own hook sends it."""
    examples, sampling, size = _examples(spec), WithReplacement(), spec["batch_size"]
    losses = data.problem(spec["problem"], spec["max_examples"]).losses
    weights = list(model.parameters())
    position = 0
    while True:
        share = world.share(size)
        here = range(position + share.start, position + share.stop)
        indices = sampling.samples(spec["seed"], here, len(examples))
        losses(model, tuple(column[indices] for column in examples.tensors)).sum().backward()
        flat = torch.cat([weight.grad.ravel() for weight in weights if weight.grad is not None])
        flat = (flat / size).half()
        if world.size > 1:
            dist.all_reduce(flat)
        if not bool(flat.isfinite().all()):
            raise NotFinite("a gradient is not finite.")
        with torch.no_grad():
            for weight, part in zip(weights, flat.float().split([w.numel() for w in weights]), strict=True):
                weight.sub_(part.view_as(weight), alpha=spec["step_size"] * size)
                weight.grad = None
        position += size
        yield position


def _seconds(running: Iterator[object], count: int) -> list[float]:
    """Wall-clock seconds of the next updates, one by one."""
    found = []
    for _ in range(count):
        began = time.perf_counter()
        next(running)
        found.append(time.perf_counter() - began)
    return found


def _model(spec: Mapping[str, Any], world: World) -> nn.Module:
    return fresh(spec, _examples(spec)).to(world.device)


def _examples(spec: Mapping[str, Any]) -> TensorDataset:
    return data.tensors(spec["problem"], spec["max_examples"])


def main(specification: Path, result: Path) -> None:
    """Do what is asked for.

    Args:
        specification: its JSON.
        result: where worker 0 writes.
    """
    asked = json.loads(specification.read_text(encoding="utf-8"))
    with workers(timeout=600.0) as world:
        found = carry_out(asked, world)
        if world.is_first:
            write_whole(result, json.dumps(found, allow_nan=False))


def carry_out(asked: Mapping[str, Any], world: World) -> list[Any]:
    """What a specification asks for.

    Args:
        asked: {"specs", "turns", "updates"} or {"specs"}.
        world: the workers.

    Returns:
        One result per configuration.
    """
    if "turns" in asked:
        return in_turns(asked["specs"], world, turns=asked["turns"], updates=asked["updates"])
    return [whole(spec, world) for spec in asked["specs"]]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
