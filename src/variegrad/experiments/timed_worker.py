"""What each process of a timed run does: `python -m variegrad.experiments.timed_worker SPECIFICATION RESULT`.

The specification is a JSON list of runs; worker 0 writes a JSON list of results. Time is what the updates took (data,
gradients, communication); evaluations do not count.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from variegrad.distributed.workers import workers
from variegrad.distributed.world import World
from variegrad.experiments import data
from variegrad.experiments.training_run import fresh
from variegrad.files import write_whole
from variegrad.mechanisms import DropConnect
from variegrad.per_example.evaluate import NotFinite
from variegrad.training import Cadence, Evaluation, TrainConfig, train


def timed(spec: Mapping[str, Any], world: World) -> dict[str, Any]:
    """One timed run.

    Args:
        spec: problem, max_examples, network, batch_size, step_size, drop, rescale, granularity, seed; and either
            `updates` (how many are timed, after two that are not) or `passes`, `every` (passes) and `target`.
        world: the workers.

    Returns:
        `seconds` of each timed update; or `seconds`, `passes` and `accuracies` at each evaluation; and whether the run
        `diverged`, after which there are no more of them.
    """
    problem = data.problem(spec["problem"], spec["max_examples"])
    examples = data.tensors(spec["problem"], spec["max_examples"])
    model = fresh(spec, examples).to(world.device)
    warm, timed_updates = 2, spec.get("updates")
    passes = spec["passes"] if timed_updates is None else (warm + timed_updates) * spec["batch_size"] / len(examples)
    config = TrainConfig(
        batch_size=spec["batch_size"], step_size=spec["step_size"], passes=float(passes), seed=spec["seed"],
        mechanism=DropConnect(spec["drop"], rescale=spec["rescale"]) if spec["drop"] else None,
        granularity=spec["granularity"],
    )  # fmt: skip
    scored = problem.accuracy
    assert scored is not None
    evaluation = None
    if timed_updates is None:
        evaluation = Evaluation(
            accuracy=scored, data=examples, every=Cadence(passes=float(spec["every"])), target=spec["target"]
        )
    found: dict[str, list[float]] = {"seconds": [], "passes": [], "accuracies": []}
    total, diverged = 0.0, False
    try:
        for step in train(model, problem.losses, examples, config, world, evaluation=evaluation):
            spent = step.seconds.data + step.seconds.compute + step.seconds.communication
            total += spent
            if timed_updates is not None and step.updates > warm:
                found["seconds"].append(spent)
            if step.accuracy is not None:
                found["seconds"].append(total)
                found["passes"].append(step.passes)
                found["accuracies"].append(step.accuracy)
    except NotFinite:  # the same on all workers
        diverged = True
    return {**found, "diverged": diverged}


def main(specification: Path, result: Path) -> None:
    """Run every specification in turn.

    Args:
        specification: the JSON list of runs.
        result: where worker 0 writes.
    """
    with workers(timeout=600.0) as world:
        results = [timed(spec, world) for spec in json.loads(specification.read_text(encoding="utf-8"))]
        if world.is_first:
            write_whole(result, json.dumps(results, allow_nan=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
