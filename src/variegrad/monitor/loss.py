"""What is watched: losses of single examples, or a scalar loss with the outputs that it was computed from.

A scalar loss hides its examples, but its gradient at the outputs does not: with D_k = ∂loss/∂output_k held fixed,
ℓ̃_i = Σ_k ⟨output_ki, D_ki⟩ has the gradient that example i adds to the loss's own, provided that the loss reaches the
parameters through these outputs alone and does not compare examples (`row_independence`). A common factor (1/b,
1/tokens) stays in D, and cancels in B_D.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from variegrad.monitor.exchange.sums import EQUAL
from variegrad.monitor.row_independence import Coupled, RowIndependence
from variegrad.per_example.graph import ACCUMULATE, Graph, leaf, read_graph
from variegrad.shapes import Float


@dataclass(frozen=True, eq=False)
class Groups:
    """Which examples belong together.

    Attributes:
        each: k consecutive examples are a group; None if groups are of unequal size or order,
        of: then the group of each example, from 0,
        sizes: and the members of each group.
    """

    each: int | None = None
    of: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()

    def count(self, examples: int) -> int:
        """How many groups there are."""
        return examples // self.each if self.each is not None else len(self.sizes)

    def sum(self, values: Float[Tensor, " b"]) -> Float[Tensor, " groups"]:
        """Sum over the members of each group."""
        if self.each is not None:
            return values.view(-1, self.each).sum(1)
        index = torch.tensor(self.of, device=values.device)
        return values.new_zeros(len(self.sizes)).index_add(0, index, values)

    def mean(self, weights: Float[Tensor, " b"]) -> Float[Tensor, " groups"]:
        """Mean over the members of each group; NaN if they are not equal."""
        mean = self.sum(weights) / (self.each or torch.tensor(self.sizes, device=weights.device))
        back = mean.repeat_interleave(self.each) if self.each is not None else mean[list(self.of)]
        return torch.where((weights - back).abs().max() > EQUAL * weights.abs().max(), torch.nan, mean)


def groups_of(groups: object, examples: int) -> Groups | None:
    """The argument `groups`, checked."""
    if groups is None:
        return None
    if isinstance(groups, int):
        if groups == 1:
            return None
        if examples % groups:
            raise ValueError(
                f"groups={groups}: a batch must consist of whole groups of {groups} consecutive examples; got "
                f"{examples} "
                "examples. Pass the group of each example instead: watch(..., groups=ids)."
            )
        return Groups(each=groups)
    ids = torch.as_tensor(groups)
    if ids.dim() != 1 or ids.is_floating_point() or len(ids) != examples:
        raise ValueError(
            f"groups must be a number k of consecutive examples, or one whole number per example; got shape "
            f"{tuple(ids.shape)} of {ids.dtype} for {examples} examples."
        )
    _, of, sizes = ids.cpu().unique_consecutive(return_inverse=True, return_counts=True)
    if len(sizes) != len(ids.unique()):
        _, of, sizes = ids.cpu().unique(return_inverse=True, return_counts=True)
    elif len(set(sizes.tolist())) == 1:
        return Groups(each=int(sizes[0])) if int(sizes[0]) > 1 else None
    return Groups(of=tuple(of.tolist()), sizes=tuple(sizes.tolist()))


@dataclass(frozen=True, kw_only=True, eq=False)
class Watched:
    """A step's losses, ready to be listened to.

    Attributes:
        graph: from the losses, or the outputs, down to the trained parameters.
        examples: b.
        root: where the weights of the losses arrive in the backward pass, and at which of its outputs.
        losses: the losses of single examples or groups, if they were given.
        loss: otherwise the scalar,
        outputs: and what it was computed from.
        groups: which examples belong together; None if each stands alone.
        coupled: why no part of the loss belongs to one example; empty otherwise.
    """

    graph: Graph
    examples: int
    root: tuple[Node, int]
    losses: Float[Tensor, " groups"] | None = None
    loss: Float[Tensor, ""] | None = None
    outputs: tuple[Tensor, ...] = ()
    groups: Groups | None = None
    coupled: str = ""

    @property
    def count(self) -> int:
        """Independent units: groups, or examples."""
        return self.examples if self.groups is None else self.groups.count(self.examples)

    @property
    def scale_known(self) -> bool:
        """Whether the weights that arrive are those of single examples, with no reduction below them."""
        return self.losses is not None

    def per_example(self) -> Float[Tensor, " groups"]:
        """Losses whose gradients are those of the units; of a scalar loss, by a short backward pass to its outputs."""
        if self.losses is not None:
            return self.losses
        assert self.loss is not None
        at_outputs = torch.autograd.grad(self.loss, self.outputs, retain_graph=True)
        with torch.enable_grad():
            sums = _row_sums([output * at for output, at in zip(self.outputs, at_outputs, strict=True)])
            return sums if self.groups is None else self.groups.sum(sums)

    def of_groups(self, weights: Float[Tensor, " b"]) -> Float[Tensor, " groups"]:
        """One weight per unit, from one per example."""
        return weights if self.groups is None else self.groups.mean(weights)


def watched(
    loss: object,
    output: object,
    groups: object,
    parameters: Mapping[str, nn.Parameter],
    independence: RowIndependence,
) -> Watched:
    """What the arguments of `Monitor.watch` mean, checked."""
    if output is None:
        losses = check_losses(loss)
        assert losses.grad_fn is not None
        root, members = (losses.grad_fn, losses.output_nr), groups_of(groups, len(losses))
        if members is not None:
            with torch.enable_grad():
                losses = members.sum(losses)
        assert losses.grad_fn is not None
        graph = read_graph(losses.grad_fn, parameters)
        examples = len(losses) if members is None else len(loss)  # type: ignore[arg-type]
        _check_reaches(graph, examples, parameters)
        return Watched(graph=graph, examples=examples, root=root, losses=losses, groups=members)
    scalar, outputs = check_outputs(loss, output)
    examples, members = len(outputs[0]), groups_of(groups, len(outputs[0]))
    assert scalar.grad_fn is not None
    coupled = ""
    try:
        if examples:
            independence.check(scalar, outputs, parameters or _copies(scalar.grad_fn))
        with torch.enable_grad():
            top = outputs[0].grad_fn if len(outputs) == 1 else _row_sums(outputs).grad_fn
    except Coupled as reason:
        coupled, top = str(reason), scalar.grad_fn
    assert top is not None
    graph = read_graph(top, parameters)
    _check_reaches(graph, examples, parameters)
    return Watched(
        graph=graph, examples=examples, root=(scalar.grad_fn, scalar.output_nr), loss=scalar, outputs=outputs,
        groups=members, coupled=coupled,
    )  # fmt: skip


def check_losses(loss: object) -> Float[Tensor, " b"]:
    """The first argument of `Monitor.watch` without a second."""
    losses = _check_loss(loss)
    if losses.dim() != 1:
        raise ValueError(
            f"watch(losses) needs one loss per example, a tensor of shape (b,); got shape {tuple(losses.shape)}. "
            + (
                "If you only have the scalar, also pass the model's output: watch(loss, output=logits)."
                if losses.numel() == 1
                else "Sum or average over every dimension except the first."
            )
        )
    return losses


def check_outputs(loss: object, output: object) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Both arguments of `Monitor.watch`."""
    scalar = _check_loss(loss)
    if scalar.numel() != 1:
        raise ValueError(
            f"watch(loss, output=…) takes a scalar loss; got shape {tuple(scalar.shape)}. Losses of shape (b,) are "
            "watched without output."
        )
    several = output if isinstance(output, tuple | list) and output else (output,)
    outputs = tuple(_check_output(one) for one in several)
    counts = [len(one) for one in outputs]
    if len(set(counts)) > 1:
        raise ValueError(
            f"the outputs must have the same examples in their first dimension; got {counts} rows. Pass each with one "
            "row per example, before anything is flattened or selected."
        )
    return scalar, outputs


