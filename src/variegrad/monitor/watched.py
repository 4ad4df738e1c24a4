"""What is watched: losses of single examples, or a scalar loss with the outputs that it was computed from.

A scalar loss hides its examples, but its gradient at the outputs does not: with D_k = ∂loss/∂output_k held fixed,
ℓ̃_i = Σ_k ⟨output_ki, D_ki⟩ has the gradient that example i adds to the loss's own, provided that the loss reaches the
parameters through these outputs alone and does not compare examples (`separation`). A common factor (1/b, 1/tokens)
stays in D, and cancels in B_D.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import Node

from variegrad.monitor.separation import Separation
from variegrad.per_example.graph import Graph, read_graph


@dataclass(frozen=True, kw_only=True, eq=False)
class Watched:
    """A step's losses, ready to be listened to.

    Attributes:
        graph: from the losses, or the outputs, down to the trained parameters.
        count: b.
        root: where the weights of the losses arrive in the backward pass, and at which of its outputs.
        losses: the losses of single examples, where they were given.
        loss: otherwise the scalar,
        outputs: and what it was computed from.
    """

    graph: Graph
    count: int
    root: tuple[Node, int]
    losses: Float[Tensor, " b"] | None = None
    loss: Float[Tensor, ""] | None = None
    outputs: tuple[Tensor, ...] = ()

    @property
    def scale_known(self) -> bool:
        """Whether the weights that arrive are those of single examples, with no reduction below them."""
        return self.losses is not None

    def per_example(self) -> Float[Tensor, " b"]:
        """Losses whose gradients are those of the examples; of a scalar loss, by a short backward pass to its outputs.

        Returns:
            One differentiable value an example.
        """
        if self.losses is not None:
            return self.losses
        assert self.loss is not None
        at_outputs = torch.autograd.grad(self.loss, self.outputs, retain_graph=True)
        with torch.enable_grad():
            return _row_sums([output * at for output, at in zip(self.outputs, at_outputs, strict=True)])

    def weights(self, arrived: Tensor) -> list[float]:
        """c_i, from the gradient that arrived at the root.

        Args:
            arrived: of the shape of the losses, or scalar.

        Returns:
            One weight an example.
        """
        found: float | list[float] = arrived.detach().tolist()
        return found if isinstance(found, list) else [found] * self.count


def watched(
    loss: object, output: object, parameters: Mapping[str, nn.Parameter], separation: Separation
) -> Watched | None:
    """What the arguments of `Monitor.watch` mean, checked.

    Args:
        loss: the first argument.
        output: the second.
        parameters: the trained parameters.
        separation: what is known of losses above outputs.

    Returns:
        The watched losses; None where there is no example.

    Raises:
        TypeError: if either is no tensor of floating-point numbers.
        ValueError: if shapes do not fit, there is no graph, or examples cannot be told apart.
    """
    if output is None:
        losses = check_losses(loss)
        if len(losses) == 0:
            return None
        assert losses.grad_fn is not None
        graph = read_graph(losses.grad_fn, parameters)
        _check_reaches(graph)
        return Watched(graph=graph, count=len(losses), root=(losses.grad_fn, losses.output_nr), losses=losses)
    scalar, outputs = check_outputs(loss, output)
    count = len(outputs[0])
    if count == 0:
        return None
    with torch.enable_grad():
        top = outputs[0].grad_fn if len(outputs) == 1 else _row_sums(outputs).grad_fn
    assert scalar.grad_fn is not None
    assert top is not None
    graph = read_graph(top, parameters)
    _check_reaches(graph)
    separation.check(scalar, outputs, parameters)
    return Watched(graph=graph, count=count, root=(scalar.grad_fn, scalar.output_nr), loss=scalar, outputs=outputs)


def check_losses(loss: object) -> Float[Tensor, " b"]:
    """The first argument of `Monitor.watch` without a second.

    Args:
        loss: anything.

    Returns:
        The losses of single examples, with a graph.

    Raises:
        TypeError: if it is no tensor of floating-point numbers.
        ValueError: if its shape is not (b,), or there is no graph.
    """
    losses = _check_loss(loss)
    if losses.dim() != 1:
        raise ValueError(
            f"watch(losses) needs one loss per example, a tensor of shape (b,); got shape {tuple(losses.shape)}. "
            + (
                "Where there is only the scalar, name the model's output too: watch(loss, output=logits)."
                if losses.numel() == 1
                else "Sum or average over every dimension but the first."
            )
        )
    return losses


def check_outputs(loss: object, output: object) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Both arguments of `Monitor.watch`.

    Args:
        loss: anything.
        output: anything.

    Returns:
        The scalar and the outputs, with graphs.

    Raises:
        TypeError: if one is no tensor of floating-point numbers.
        ValueError: if shapes do not fit, or there is no graph.
    """
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
            f"{found}. Of a model output with fields pass the field, such as output.logits."
        )
    if output.dim() == 0 or output.grad_fn is None:
        raise ValueError(
            "output must have the examples in its first dimension, and a graph; "
            f"got shape {tuple(output.shape)}{'' if output.grad_fn is not None else ' without a graph'}. "
            "Pass the very tensor that the loss was computed from, not a copy."
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


def _check_reaches(graph: Graph) -> None:
    if not graph.leaves and not graph.hides_parameters:
        raise ValueError(
            "what is watched does not depend on any trained parameter of the monitor's model. Is it the model that "
            "the Monitor was made with, and does it require gradients?"
        )
