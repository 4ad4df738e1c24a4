"""What has been learned of graphs of one structure: who owns which gradient, and the uses of each parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch.autograd.graph import GradientEdge, Node

from variegrad.per_example.graph import Arc, Graph, outputs
from variegrad.per_example.ownership import Layout, Owner
from variegrad.per_example.routing import keeps_examples_apart
from variegrad.per_example.uses import Use, lowest, owner_of


@dataclass
class Knowledge:
    """What has been learned of graphs of one structure; sizes may differ. Nodes are numbers in the graph's order.

    Attributes:
        owners: (node, its output) → who owns the gradient there.
        uses: parameter that rules serve → (node, slot, chain) of each use.
        bottom: the lowest nodes that are visited.
        uncovered: parameters that no rule serves → why.
        suspects: parameters that a coupling of the examples could have mixed → why.
        dormant: (node, slot) below which only zeros have arrived so far.
        routed: whether no other values could change the owners; otherwise each batch is tried.
        in_order: nodes whose indices must be those of the examples in order for that.
        formed: parameters of which some batch broke what is faster (inner products that cancel, a table that reads a
            row twice): their gradients are formed.
        doubted: whether there is such a thing in this structure.
        vectorize: whether vmap works for the uncovered parameters; None if not tried.
        looped: whether the graph hides parameters, so that only the loop is right.
        deferred: whether saved inputs must be read after the backward pass (checkpoints give them out once in a pass).
        rows_checked: whether the rows themselves have been compared with the loop.
        just_checked: whether all has been compared on a few examples of this very batch.
    """

    owners: Mapping[tuple[int, int], Owner]
    uses: dict[str, list[tuple[int, int, tuple[int, ...]]]] = field(default_factory=dict)
    bottom: list[int] = field(default_factory=list)
    uncovered: dict[str, str] = field(default_factory=dict)
    suspects: dict[str, str] = field(default_factory=dict)
    dormant: list[tuple[int, int]] = field(default_factory=list)
    routed: bool = True
    in_order: list[int] = field(default_factory=list)
    formed: set[str] = field(default_factory=set)
    doubted: bool = False
    vectorize: bool | None = None
    looped: bool = False
    deferred: bool = False
    rows_checked: bool = False
    just_checked: bool = False

    def layout(self, graph: Graph, node: Node) -> Layout:
        """The layout of the gradient that arrives at a visited node."""
        layout = owner_of(graph, self.owners, node)
        assert isinstance(layout, Layout)
        return layout

    def found(self, graph: Graph, name: str) -> list[Use]:
        """The uses of a parameter in a graph of this structure."""
        return [
            Use(Arc(graph.order[number], slot), tuple(graph.order[k] for k in chain), name in self.formed)
            for number, slot, chain in self.uses.get(name, [])
        ]

    def layouts(self, graph: Graph) -> dict[Node, Layout]:
        """Every visited node and its layout."""
        nodes = {number for each in self.uses.values() for number, _, _ in each}
        return {graph.order[number]: self.layout(graph, graph.order[number]) for number in nodes}

    def following(self, before: Knowledge | None) -> Knowledge:
        """The same, with what an earlier batch has shown of the model itself."""
        if before is not None:
            self.vectorize, self.looped = before.vectorize, before.looped
            self.formed, self.doubted = before.formed, before.doubted
        return self

    def leave_out(self, parameters: Mapping[str, str], graph: Graph) -> None:
        """Leave parameters to the fallback from now on: name → why."""
        if not parameters:
            return
        self.uncovered.update(parameters)
        self.settle({name: self.found(graph, name) for name in self.uses if name not in parameters}, graph)

    def settle(self, uses: Mapping[str, list[Use]], graph: Graph) -> None:
        """Note the uses that rules serve, and whether their layouts hold for other batches."""
        number = graph.number
        self.uses = {
            name: [(number[u.arc.node], u.arc.slot, tuple(number[n] for n in u.chain)) for u in each]
            for name, each in uses.items()
        }
        served = [use for each in uses.values() for use in each]
        self.bottom = [number[node] for node in lowest(graph, {use.arc.node for use in served})]
        self.routed, asked = keeps_examples_apart(graph, self.owners, served)
        self.routed = self.routed and all(layout.certain for layout in self.layouts(graph).values())
        self.in_order = [number[node] for node in asked]
        self.doubted = bool(asked) or any(use.reads_twice is not None for use in served)

    def fits(self, graph: Graph, count: int) -> bool:
        """Whether these layouts can be those of this graph: each example dimension is a multiple of b."""
        for node, owner in self.layouts(graph).items():
            shape = outputs(node)[0].shape
            size = shape[owner.dim] if owner.dim < len(shape) else 0
            if size % count or (owner.single and size != count) or size == 0:
                return False
        return True

    def sleeping(self, graph: Graph) -> list[GradientEdge]:
        """The edges that must stay without gradient for this to hold."""
        edges = []
        for number, slot in self.dormant:
            child, output = graph.order[number].next_functions[slot]
            assert child is not None
            edges.append(GradientEdge(child, output))
        return edges