def _check_output(output: object) -> Tensor:
    if not isinstance(output, Tensor) or not output.is_floating_point():
        found = output.dtype if isinstance(output, Tensor) else type(output).__name__
        raise TypeError(
            f"output must be the floating-point tensor that the loss was computed from, or a tuple of them; got "
            f"{found}. If a model output has fields, pass the field, such as output.logits."
        )
    if output.dim() == 0 or output.grad_fn is None:
        raise ValueError(
            "output must have the examples in its first dimension, and a graph; "
            f"got shape {tuple(output.shape)}{'' if output.grad_fn is not None else ' without a graph'}. "
            "Pass the same tensor from which the loss was computed, not a copy."
        )
    return output


def _row_sums(tensors: Sequence[Tensor]) -> Float[Tensor, " b"]:
    first, *others = (one.reshape(len(one), -1).sum(1) for one in tensors)
    return sum(others, start=first)


def _check_loss(loss: object) -> Tensor:
    if not isinstance(loss, Tensor) or not loss.is_floating_point():
        found = loss.dtype if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(f"watch takes a floating-point tensor: the losses of the examples, or the loss; got {found}.")
    if loss.grad_fn is None:
        raise ValueError(
            "watch needs losses with a graph to differentiate; got a tensor without one. Call it between forward and "
            "backward, outside torch.no_grad() and before any .detach() or .item()."
        )
    return loss


def _copies(root: Node) -> dict[str, nn.Parameter]:
    """The leaves below a loss: of a sharded model parameters are gathered copies."""
    leaves = [leaf(node) for node in read_graph(root, {}).order if node.name() == ACCUMULATE]
    return {f"of shape {tuple(one.shape)}": one for one in leaves}


def _check_reaches(graph: Graph, examples: int, parameters: Mapping[str, nn.Parameter]) -> None:
    if parameters and examples and not graph.leaves and not graph.hides_parameters:
        raise ValueError(
            "the watched loss does not depend on any trained parameter of the Monitor's model. Is this the model that "
            "was passed to the Monitor, and do its parameters require gradients?"
        )
