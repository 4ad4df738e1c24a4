"""Every use of every parameter, read from the autograd graph: the ground truth of how a model was written.

Module calls, functional calls, slices, views, tying and re-use all end as edges of one graph, so nothing needs to be
patched, wrapped or hooked onto modules, and what a rule does not know is *seen* to be unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node
from torch.nn.parallel import distributed

# Node names are torch's, stable for years but not promised: everything that depends on them is listed by name here
# and in `rules`, and an unknown name only ever leads to the exact fallback.
ACCUMULATE = "torch::autograd::AccumulateGrad"
# Adjoints that keep every entry of a gradient, only elsewhere: ‖∇‖² is read before them.
REARRANGE = frozenset(
    f"{name}Backward{version}"
    for name in ("T", "Transpose", "Permute", "View", "UnsafeView", "ReshapeAlias", "Unsqueeze", "Squeeze", "Clone",
                 "Alias", "ToCopy", "Movedim", "Unflatten", "Flatten", "Contiguous")
    for version in (0, 1, 2, 3)
)  # fmt: skip
# … and those that put it into a larger gradient that is zero elsewhere.
EMBED_IN_ZEROS = frozenset({"SelectBackward0", "SliceBackward0", "NarrowBackward0"})
_CUSTOM: type = torch.autograd.function.BackwardCFunction
# What DistributedDataParallel puts under its outputs hands every gradient on as it is, and hides nothing.
_HANDS_ON = getattr(distributed, "_DDPSink", None)


def saved(node: Node, name: str) -> Any:
    """What a node keeps for its backward pass.

    Args:
        node: the node.
        name: the name of the tensor or setting in torch's own formula.

    Returns:
        Its value.
    """
    return getattr(node, f"_saved_{name}")


def leaf(node: Node) -> Any:
    """The parameter of an `AccumulateGrad` node.

    Args:
        node: the node.

    Returns:
        The leaf tensor.
    """
    return node.variable  # type: ignore[attr-defined]


def outputs(node: Node) -> Sequence[Any]:
    """Shape and type of each output of the operation that a node is the backward of.

    Args:
        node: the node.

    Returns:
        An object with `shape` and `dtype` for each.
    """
    return node._input_metadata


def hands_on(node: Node) -> bool:
    """Whether a node of a custom Function is known to hand each gradient on unchanged.

    Args:
        node: the node.

    Returns:
        Whether it is.
    """
    return _HANDS_ON is not None and getattr(type(node), "_forward_cls", None) is _HANDS_ON


def edges_below(node: Node, output: int) -> tuple[tuple[Node | None, int], ...]:
    """What one output of a node was made from; a wrapper may hand many outputs on in one node.

    Args:
        node: the node.
        output: which of its outputs.

    Returns:
        Edges, as in `next_functions`.
    """
    below: tuple[tuple[Node | None, int], ...] = node.next_functions
    return below[output : output + 1] if hands_on(node) else below


def awaits_first_pass(graph: Graph) -> bool:
    """Whether a DistributedDataParallel(static_graph=True) takes the next pass for its first, and starts to average.

    Args:
        graph: of losses above the wrapper's output.

    Returns:
        Whether no further pass may come before the loop's own.
    """
    wrappers = [node.ddp_weakref() for node in graph.order if hands_on(node)]  # type: ignore[attr-defined]
    return any(ddp.static_graph and not ddp._static_graph_delay_allreduce_enqueued for ddp in wrappers)


@dataclass(frozen=True, eq=False)
class Arc:
    """Input number `slot` of `node` is the output of whatever lies below it."""

    node: Node
    slot: int


@dataclass(frozen=True, eq=False)
class Graph:
    """The part of an autograd graph between the losses and the trained parameters.

    Attributes:
        root: the node that made the losses.
        order: every node, losses first (breadth first).
        number: node → its place in that order.
        leaves: parameter name → its `AccumulateGrad` node, where the losses depend on it.
        signature: equal for graphs of equal structure, whatever the sizes.
        opaque: names of nodes made by custom Functions, which may hide parameters.
    """

    root: Node
    order: list[Node]
    number: Mapping[Node, int]
    leaves: Mapping[str, Node]
    signature: int
    opaque: tuple[str, ...]

    @cached_property
    def above(self) -> Mapping[Node, list[Arc]]:
        """Node → the arcs that consume its outputs; worked out only for structures not met before."""
        above: dict[Node, list[Arc]] = {node: [] for node in self.order}
        for node in self.order:
            for slot, (child, _) in enumerate(node.next_functions):
                if child is not None:
                    above[child].append(Arc(node, slot))
        return above

    @property
    def last_used(self) -> list[str]:
        """The parameters, those first whose every use is near the losses."""
        # Nodes are numbered as they are made: the lowest number above a parameter is of its first use.
        first_use = {
            name: min(arc.node._sequence_nr() for arc in self.above[accumulate])
            for name, accumulate in self.leaves.items()
        }
        return sorted(first_use, key=first_use.__getitem__, reverse=True)

    @property
    def low_precision(self) -> bool:
        """Whether some gradients are rounded to 16 bits, by the model's type or by autocast."""
        return self.coarsest.itemsize == 2

    @property
    def coarsest(self) -> torch.dtype:
        """The floating-point type of the fewest digits that any gradient has."""
        kinds = {meta.dtype for node in self.order for meta in outputs(node)}
        return max((kind for kind in kinds if kind.is_floating_point), key=lambda kind: torch.finfo(kind).eps)

    @property
    def hides_parameters(self) -> bool:
        """Whether the graph holds a re-entrant checkpoint, whose parameters it does not show."""
        return any(kind.startswith("CheckpointFunction") for kind in self.opaque)


