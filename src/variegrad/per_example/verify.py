"""The engine's numbers beside the loop's, on the batch's own graph (`check` says how closely they must agree)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from variegrad.per_example import fallback
from variegrad.per_example.capture import Capture
from variegrad.per_example.check import Reference, mismatch, prints
from variegrad.per_example.knowledge import Knowledge
from variegrad.per_example.plan import Plan
from variegrad.per_example.result import Norms
from variegrad.per_example.state import hooked
from variegrad.per_example.step import Step


def compare_norms(step: Step, found: Norms, wanted: Sequence[int], places: Sequence[int]) -> None:
    """Compare the norms of some examples, and the sum; a hook of the user is asked whether it is linear.

    Args:
        step: the batch.
        found: the norms of the examples that were wanted, and the sum over all.
        wanted: these examples.
        places: those of them that are compared.

    Raises:
        RuntimeError: naming the parameter.
    """
    own = {name: step.parameters[name] for name in hooked(step.parameters)}
    plain = {name: p for name, p in step.parameters.items() if name not in own}
    reference = Reference.of(step.per_example, plain, places, step.graph.coarsest)
    if own:
        reference = reference.with_hooks(step.per_example, own)
    if not reference.finite:
        return
    names = list(plain)
    for i in places:
        values = torch.stack([found.sq_norms[name][wanted.index(i)] for name in names]).tolist() if names else []
        if worst := reference.worst_norm(i, dict(zip(names, values, strict=True))):
            raise mismatch(*worst)
    sums = torch.stack([prints(found.total[name]).to(step.per_example.device) for name in reference.names]).cpu()
    sizes = torch.stack([found.sq_norms[name].sum() for name in reference.names]).tolist()
    scale = step.count / len(wanted)
    named = dict(zip(reference.names, (scale * size for size in sizes), strict=True))
    if worst := reference.worst_sum(dict(zip(reference.names, sums, strict=True)), named):
        raise mismatch(*worst)


def compare_rows(step: Step, known: Knowledge, capture: Capture, places: Sequence[int]) -> None:
    """Compare the gradients of some examples themselves."""
    served = {name: step.parameters[name] for name in capture.covered}
    reference = Reference.of(step.per_example, served, places, step.graph.coarsest)
    if not served or not reference.finite:
        return
    for i in places:
        rows = capture.gradients(i, i + 1, served)
        if worst := reference.worst_norm(i, {name: float(prints(row[0])[0]) for name, row in rows.items()}):
            raise mismatch(*worst)
    known.rows_checked = True


def check_rows(step: Step, known: Knowledge) -> None:
    """Form the gradients of the first and the last example by the default ways, and compare them."""
    capture = Capture(step.graph, known, step.count, None, keep=True)
    capture.run(step.per_example, step.parameters, retain=True)
    if not capture.late:
        compare_rows(step, known, capture, [0, step.count - 1])


def check_few(few: Step, known: Knowledge, plan: Plan) -> None:
    """Compare all that was learned of a few examples: rows, norms of all and of one, and their sum."""
    check_rows(few, known)
    witness = Plan(measured=False)  # so few examples say nothing of speed
    witness.agreed = plan.agreed
    for examples in (None, (0,)):
        capture = Capture(few.graph, known, few.count, witness, examples=examples)
        rest = {name: few.parameters[name] for name in capture.uncovered}
        if rest:
            capture.add_gradients(fallback.stacked(few, rest, 1), rest)
        capture.run(few.per_example, few.parameters, retain=True)
        wanted = range(few.count) if examples is None else examples
        compare_norms(few, Norms.of(few, capture), wanted, sorted({wanted[0], wanted[-1]}))
    known.just_checked = True


def gone(late: Mapping[str, str]) -> RuntimeError:
    """The refusal of rows whose graph went before a rule declined: name → why."""
    return RuntimeError(
        f"how {sorted(late)} are used differs from earlier batches ({', '.join(sorted(set(late.values())))}), and the "
        "graph is gone: call again; they go to the fallback from now on."
    )
