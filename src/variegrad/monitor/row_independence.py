"""Whether a scalar loss keeps the rows of its outputs apart, so that ∂loss/∂output_i is example i's alone.

Three things are checked, the last once for each structure of the part between outputs and loss: nothing but the outputs
leads from the loss to a trained parameter, and none leads to another; the first dimension was not flattened from
examples and positions; and no row's derivative depends on another row, ∂²loss/∂output_i∂output_j = 0 for random halves
of the batch, with a look at what second derivatives do not show: kinks (|·|, hinges) of entries that mix rows, and
selections among rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from variegrad.keys import generator
from variegrad.per_example.graph import ACCUMULATE, REARRANGE, base_name, edges_below, leaf, settings
from variegrad.per_example.graph import outputs as outputs_of

TRIALS = 4
ENTRIES = 8
PLACES = 32
ROUNDING = 1e-6
_KINKED = frozenset(
    """
    Abs Relu LeakyRelu Clamp ClampMin ClampMax Maximum Minimum Threshold Hardtanh Hardswish Hardsigmoid Hardshrink
    Softshrink Sgn Sign Where PreluKernel Round Floor Ceil
    """.split()  # noqa: SIM905
)
_LAYERS = frozenset(["Addmm", "Mm", "Bmm", "Baddbmm", "Convolution", "Embedding", "EmbeddingBag"])
_SELECTING = frozenset(
    ["Max", "Min", "Amax", "Amin", "Sort", "SortStable", "Topk", "Median", "Nanmedian", "Kthvalue", "Mode", "Cummax"]
)


class Coupled(ValueError):  # noqa: N818
    """The loss has no parts that belong to one row each; micro-batches and workers can still be compared."""


class RowIndependence:
    """What was found of the structures between output and loss that were met."""

    def __init__(self) -> None:
        self._apart: set[int] = set()

    def check(self, loss: Tensor, outputs: Sequence[Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
        """Refuse a loss that does not keep the rows of the outputs apart, or bypasses them."""
        above = _above(loss, outputs, parameters)
        for output in outputs:
            _refuse_flattened(output)
        structure = hash(tuple((node.name(), settings(node)) for node in above))
        if structure in self._apart or len(outputs[0]) == 1:
            return
        _refuse_selection(above, len(outputs[0]))
        _refuse_kinks(above, outputs)
        if _second_derivatives_apart(loss, outputs):
            self._apart.add(structure)


def mixed_rows(losses: Tensor, order: Sequence[Node]) -> str:
    """Where below the losses of single rows the last row meets others; empty if it does not.

    A sequence-first output has positions for rows, and recurrence or attention mixes these.
    """
    batched: dict[Node, int] = {}  # node → where its batch is
    for node in reversed(order):
        kind = base_name(node)
        if kind in _LAYERS or "Rnn" in kind:
            recurrent = "Rnn" in kind and not getattr(node, "_saved_batch_first", False)
            batched[node] = 1 if recurrent else 0
        elif any(child in batched for child, _ in node.next_functions):  # not what prepares a weight
            batched[node] = 0
    count = len(losses)
    shapes = {node: tuple(outputs_of(node)[0].shape) for node in batched}
    found = [n for n in batched if shapes[n][:1] == (count,) or base_name(n) == "Convolution" or "Rnn" in base_name(n)]
    found = found[:: max(1, len(found) // PLACES)]
    if count < 2 or not found:
        return ""
    edges = [GradientEdge(node, 0) for node in found]
    gradients: tuple[Tensor | None, ...] = torch.autograd.grad(losses[-1], edges, retain_graph=True, allow_unused=True)
    for node, gradient in zip(found, gradients, strict=True):
        rows = None if gradient is None else (gradient.movedim(batched[node], 0).flatten(1) != 0).any(1)
        if rows is not None and int(rows.sum()) > 1:
            return node.name()
    return ""


def _above(loss: Tensor, outputs: Sequence[Tensor], parameters: Mapping[str, nn.Parameter]) -> list[Node]:
    assert loss.grad_fn is not None
    names = {id(p): name for name, p in parameters.items()}
    ends = {(output.grad_fn, output.output_nr) for output in outputs}
    if len(ends) > 1:
        _refuse_nested(ends)
    order: dict[Node, None] = {}
    climb: list[tuple[Node | None, int]] = [(loss.grad_fn, loss.output_nr)]
    seen, met, bypassed = set(climb), set(), ""
    while climb:
        node, nr = climb.pop()
        if (node, nr) in ends:
            met.add((node, nr))
            continue
        if node is None:
            continue
        order[node] = None
        if node.name() == ACCUMULATE and id(leaf(node)) in names:
            bypassed = names[id(leaf(node))]
        below = [edge for edge in edges_below(node, nr) if edge not in seen]
        seen.update(below)
        climb.extend(below)
    if met != ends:
        raise ValueError(
            "the loss was not computed from `output`: it is not in the loss's graph. Pass the same tensor that was "
            "passed to the loss function (for a Hugging Face model: outputs.logits of the same call)."
        )
    if bypassed:
        raise Coupled(
            f"the loss also depends on parameter {bypassed!r} directly, not only through `output` (a weight penalty, "
            "an auxiliary loss, or another output of the model): the share of one example is then unknown. Pass all "
            "outputs, watch(loss, output=(policy, value)), or watch the losses of the examples, "
            "monitor.watch(per_example), or move a penalty into the optimizer's weight_decay."
        )
    return list(order)


def _refuse_nested(ends: Iterable[tuple[Node | None, int]]) -> None:
    """∂loss/∂output counts every way to the loss: if an output was computed from another, one way counts twice."""
    seen: set[Node] = set()
    climb = [node for node, _ in ends if node is not None]
    while climb:
        for edge in climb.pop().next_functions:
            if edge in ends:
                raise ValueError(
                    "one of the outputs was computed from another, so that examples would be counted twice. Pass only "
                    "outputs that are not computed from each other."
                )
            if edge[0] is not None and edge[0] not in seen:
                seen.add(edge[0])
                climb.append(edge[0])


def _refuse_flattened(output: Tensor) -> None:
    node, count, dimensions = output.grad_fn, len(output), output.dim()
    while node is not None and node.name() in REARRANGE and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
        if node is None or node.name() == ACCUMULATE:
            return
        shape = outputs_of(node)[0].shape
        if len(shape) > dimensions and 0 < shape[0] < count and count % shape[0] == 0:
            raise ValueError(
                f"the first dimension of output must be the examples; {count} rows were flattened from shape "
                f"{tuple(shape)}. Pass the tensor before it was flattened, such as the logits of shape (b, T, V); the "
                "loss may still be computed from the flattened one."
            )


def _refuse_selection(above: list[Node], count: int) -> None:
    for node in above:
        if base_name(node) not in _SELECTING or not node.next_functions or node.next_functions[0][0] is None:
            continue
        child, nr = node.next_functions[0]
        assert child is not None
        shape = outputs_of(child)[nr].shape
        dim = getattr(node, "_saved_dim", None)
        dims = dim if isinstance(dim, tuple | list) else [dim]
        # Unsigned in some versions: a negative dimension comes as 2^64 − 1.
        wrapped = [None if d is None else (d - (1 << 64) if d >= 1 << 63 else d) for d in dims]
        if len(shape) and (not wrapped or any(d is None or d % len(shape) == 0 for d in wrapped)):
            raise Coupled(_coupled(f"{node.name()} selects among the {count} rows"))


def _refuse_kinks(above: list[Node], outputs: Sequence[Tensor]) -> None:
    ends = {(output.grad_fn, output.output_nr) for output in outputs}
    for node in above:
        if base_name(node) not in _KINKED:
            continue
        for child, nr in node.next_functions:
            if child is None or (child, nr) in ends:
                continue
            if any(rows > 1 for rows in _rows_behind(child, nr, outputs)):
                raise Coupled(_coupled(f"{node.name()} is applied to values that mix rows"))


def _rows_behind(node: Node, nr: int, outputs: Sequence[Tensor]) -> Iterator[int]:
    meta = outputs_of(node)[nr]
    numel = torch.Size(meta.shape).numel()
    for place in generator(0, "entries", numel).integers(0, numel, ENTRIES) if numel else ():
        one = torch.zeros(numel, dtype=meta.dtype, device=meta.device)
        one[int(place)] = 1
        found: tuple[Tensor | None, ...] = torch.autograd.grad(
            [GradientEdge(node, nr)], outputs, [one.view(tuple(meta.shape))], retain_graph=True, allow_unused=True
        )
        touched = [(g.reshape(len(g), -1) != 0).any(1) for g in found if g is not None]
        if touched:
            yield int(torch.stack(touched).any(0).sum())


def _second_derivatives_apart(loss: Tensor, outputs: Sequence[Tensor]) -> bool:
    """Whether it was seen that rows are kept apart; False if all second derivatives are zero, this time."""
    try:
        with torch.enable_grad():
            first = [g for g in torch.autograd.grad(loss, outputs, create_graph=True) if g.requires_grad]
    except RuntimeError as error:
        raise Coupled(_unknown(error)) from error
    if not first:
        return True
    count, seen = len(outputs[0]), False
    for trial in range(TRIALS):
        draw = generator(0, "halves", count, trial)
        half = torch.zeros(count, dtype=torch.bool)
        half[torch.from_numpy(draw.permutation(count)[: count // 2])] = True
        half = half.to(outputs[0].device)
        direction = torch.from_numpy(draw.standard_normal(count)).to(half.device)
        weighted = torch.stack([(g.reshape(count, -1) * direction.to(g).unsqueeze(1))[half].sum() for g in first])
        try:
            found: tuple[Tensor | None, ...] = torch.autograd.grad(
                weighted.sum(), outputs, retain_graph=True, allow_unused=True
            )
        except RuntimeError as error:
            raise Coupled(_unknown(error)) from error
        for sizes in (g.detach().reshape(count, -1).abs().amax(1) for g in found if g is not None):
            if bool((sizes[~half] > ROUNDING * sizes.max()).any()):
                raise Coupled(_coupled("the derivative at one row of output changes with the other rows"))
            seen = seen or bool((sizes > 0).any())
    return seen


def _coupled(why: str) -> str:
    return (
        f"this loss compares examples with each other: {why}. Per-example losses are then undefined (as for "
        "contrastive, ranking and mined losses), and so is B_D. Pass one loss per example (shape (b,)), or leave "
        "this loss unmonitored."
    )


def _unknown(error: RuntimeError) -> str:
    return (
        f"it is not known whether this loss compares examples, because it cannot be differentiated twice "
        f"({str(error).splitlines()[0][:120]}). Watch the losses of the examples, monitor.watch(per_example)."
    )