def read_graph(root: Node, parameters: Mapping[str, nn.Parameter]) -> Graph:
    """Walk the graph once from the losses down to the parameters.

    Args:
        root: `losses.grad_fn`.
        parameters: name → trained parameter.

    Returns:
        The graph, with the users of every node.
    """
    names = {id(p): name for name, p in parameters.items()}
    number = {root: 0}
    order = [root]
    leaves: dict[str, Node] = {}
    shape: list[object] = []
    opaque = []
    for node in order:  # grows while it is walked
        kind = node.name()
        shape.append(kind)
        if kind == ACCUMULATE:
            name = names.get(id(leaf(node)))
            shape.append(name)
            if name is not None:
                leaves[name] = node
            continue
        if isinstance(node, _CUSTOM) and not hands_on(node):
            opaque.append(kind)
        for child, _ in node.next_functions:
            if child is None:
                shape.append(-1)
                continue
            if child not in number:
                number[child] = len(order)
                order.append(child)
            shape.append(number[child])
    return Graph(root, order, number, leaves, hash(tuple(shape)), tuple(opaque))


@dataclass(frozen=True, eq=False)
class Use:
    """One use of a parameter: what the rule of `arc.node` sees in its input `arc.slot` is `chain` of the parameter.

    Attributes:
        arc: the node whose output gradient is owned row by row, and which input of it this is.
        chain: the nodes between that input and the parameter, top first; empty where it is the parameter itself.
    """

    arc: Arc
    chain: tuple[Node, ...]

    @property
    def edge(self) -> GradientEdge:
        """Where the gradient with respect to this input flows on downwards."""
        return GradientEdge(*self.below)

    @property
    def shape(self) -> torch.Size:
        """The shape of this input: of the derived parameter."""
        node, output = self.below
        return leaf(node).shape if node.name() == ACCUMULATE else torch.Size(outputs(node)[output].shape)

    @property
    def dtype(self) -> torch.dtype:
        """The type of this input."""
        node, output = self.below
        return leaf(node).dtype if node.name() == ACCUMULATE else outputs(node)[output].dtype

    @property
    def turned(self) -> bool:
        """Whether a plain use is of the transpose."""
        return sum(node.name() == "TBackward0" for node in self.chain) % 2 == 1

    @property
    def below(self) -> tuple[Node, int]:
        """The node that made this input, and which of its outputs it is."""
        node, output = self.arc.node.next_functions[self.arc.slot]
        assert node is not None
        return node, output

    @property
    def keeps_norms(self) -> bool:
        """Whether ‖∇ of this input‖ is ‖∇ of the parameter‖: the chain only rearranges, pads or casts."""
        return not self.chain or all(
            node.name() in REARRANGE or node.name() in EMBED_IN_ZEROS or _reads_each_row_once(node)
            for node in self.chain
        )

    @property
    def plain(self) -> bool:
        """Whether what the rule saw is the parameter itself or its transpose."""
        return all(node.name() == "TBackward0" for node in self.chain)

    @property
    def kind(self) -> tuple[str, ...] | None:
        """Equal for two uses only if their inputs have the same layout of the same parameter; None if unsure."""
        names = tuple(node.name() for node in self.chain if node.name() not in ("ToCopyBackward0", "CloneBackward0"))
        return names if set(names) <= {"TBackward0"} else None


def _reads_each_row_once(node: Node) -> bool:
    if node.name() != "EmbeddingBackward0" or saved(node, "scale_grad_by_freq"):
        return False
    indices: Tensor = saved(node, "indices")
    padded = bool((indices == saved(node, "padding_idx")).any())
    return not padded and torch.unique(indices).numel() == indices.numel()


def lowest(graph: Graph, nodes: Iterable[Node]) -> list[Node]:
    """Those of the nodes that have none of the others below them: reaching these, a backward pass visits all.

    Args:
        graph: the graph.
        nodes: some nodes of it.

    Returns:
        The lowest of them.
    """
    wanted = set(nodes)
    covered: set[Node] = set()
    # In reverse breadth-first order a node may still come before one below it, so climb from each node instead.
    for node in wanted:
        climb = [arc.node for arc in graph.above[node]]
        while climb:
            upper = climb.pop()
            if upper not in covered:
                covered.add(upper)
                climb.extend(arc.node for arc in graph.above[upper])
    return [node for node in wanted if node not in covered]
