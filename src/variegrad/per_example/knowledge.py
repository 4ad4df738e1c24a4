"""What is learnt of a graph when its structure is first met: whose gradient is whose, and each parameter's uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.autograd.graph import Node

from variegrad.batches import Batch
from variegrad.per_example.coupling import refuse_batch_statistics, refuse_if_coupled
from variegrad.per_example.evaluate import Losses
from variegrad.per_example.graph import ACCUMULATE, EMBED_IN_ZEROS, REARRANGE, Arc, Graph, Use, lowest, outputs
from variegrad.per_example.ownership import ZERO, Layout, Owner, confirm_ownership, probe_ownership
from variegrad.per_example.prepared import from_parameters_alone
from variegrad.per_example.rules import RULES
from variegrad.per_example.trust import keeps_examples_apart
from variegrad.shapes import Float

MIXED_AT = "examples are mixed at"
# A parameter that is prepared by more operations than this before its use is left to the fallback.
MOST_BETWEEN = 256


@dataclass(frozen=True)
class Program:
    """The uses of every covered parameter, by the numbers of the nodes.

    Attributes:
        uses: parameter → (node, slot, chain) of each use.
        bottom: the lowest nodes that are visited.
    """

    uses: Mapping[str, list[tuple[int, int, tuple[int, ...]]]]
    bottom: list[int]


@dataclass
class Knowledge:
    """What has been learnt of graphs of one structure; sizes may differ.

    Attributes:
        owners: (number of a node in the graph's order, its output) → who owns the gradient there.
        certain: whether every layout that matters was determined beyond doubt, so that it holds for other batches.
        uncovered: parameters that no rule covers → why.
        suspects: parameters whose gradients could be mixed by a coupling of the examples → why.
        verified: whether the sums of two examples were checked against the loop.
        rows_verified: whether the gradients themselves of two examples were.
        vectorize: whether vmap works for the uncovered parameters; None where not tried.
        everything_looped: whether the graph hides parameters, so that only the loop is right.
        deferred: whether saved inputs must be read after the backward pass (activation checkpoints give them out once
            in a pass).
    """

    owners: Mapping[tuple[int, int], Owner]
    certain: bool = True
    uncovered: dict[str, str] = field(default_factory=dict)
    suspects: dict[str, str] = field(default_factory=dict)
    verified: bool = False
    rows_verified: bool = False
    vectorize: bool | None = None
    everything_looped: bool = False
    deferred: bool = False
    _program: Program | None = None

    def program(self, graph: Graph) -> Program:
        """Which nodes to visit for which parameters, and where the backward pass may stop.

        Args:
            graph: a graph of this structure.

        Returns:
            The same for every graph of this structure, by the nodes' numbers; worked out once.
        """
        if self._program is None or not self.certain:
            uses = {name: self.uses(graph, name)[0] for name in graph.leaves if name not in self.uncovered}
            bottom = lowest(graph, {use.arc.node for each in uses.values() for use in each})
            self._program = Program(
                uses={
                    name: [
                        (graph.number[use.arc.node], use.arc.slot, tuple(graph.number[node] for node in use.chain))
                        for use in each
                    ]
                    for name, each in uses.items()
                },
                bottom=[graph.number[node] for node in bottom],
            )
        return self._program

    def leave_out(self, parameters: Mapping[str, str]) -> None:
        """Leave parameters to the fallback from now on.

        Args:
            parameters: name → why.
        """
        self.uncovered.update(parameters)
        self._program = None

    def owner(self, graph: Graph, node: Node) -> Owner | None:
        """Who owns the first gradient that arrives at a node.

        Args:
            graph: a graph of this structure.
            node: a node of it.

        Returns:
            The owner; None where no gradient arrives.
        """
        number = graph.number[node]
        first = self.owners.get((number, 0))
        if isinstance(first, Layout):
            return first
        found = [o for k in range(len(outputs(node))) if (o := self.owners.get((number, k))) is not None]
        return next((o for o in found if o != ZERO), found[0] if found else None)

    def uses(self, graph: Graph, name: str) -> tuple[list[Use], str | None]:
        """For each path from a parameter up to the losses, the first node whose gradient is owned example by example.

        Args:
            graph: a graph of this structure.
            name: the parameter.

        Returns:
            The uses, and why the parameter is not covered, or None.
        """
        if name not in graph.leaves:
            return [], None
        found: list[Arc] = []
        # The nodes between the parameter and its uses; several paths through them may meet again.
        between = {graph.leaves[name]}
        climb = list(graph.above[graph.leaves[name]])
        while climb:
            arc = climb.pop()
            owner = self.owner(graph, arc.node)
            if owner is None or owner == ZERO:
                # Nothing but zeros arrived here: nothing to add this time, whoever owns it.
                self.certain = self.certain and owner is None
                continue
            if isinstance(owner, Layout):
                if arc.node.name() not in RULES:
                    passed = [n.name() for n in between if n.name() not in REARRANGE | EMBED_IN_ZEROS | {ACCUMULATE}]
                    return [], f"{MIXED_AT} {passed[0]}" if passed else f"no rule for {arc.node.name()}"
                found.append(arc)
            elif len(between) > MOST_BETWEEN or not graph.above[arc.node]:
                return [], f"{MIXED_AT} {arc.node.name()}"
            elif arc.node not in between:
                between.add(arc.node)
                climb.extend(graph.above[arc.node])
        return [Use(arc, _below(arc, between)) for arc in found], None

    def fits(self, graph: Graph, count: int) -> bool:
        """Whether these layouts can be those of this graph: each example dimension is a multiple of b.

        Args:
            graph: a graph of this structure.
            count: b.

        Returns:
            Whether they can.
        """
        for number in {number for each in self.program(graph).uses.values() for number, _, _ in each}:
            owner = self.owner(graph, graph.order[number])
            if isinstance(owner, Layout):
                shape = outputs(graph.order[number])[0].shape
                size = shape[owner.dim] if owner.dim < len(shape) else 0
                if size % count or (owner.single and size != count) or size == 0:
                    return False
        return True


def learn(
    graph: Graph,
    model: nn.Module,
    losses: Losses | None,
    batch: Batch,
    per_example: Float[Tensor, " b"],
    parameters: Mapping[str, nn.Parameter],
) -> Knowledge:
    """Probe a graph, find the uses of its parameters, and refuse coupled examples.

    Args:
        graph: the graph.
        model: the unwrapped model.
        losses: the user's function; None where only the losses are at hand.
        batch: the batch.
        per_example: the losses; their graph is kept.
        parameters: the trained parameters.

    Returns:
        What was learnt.

    Raises:
        ValueError: if the examples are coupled, or whether they are cannot be known.
    """
    # Without the function, a part of the batch cannot be evaluated alone; what the graph shows must do.
    known = observe(graph, model, per_example, parameters, by_graph=losses is None)
    if known.suspects:
        refuse_if_coupled(graph, model, losses, batch, per_example, known.suspects)
    return known


def observe(
    graph: Graph,
    model: nn.Module,
    per_example: Float[Tensor, " b"],
    parameters: Mapping[str, nn.Parameter],
    *,
    by_graph: bool = False,
) -> Knowledge:
    """What backward passes alone say: owners, uses, and which parameters could be mixed by a coupling (`suspects`).

    Args:
        graph: the graph.
        model: the unwrapped model.
        per_example: the losses; their graph is kept.
        parameters: the trained parameters.
        by_graph: whether a parameter is above suspicion where the graph shows that parameters alone prepare it.

    Returns:
        What was learnt.

    Raises:
        ValueError: if batch statistics couple the examples.
    """
    nodes = [node for node in graph.order if node.name() != ACCUMULATE]
    owners = probe_ownership(per_example, nodes, [p for name, p in parameters.items() if name in graph.leaves])
    known = Knowledge({(graph.number[node], output): owner for (node, output), owner in owners.items()})
    derived = known.suspects
    for name in parameters:
        uses, reason = known.uses(graph, name)
        touched = [node for use in uses for node in (use.arc.node, *use.chain)]
        refuse_batch_statistics(model, name, [*touched, *_consumers(graph, name)], [use.arc for use in uses])
        if reason is not None:
            known.uncovered[name] = reason
            if reason.startswith(MIXED_AT):
                derived[name] = reason
        for use in uses:
            owner = known.owner(graph, use.arc.node)
            if isinstance(owner, Layout):
                known.certain = known.certain and owner.certain
            odd = [n.name() for n in use.chain if n.name() not in REARRANGE and n.name() not in EMBED_IN_ZEROS]
            if odd and not (by_graph and from_parameters_alone(use)):
                derived[name] = f"it reaches the examples through {odd[0]}"
    layouts = {
        node: owner
        for name in parameters
        if name not in known.uncovered
        for use in known.uses(graph, name)[0]
        if isinstance(owner := known.owner(graph, node := use.arc.node), Layout)
    }
    below = [p for name, p in parameters.items() if name in graph.leaves]
    if mixed := confirm_ownership(per_example, layouts, below):
        for name in parameters:
            if any(use.arc.node in mixed for use in known.uses(graph, name)[0]):
                known.uncovered[name] = derived[name] = "examples are mixed in some entries"
    # Where other values could lead examples elsewhere, what was measured holds for this batch only.
    known.certain = known.certain and keeps_examples_apart(graph, known.owners)
    return known


def _below(arc: Arc, between: set[Node]) -> tuple[Node, ...]:
    seen: dict[Node, None] = {}
    climb = [arc.node.next_functions[arc.slot][0]]
    while climb:
        node = climb.pop()
        if node in between and node not in seen and node.name() != ACCUMULATE:
            seen[node] = None
            climb.extend(child for child, _ in node.next_functions)
    return tuple(seen)


def _consumers(graph: Graph, name: str) -> list[Node]:
    return [arc.node for arc in graph.above[graph.leaves[name]]] if name in graph.leaves else []
