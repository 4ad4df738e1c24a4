"""What is learned of a graph when its structure is first met: who owns which gradient, and the uses of each parameter.

Backward passes under weights show the owners; where no other values could change them (`routing`), a few examples of
the batch show the same as all, at the cost of a few, provided that their graph has the same structure.
"""

from __future__ import annotations

import warnings

from torch import nn
from torch.utils.checkpoint import CheckpointError

from variegrad.per_example.capture import Capture
from variegrad.per_example.coupling import refuse_batch_statistics, refuse_if_coupled
from variegrad.per_example.evaluate import evaluate
from variegrad.per_example.graph import ACCUMULATE, EMBED_IN_ZEROS, REARRANGE, structure
from variegrad.per_example.knowledge import Knowledge
from variegrad.per_example.ownership import probe_ownership
from variegrad.per_example.state import hooked, left_as_found, on_copies_of_buffers
from variegrad.per_example.step import Step
from variegrad.per_example.trial import Trial
from variegrad.per_example.uses import IRREGULAR_AT, MIXED_AT, Use, from_parameters_alone, uses_of

# A new structure is learned from this share of the examples, at least two and at most a few, if they are conclusive.
FEW_SHARE, FEWEST, MOST = 1 / 8, 2, 7


def learn(step: Step) -> Knowledge:
    """Learn from this batch as a whole, and refuse coupled examples.

    Raises:
        ValueError: if the examples are coupled.
        NotFinite: if some gradient is not finite.
    """
    known = observe(step)
    if known.suspects and step.losses is None:
        known.leave_out(known.suspects, step.graph)  # without the function it cannot be known
    elif known.suspects:
        refuse_if_coupled(step, known.suspects)
    rehearse(step, known)
    _warn_of_strays(step)
    return known


def learn_from_a_few(step: Step) -> tuple[Knowledge, Step] | None:
    """Learn from the first few examples of the batch alone, if that is conclusive for the whole batch."""
    size = min(max(FEWEST, int(step.count * FEW_SHARE)), MOST)
    if not step.can_be_cut or step.graph.opaque or step.count < 2 * size:
        return None
    assert step.losses is not None
    try:
        with left_as_found(step.model), on_copies_of_buffers(step.model):
            few = step.part(size)
            alone = Step.of(step.model, step.losses, few, evaluate(step.model, step.losses, few), step.parameters)
            if alone.count != size or structure(alone.graph) != structure(step.graph):
                return None
            known = observe(alone)
            irregular = any(why.startswith(IRREGULAR_AT) for why in known.uncovered.values())
            if not known.routed or irregular:  # of two or three examples, coupled ones may look like that
                return None
            rehearse(alone, known)
            return known, alone
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError, AssertionError):
        return None  # cutting the batch is an experiment: whatever it is, the whole batch will tell


def observe(step: Step) -> Knowledge:
    """What backward passes alone say: owners, uses, and which parameters a coupling could have mixed.

    Raises:
        ValueError: if batch statistics couple the examples.
        NotFinite: if some gradient is not finite.
    """
    graph, dtype = step.graph, step.graph.coarsest
    nodes = [node for node in graph.order if node.name() != ACCUMULATE]
    owners = probe_ownership(step.per_example, nodes, step.ends, dtype)
    known = Knowledge({(graph.number[node], output): owner for (node, output), owner in owners.items()})
    uses: dict[str, list[Use]] = {}
    dormant: dict[tuple[int, int], None] = {}
    refuse_batch_statistics(step, known.owners)
    for name in step.parameters:
        found = uses_of(graph, known.owners, name)
        dormant.update(dict.fromkeys((graph.number[arc.node], arc.slot) for arc in found.dormant))
        if found.reason is not None:
            known.uncovered[name] = found.reason
            if found.reason.startswith(MIXED_AT):
                known.suspects[name] = found.reason
            continue
        uses[name] = found.uses
        for use in found.uses:
            odd = [n.name() for n in use.chain if n.name() not in REARRANGE and n.name() not in EMBED_IN_ZEROS]
            if odd and (step.can_be_cut or not from_parameters_alone(graph, use)):
                known.suspects[name] = f"it reaches the examples through {odd[0]}"
    for name in hooked(step.parameters):
        known.uncovered[name] = "it has a hook, which only a pass for each example shows"
        uses.pop(name, None)
    known.dormant = list(dormant)
    known.settle(uses, graph)
    trial = Trial(step.per_example, known.layouts(graph), step.ends, dtype)
    if mixed := trial.failed(trial.unweighted()):
        why = "examples are mixed in some entries"
        wrong = [name for name, each in uses.items() if any(use.arc.node in mixed for use in each)]
        known.suspects.update(dict.fromkeys(wrong, why))
        known.leave_out(dict.fromkeys(wrong, why), graph)
    return known


def rehearse(step: Step, known: Knowledge) -> None:
    """Find out which rules decline, and whether saved inputs can be read during the pass."""
    for _ in range(2):
        rehearsal = Capture(step.graph, known, step.count, None, totals=False, rehearse=True)
        try:
            rehearsal.run(step.per_example, step.parameters, retain=True)
        except CheckpointError:
            if known.deferred:
                raise
            known.deferred = True
        else:
            break
    if rehearsal.late:
        known.leave_out(rehearsal.late, step.graph)


def _warn_of_strays(step: Step) -> None:
    strays = [leaf for leaf in step.graph.strays if isinstance(leaf, nn.Parameter)]
    if strays:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in strays[:4])
        warnings.warn(
            f"the losses depend on {len(strays)} trained parameter(s) outside the model (shapes {shapes}): their "
            "gradients are not counted. Register them in the model, or give a module that holds both.",
            stacklevel=2,
        )
