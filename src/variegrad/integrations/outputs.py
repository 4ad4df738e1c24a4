"""What a trainer's loss was computed from: of all outputs of a step, those that the loss's own graph meets first.

Trainers wrap, convert and repeat outputs: DistributedDataParallel hands out copies, mixed precision converts, a metric
or a teacher calls the model a second time. The graph of the loss tells which tensors were used. A wrong guess ends in a
refusal, not in a wrong number: Monitor checks that the loss depends on the parameters through these outputs alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from variegrad.monitor import Monitor
from variegrad.per_example.graph import edges_below

NO_OUTPUT = (
    "no output with examples in its first dimension leads to it. Name the submodule that the loss is computed from "
    "(Lightning: output_of='head')."
)


class StepOutputs:
    """Remembers the outputs of a module and of its trained children during a step.

    Args:
        module: the model, inside any wrapper.
        name: the one submodule to listen to instead.

    Raises:
        ValueError: if there is not a submodule of that name.
    """

    def __init__(self, module: nn.Module, name: str | None = None) -> None:
        try:
            parts = [module, *_trained(module)] if name is None else [module.get_submodule(name)]
        except AttributeError:
            raise ValueError(
                f"output_of={name!r} is not a submodule of {type(module).__name__}; "
                f"its children are {', '.join(repr(child) for child, _ in module.named_children())}."
            ) from None
        self._seen: list[Tensor] = []
        self._handles: list[RemovableHandle] = [part.register_forward_hook(self._remember) for part in parts]

    def _remember(self, _module: nn.Module, _inputs: Any, outputs: Any) -> None:
        self._seen.extend(tensor for tensor in _tensors(outputs) if tensor.grad_fn is not None and tensor.dim() > 0)

    def watch(self, monitor: Monitor, loss: Tensor, count: int | None, *, whole: bool = True) -> None:
        """Let a monitor watch a loss, with the outputs of this step that it was computed from.

        A loss from which nothing can be read is warned of once, and training continues.
        """
        if not whole:
            self.forget()
            return
        due = monitor.due
        found = self.behind(loss, count) if due else ()
        self.forget()
        if due and not found:
            self._cannot_read(monitor, NO_OUTPUT)
            return
        try:
            monitor.watch(loss, output=found or None)
        except ValueError as error:  # of the first step
            self._cannot_read(monitor, str(error))

    @staticmethod
    def _cannot_read(monitor: Monitor, why: str) -> None:
        if monitor.history.leave_out(1, why.rstrip(".")):
            warnings.warn(
                f"BatchSizeMonitor cannot read this loss: {why} Or accumulate gradients over several micro-batches, "
                "or train on several processes, whose gradients are then compared. Otherwise use variegrad.Monitor "
                "with one loss per example. Training continues.",
                RuntimeWarning,
                stacklevel=3,
            )

    def behind(self, loss: Tensor, count: int | None) -> tuple[Tensor, ...]:
        """The outputs that a loss was computed from."""
        seen = {(t.grad_fn, t.output_nr): t for t in self._seen if count is None or len(t) == count}
        met = _met_first(loss, seen)
        return tuple(tensor for edge, tensor in seen.items() if edge in met)

    def forget(self) -> None:
        """Let go of the step's outputs, and of their graphs."""
        self._seen.clear()

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self.forget()


def examples_of(batch: Any) -> int | None:
    """The number of examples in a batch, if its tensors agree on their first dimension."""
    lengths = {len(tensor) for tensor in _tensors(batch) if tensor.dim() > 0}
    return lengths.pop() if len(lengths) == 1 else None


def _met_first(loss: Tensor, edges: Mapping[tuple[Node | None, int], Tensor]) -> set[tuple[Node | None, int]]:
    met: set[tuple[Node | None, int]] = set()
    seen: set[tuple[Node | None, int]] = set()
    climb: list[tuple[Node | None, int]] = [(loss.grad_fn, loss.output_nr)]
    while climb:
        node, output = edge = climb.pop()
        if edge in edges:
            met.add(edge)
        elif node is not None and edge not in seen:
            seen.add(edge)
            climb.extend(edges_below(node, output))
    return met


def _trained(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.children() if any(p.requires_grad for p in child.parameters())]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif hasattr(value, "__dataclass_fields__"):
        for part in vars(value).values():
            yield from _tensors(part)
