"""The uses of a parameter: the nodes at which it, or what other parameters made of it, meets the examples.

From the parameter's accumulator the graph is climbed to the first nodes whose output gradient is owned example by
example. What lies between is the use's chain: it prepares the parameter (weight norm, masks, low-rank updates, slices).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from variegrad.per_example.graph import (
    ACCUMULATE,
    EMBED_IN_ZEROS,
    REARRANGE,
    Arc,
    Graph,
    ancestors,
    leaf,
    outputs,
    saved,
)
from variegrad.per_example.ownership import Layout, Owner, Unowned
from variegrad.per_example.rules import RULES

MIXED_AT = "examples are mixed at"
IRREGULAR_AT = "examples own different numbers of rows at"
# A parameter that is prepared by more operations than this before its use is left to the fallback.
MOST_BETWEEN = 256


@dataclass(frozen=True, eq=False)
class Use:
    """One use: what the rule of `arc.node` sees in its input `arc.slot` is `chain` of the parameter, top first.

    Attributes:
        arc: where the parameter is used.
        chain: what prepares it.
        formed: whether tables in the chain have been seen to read a row twice.
    """

    arc: Arc
    chain: tuple[Node, ...]
    formed: bool = False

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

    @cached_property
    def keeps_norms(self) -> bool:
        """Whether ‖∇ of this input‖ is ‖∇ of the parameter‖: the chain only rearranges, pads or casts.

        A table must read each row once, which `reads_twice` says of a batch.
        """
        return not self.chain or all(
            node.name() in REARRANGE or node.name() in EMBED_IN_ZEROS or (not self.formed and _may_read_once(node))
            for node in self.chain
        )

    @property
    def reads_twice(self) -> Tensor | None:
        """Whether a table of the chain reads a row twice, or pads, on the device; None if there is none."""
        if not self.chain or not self.keeps_norms:
            return None
        tables = [node for node in self.chain if node.name() == "EmbeddingBackward0"]
        return torch.stack([_reads_twice(node) for node in tables]).any() if tables else None

    @property
    def plain(self) -> bool:
        """Whether what the rule saw is the parameter itself or its transpose."""
        return all(node.name() == "TBackward0" for node in self.chain)

    @property
    def kind(self) -> tuple[str, ...] | None:
        """Equal for two uses only if their inputs have the same layout of the same parameter; None if unsure."""
        names = tuple(node.name() for node in self.chain if node.name() not in ("ToCopyBackward0", "CloneBackward0"))
        return names if set(names) <= {"TBackward0"} else None


def _may_read_once(node: Node) -> bool:
    if node.name() != "EmbeddingBackward0" or saved(node, "scale_grad_by_freq"):
        return False
    return saved(node, "indices").numel() <= int(saved(node, "weight_sym_argsize_0"))


def _reads_twice(node: Node) -> Tensor:
    indices = saved(node, "indices").flatten().sort().values
    return (indices[1:] == indices[:-1]).any() | (indices == saved(node, "padding_idx")).any()


@dataclass
class Found:
    """What climbing from one parameter finds.

    Attributes:
        uses: its uses.
        dormant: arcs above which examples have a layout and below which only zeros arrived: an open gate would add a
            use there.
        reason: why no rule serves the parameter; None if rules do.
    """

    uses: list[Use] = field(default_factory=list)
    dormant: list[Arc] = field(default_factory=list)
    reason: str | None = None


def owner_of(graph: Graph, owners: Mapping[tuple[int, int], Owner], node: Node) -> Owner | None:
    """Who owns the gradient that arrives at a node: at its first output, or where one arrives; None if none does."""
    number = graph.number[node]
    first = owners.get((number, 0))
    if isinstance(first, Layout):
        return first
    found = [o for k in range(len(outputs(node))) if (o := owners.get((number, k))) is not None]
    return next((o for o in found if o is not Unowned.ZERO), found[0] if found else None)


def uses_of(  # noqa: PLR0912 - an answer for each kind of owner
    graph: Graph, owners: Mapping[tuple[int, int], Owner], name: str
) -> Found:
    """For each path from a parameter up to the losses, the first node whose gradient is owned example by example."""
    if name not in graph.leaves:
        return Found()
    met: list[Arc] = []
    found = Found()
    between = {graph.leaves[name]}  # several paths through these nodes may meet again
    asleep: set[Node] = set()
    climb = [(arc, False) for arc in graph.above[graph.leaves[name]]]
    while climb:
        arc, zero = climb.pop()
        owner = owner_of(graph, owners, arc.node)
        if owner is None:
            continue  # no gradient arrives here: a constant of this structure
        if zero and owner is not Unowned.ZERO:
            found.dormant.append(arc)
        elif owner is Unowned.ZERO:
            if arc.node not in asleep:
                asleep.add(arc.node)
                climb.extend((above, True) for above in graph.above[arc.node])
        elif isinstance(owner, Layout):
            if arc.node.name() not in RULES:
                passed = [n.name() for n in between if n.name() not in REARRANGE | EMBED_IN_ZEROS | {ACCUMULATE}]
                found.reason = f"{MIXED_AT} {passed[0]}" if passed else f"no rule for {arc.node.name()}"
                break
            met.append(arc)
        elif owner is Unowned.IRREGULAR:
            found.reason = f"{IRREGULAR_AT} {arc.node.name()}"
            break
        elif owner is Unowned.UNREADABLE:
            found.reason = f"the gradient at {arc.node.name()} is not dense"
            break
        elif len(between) > MOST_BETWEEN or not graph.above[arc.node]:
            found.reason = f"{MIXED_AT} {arc.node.name()}"
            break
        elif arc.node not in between:
            between.add(arc.node)
            climb.extend((above, False) for above in graph.above[arc.node])
    if found.reason is None:
        found.uses = [Use(arc, _below(arc, between)) for arc in met]
    return found


def _below(arc: Arc, between: set[Node]) -> tuple[Node, ...]:
    seen: dict[Node, None] = {}
    climb = [arc.node.next_functions[arc.slot][0]]
    while climb:
        node = climb.pop()
        if node in between and node not in seen and node.name() != ACCUMULATE:
            seen[node] = None
            climb.extend(child for child, _ in node.next_functions)
    return tuple(seen)


def lowest(graph: Graph, nodes: Iterable[Node]) -> list[Node]:
    """Those of the nodes that have none of the others below them: reaching these, a backward pass visits all."""
    wanted = set(nodes)
    above = ancestors(graph, wanted)
    return [node for node in graph.order if node in wanted and node not in above]


# What takes data beside its differentiable inputs and numbers (indices, masks): examples could enter by these.
_TAKES_DATA = ("Index", "Gather", "Scatter", "Where", "Masked", "Take", "Embedding", "Dropout", "NativeDropout")
_ELEMENTWISE = ("MulBackward0", "AddBackward0", "SubBackward0", "DivBackward0")


def from_parameters_alone(graph: Graph, use: Use) -> bool:
    """Whether a use's input is a function of parameters, and of nothing that examples could enter by."""
    seen: set[Node] = set()
    climb = [use.below[0]]
    while climb:
        node = climb.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.name() == ACCUMULATE:
            if any(leaf(node) is stray for stray in graph.strays):
                return False
            continue
        if not _adds_no_examples(graph, node):
            return False
        climb.extend(child for child, _ in node.next_functions if child is not None)
    return True


def _adds_no_examples(graph: Graph, node: Node) -> bool:
    below = [(child, k) for child, k in node.next_functions if child is not None]
    if node.name() == "EmbeddingBackward0":
        indices: Tensor = saved(node, "indices").flatten()
        # Rows in order, each once: a slice of the weight. Labels or tokens of examples do not come like this.
        return bool((indices == indices[:1] + torch.arange(len(indices), device=indices.device)).all())
    if node.name().startswith(_TAKES_DATA) or node.name() in graph.opaque:
        return False
    if len(below) == len(node.next_functions):
        return True
    if node.name() not in _ELEMENTWISE or not below:
        return False
    child, output = below[0]
    shape = leaf(child).shape if child.name() == ACCUMULATE else torch.Size(outputs(child)[output].shape)
    return torch.Size(outputs(node)[0].shape).numel() == shape.numel()
