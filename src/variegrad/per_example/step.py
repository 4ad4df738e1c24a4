"""What travels through the engine: one batch, its losses with their graph, and what they are differentiated by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from variegrad.batches import Batch, map_tensors, shared_length, tensors
from variegrad.per_example.evaluate import Losses, evaluate
from variegrad.per_example.graph import Graph, read_graph, structure
from variegrad.per_example.state import Snapshot, hooked
from variegrad.shapes import Float


@dataclass(frozen=True, eq=False)
class Step:
    """One evaluation of the losses.

    Attributes:
        model: the unwrapped model.
        losses: the user's function; None if only the losses are available (the Monitor).
        batch: what it was given.
        per_example: `losses(model, batch)`, with their graph.
        parameters: the trained parameters, by name.
        graph: the graph, as read.
        before: what was before they were evaluated, if it was kept.
    """

    model: nn.Module
    losses: Losses | None
    batch: Batch
    per_example: Float[Tensor, " b"]
    parameters: Mapping[str, nn.Parameter]
    graph: Graph
    before: Snapshot | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        losses: Losses | None,
        batch: Batch,
        per_example: Float[Tensor, " b"],
        parameters: Mapping[str, nn.Parameter],
        before: Snapshot | None = None,
    ) -> Step:
        """Read the graph of losses that have been evaluated."""
        assert per_example.grad_fn is not None
        return cls(model, losses, batch, per_example, parameters, read_graph(per_example.grad_fn, parameters), before)

    def again(self) -> Step:
        """The same, evaluated once more: from the state before, draws and all, if that was kept."""
        assert self.losses is not None
        if self.before is not None:
            self.before.restore()
        per_example = evaluate(self.model, self.losses, self.batch)
        return Step.of(self.model, self.losses, self.batch, per_example, self.parameters, self.before)

    @property
    def count(self) -> int:
        """b: the number of losses is the number of examples."""
        return len(self.per_example)

    @cached_property
    def structure(self) -> int:
        """Equal for steps whose examples go the same ways through the same parameters, with hooks on the same ones."""
        return hash((structure(self.graph), tuple(hooked(self.parameters))))

    @property
    def ends(self) -> list[nn.Parameter]:
        """Where passes that only look end: all parameters, so that the `.grad` of hidden ones is kept aside, too."""
        return list(self.parameters.values())

    @property
    def can_be_cut(self) -> bool:
        """Whether the first dimension of every tensor of the batch counts the losses, so that it may be the example."""
        if self.losses is None or self.count < 2 or shared_length(self.batch) != self.count:
            return False
        return all(t.layout is torch.strided and not t.is_nested for t in tensors(self.batch))

    def part(self, size: int) -> Batch:
        """The first `size` examples, if they can be cut out: copies, so that nothing done to them reaches the batch."""
        return map_tensors(lambda t: t[:size].detach().clone().requires_grad_(t.requires_grad), self.batch)
