"""Which rule serves which parameter, in which variant, at what cost: the engine's own account of itself."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn

from variegrad.batches import Batch
from variegrad.per_example.capture import Capture
from variegrad.per_example.chains import as_one
from variegrad.per_example.engine import Engine
from variegrad.per_example.evaluate import Losses, evaluate, trained_parameters, unwrap
from variegrad.per_example.plan import following
from variegrad.per_example.state import left_as_found
from variegrad.per_example.step import Step


@dataclass(frozen=True, kw_only=True)
class Served:
    """How one parameter's per-example gradients are found.

    Attributes:
        parameter: its name.
        shape: its shape.
        uses: the graph nodes that use it, as (name, input) pairs.
        rule: what forms or avoids its gradients: a variant of a rule, or the fallback and why.
        milliseconds: what that took here, for the whole batch; None for the fallback.
        megabytes: the working memory that it asks for at once; None for the fallback.
    """

    parameter: str
    shape: tuple[int, ...]
    uses: tuple[str, ...]
    rule: str
    milliseconds: float | None
    megabytes: float | None


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The account for one model and one batch; printing it gives a table.

    Attributes:
        examples: b.
        served: one entry a parameter.
    """

    examples: int
    served: tuple[Served, ...]

    def __str__(self) -> str:
        from rich.console import Console  # noqa: PLC0415 - only if it is printed
        from rich.table import Table  # noqa: PLC0415

        table = Table(title=f"Per-example gradient norms of {self.examples} examples", title_justify="left", box=None)
        for head in ("parameter", "shape", "used by", "rule"):
            table.add_column(head)
        for head in ("ms", "MB"):
            table.add_column(head, justify="right")
        for s in self.served:
            cost = "–" if s.milliseconds is None else f"{s.milliseconds:.2f}"
            memory = "–" if s.megabytes is None else f"{s.megabytes:.1f}"
            shape = "×".join(map(str, s.shape)) or "scalar"
            table.add_row(s.parameter, shape, ", ".join(s.uses) or "unused", s.rule, cost, memory)

        console = Console(width=140)
        with console.capture() as text:
            console.print(table)
        return text.get().rstrip()


def explain(model: nn.Module, losses: Losses, batch: Batch) -> Explanation:
    """Say which rule serves which parameter, what it costs, and which parameters go to the exact fallback and why.

    Args:
        model: the model, in the mode in which to measure it; left as it was found.
        losses: `losses(model, batch) → (b,)`.
        batch: a typical batch of at least two examples.

    Returns:
        The account; print it.

    Raises:
        ValueError: for what `example_sq_norms` refuses, or for a batch of fewer than two examples.
    """
    model = unwrap(model)
    parameters = trained_parameters(model)
    engine = Engine()
    with left_as_found(model):
        per_example = evaluate(model, losses, batch)
        count = len(per_example)
        if count < 2:
            raise ValueError(f"explain needs a batch of at least 2 examples; got {count}.")
        step = Step.of(model, losses, batch, per_example, parameters)
        if step.graph.hides_parameters:
            why = "fallback: a re-entrant checkpoint hides its parameters from the graph"
            served = [
                Served(parameter=n, shape=tuple(p.shape), uses=(), rule=why, milliseconds=None, megabytes=None)
                for n, p in parameters.items()
            ]
            return Explanation(examples=count, served=tuple(served))
        capture = Capture(step.graph, engine.knowledge(step), count, engine.plan, keep=True)
        capture.run(per_example, parameters, retain=True)
        with torch.no_grad(), following(engine.plan):
            return Explanation(
                examples=count,
                served=tuple(_served(name, p, capture) for name, p in parameters.items()),
            )


def _served(name: str, parameter: nn.Parameter, capture: Capture) -> Served:
    why = {**capture.known.uncovered, **capture.late}.get(name)
    uses = tuple(f"{use.arc.node.name()}[{use.arc.slot}]" for use in capture.uses.get(name, []))
    parts = capture.kept(name)
    milliseconds = megabytes = None
    if why is not None:
        rule = f"fallback: {why}"
    elif not parts:
        rule = "no gradient reaches it"
    else:
        joint = as_one(parts)
        whole = parts[0][1] if joint is None else joint[1]
        whole.summed()  # the first visit may time its variants
        start = time.perf_counter()
        whole.summed()
        milliseconds = 1e3 * (time.perf_counter() - start)
        megabytes = whole.working_bytes / 1e6
        rule = whole.way
        if joint is None:
            rule += ", carried down to the parameter"
    return Served(
        parameter=name,
        shape=tuple(parameter.shape),
        uses=uses,
        rule=rule,
        milliseconds=milliseconds,
        megabytes=megabytes,
    )
