"""What is done once, when a graph of a new structure is met: learn it, rehearse it, check it against the loop.

Where a few examples have a graph of the same structure, and what is learnt of it is certain, they say all: then no
values and no number of examples could make it different, and the many passes cost the memory and time of a few.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from variegrad.batches import Batch, map_tensors, shared_length
from variegrad.per_example import fallback
from variegrad.per_example.capture import Capture
from variegrad.per_example.evaluate import Losses, evaluate, left_as_found, on_copies_of_buffers
from variegrad.per_example.graph import Graph, read_graph
from variegrad.per_example.knowledge import Knowledge, learn, observe
from variegrad.per_example.trust import structure
from variegrad.per_example.verify import LOW_PRECISION_TOLERANCE, TOLERANCE, Expected, fingerprint, mismatch
from variegrad.shapes import Float

# A new structure is learnt from this share of the examples, at least two and at most a few, where they say all.
FEW_SHARE, FEWEST, MOST = 1 / 8, 2, 7

# (graph, what is known of it, batch, its losses) → what the engine does with them is right, or an error.
Check = Callable[[Graph, Knowledge, Batch, Tensor], None]


def learn_from_all(
    graph: Graph,
    model: nn.Module,
    losses: Losses | None,
    batch: Batch,
    per_example: Float[Tensor, " b"],
    parameters: Mapping[str, nn.Parameter],
) -> Knowledge:
    """Learn from the whole batch, and find out which rules decline.

    Args:
        graph: the graph of the losses.
        model: the unwrapped model.
        losses: the user's function; None where only the losses are at hand.
        batch: the batch.
        per_example: the losses.
        parameters: the trained parameters.

    Returns:
        What was learnt.
    """
    known = learn(graph, model, losses, batch, per_example, parameters)
    _rehearse(graph, known, per_example, parameters)
    return known


def learn_from_a_few(
    graph: Graph,
    model: nn.Module,
    losses: Losses | None,
    batch: Batch,
    count: int,
    parameters: Mapping[str, nn.Parameter],
    check: Check | None,
) -> Knowledge | None:
    """Learn and check on the first few examples of the batch alone, where that says all about the whole batch.

    Args:
        graph: the graph of the whole batch.
        model: the unwrapped model.
        losses: the user's function; None where only the losses are at hand.
        batch: the batch.
        count: b.
        parameters: the trained parameters.
        check: what to check; None for nothing.

    Returns:
        What was learnt; None where the whole batch must be asked.
    """
    size = min(max(FEWEST, int(count * FEW_SHARE)), MOST)
    if losses is None or graph.opaque or count < 2 * size or shared_length(batch) != count:
        return None
    try:
        few = map_tensors(lambda t: t[:size].detach().clone().requires_grad_(t.requires_grad), batch)
        with left_as_found(model), on_copies_of_buffers(model):
            alone = evaluate(model, losses, few)
            assert alone.grad_fn is not None
            part = read_graph(alone.grad_fn, parameters)
            if len(alone) != size or structure(part) != structure(graph):
                return None
            known = observe(part, model, alone, parameters)
            if known.certain:
                _rehearse(part, known, alone, parameters)
                if check is not None:
                    check(part, known, few, alone)
    except Exception:  # noqa: BLE001 - whatever it is, the whole batch will say it in its own terms
        return None
    return known if known.certain else None


def _rehearse(graph: Graph, known: Knowledge, per_example: Tensor, parameters: Mapping[str, nn.Parameter]) -> None:
    for _ in range(2):
        rehearsal = Capture(graph, known, len(per_example), None, totals=False, rehearse=True)
        try:
            rehearsal.run(per_example, parameters, retain=True)
        except CheckpointError:
            if known.deferred:
                raise
            known.deferred = True
        else:
            break
    known.leave_out(rehearsal.late)


def by_the_loop(
    graph: Graph, per_example: Tensor, parameters: Mapping[str, nn.Parameter], examples: Sequence[int]
) -> Expected:
    """What the loop says of some examples, and autograd of the sum; the graph is kept.

    Args:
        graph: the graph of the losses.
        per_example: the losses.
        parameters: the trained parameters.
        examples: which examples.

    Returns:
        A few numbers a parameter.
    """
    # Gradients are reduced to a few numbers at once: a check must not cost the memory that the engine saves.
    sq_norms = {
        i: {name: fingerprint(g).sq_norm for name, g in fallback.one_gradient(per_example, i, parameters).items()}
        for i in examples
    }
    ones = torch.ones_like(per_example)
    whole = torch.autograd.grad([per_example], list(parameters.values()), [ones], retain_graph=True, allow_unused=True)
    total = {name: fingerprint(g) for name, g in zip(parameters, whole, strict=True)}
    return Expected(sq_norms, total, graph.low_precision)


def check_rows(capture: Capture, expected: Expected, parameters: Mapping[str, nn.Parameter], count: int) -> None:
    """Compare the gradients of the first and the last example that rules form with the loop's.

    Args:
        capture: what rules kept.
        expected: what the loop says of these two.
        parameters: the trained parameters.
        count: b.

    Raises:
        RuntimeError: naming the parameter that differs.
    """
    for i in (0, count - 1):
        whole = sum(expected.sq_norms[i].values())
        for name in capture.covered:
            ((_, rows),) = capture.gradients(i, i + 1, {name: parameters[name]}).items()
            off = abs(fingerprint(rows[0]).sq_norm - expected.sq_norms[i][name])
            limit = LOW_PRECISION_TOLERANCE if expected.low_precision else TOLERANCE[rows.dtype]
            if not off <= limit * whole:
                raise mismatch(name, off / whole if whole else off)
