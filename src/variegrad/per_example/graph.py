"""Every use of every parameter, read from the autograd graph: the ground truth of how a model was written.

Module calls, functional calls, slices, views, tying and re-use all end as edges of one graph, so nothing needs to be
patched, wrapped or hooked onto modules, and what a rule does not know is *seen* to be unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
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
    """What a node keeps for its backward pass."""
    value = getattr(node, f"_saved_{name}")
    return _signed(value) if isinstance(value, int) else value


def _signed(value: int) -> int:
    # Some versions of torch show a negative number as an unsigned one.
    return value - (1 << 64) if value >= 1 << 63 else value


def leaf(node: Node) -> Any:
    """The parameter of an `AccumulateGrad` node."""
    return node.variable  # type: ignore[attr-defined]


def outputs(node: Node) -> Sequence[Any]:
    """Shape and type of each output of the operation that a node is the backward of."""
    return node._input_metadata


def hands_on(node: Node) -> bool:
    """Whether a node of a custom Function is known to hand each gradient on unchanged."""
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
    """Whether a DistributedDataParallel(static_graph=True) takes the next pass for its first, and starts to average."""
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
        leaves: parameter name → its `AccumulateGrad` node, if the losses depend on it.
        signature: equal for graphs of equal structure, whatever the sizes.
        opaque: names of nodes made by custom Functions, which may hide parameters.
        strays: leaves that require a gradient and are no trained parameter of the model.
    """

    root: Node
    order: list[Node]
    number: Mapping[Node, int]
    leaves: Mapping[str, Node]
    signature: int
    opaque: tuple[str, ...]
    strays: list[Tensor]

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
    """Walk the graph once from the losses down to the parameters."""
    names = {id(p): name for name, p in parameters.items()}
    number = {root: 0}
    order = [root]
    leaves: dict[str, Node] = {}
    shape: list[object] = []
    opaque: list[str] = []
    strays: list[Tensor] = []
    for node in order:  # grows while it is walked
        kind = node.name()
        shape.append(kind)
        if kind == ACCUMULATE:
            name = names.get(id(leaf(node)))
            shape.append(name)
            if name is not None:
                leaves[name] = node
            else:
                strays.append(leaf(node))
            continue
        if isinstance(node, _CUSTOM) and not hands_on(node):
            opaque.append(kind)
        for child, output in node.next_functions:
            if child is None:
                shape.append(-1)
                continue
            if child not in number:
                number[child] = len(order)
                order.append(child)
            shape.append((number[child], output))
    return Graph(root, order, number, leaves, hash(tuple(shape)), tuple(opaque), strays)


def base_name(node: Node) -> str:
    """A node's kind without its suffix: `AddmmBackward0` is `Addmm`."""
    return _base_name(node.name())


@cache
def _base_name(name: str) -> str:
    return name.rstrip("0123456789").removesuffix("Backward")


# Saved numbers that decide where examples go; sizes do not belong here, since they differ from batch to batch.
_DECIDES = re.compile(
    r"_saved_(.*dim.*|.*axis.*|keepdim|training|transposed|repeats|shifts|normalized_shape|source|destination)"
)
_saved_names: dict[type, tuple[str, ...]] = {}


def settings(node: Node) -> tuple[object, ...]:
    """What besides its kind decides where a node sends the examples: dimensions, flags, and which sizes are one."""
    kind = type(node)
    if kind not in _saved_names:
        _saved_names[kind] = tuple(name for name in dir(node) if _DECIDES.fullmatch(name))
    found: list[object] = [size == 1 for meta in outputs(node)[:1] for size in meta.shape]
    for name in _saved_names[kind]:
        value = getattr(node, name, None)
        if name == "_saved_normalized_shape" and value is not None:
            found.append(len(value))
        elif not isinstance(value, Tensor | float):
            found.append(tuple(value) if isinstance(value, list) else value)
    return tuple(found)


def structure(graph: Graph) -> int:
    """Equal for graphs in which examples go the same ways, whatever the sizes and the numbers."""
    return hash((graph.signature, tuple([settings(node) for node in graph.order if node.name() != ACCUMULATE])))


def dimensions(node: Node, name: str, rank: int) -> set[int]:
    """The dimensions that a node has saved under a name, counted from the front; all of them if none is named."""
    value = getattr(node, f"_saved_{name}", None)
    if value is None:
        return set(range(rank))
    several = value if isinstance(value, Sequence) else (value,)
    found = {_signed(int(d)) % max(rank, 1) for d in several}
    return found or set(range(rank))


def ancestors(graph: Graph, nodes: Iterable[Node]) -> set[Node]:
    """The nodes that lie between the losses and the given ones, these not among them unless one is above another."""
    found: set[Node] = set()
    climb = [arc.node for node in nodes for arc in graph.above[node]]
    while climb:
        node = climb.pop()
        if node not in found:
            found.add(node)
            climb.extend(arc.node for arc in graph.above[node])
    return found
