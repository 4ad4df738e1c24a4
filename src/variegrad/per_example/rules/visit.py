"""What a rule is given: a node of the graph in the moment its output gradient is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Size, Tensor
from torch.autograd.graph import Node

from variegrad.per_example.ownership import Layout
from variegrad.per_example.rules.contribution import NotCovered
from variegrad.shapes import Float, Int, Shaped


@dataclass
class Visit:
    """The output gradient of a node, and whose it is.

    Attributes:
        node: the node; its saved inputs are `node._saved_…`.
        gradient: ∂(Σ losses)/∂(output).
        layout: where in the gradient the examples are.
        count: b, the number of examples of the batch.
        examples: which of them are wanted; None for all.
        formed: whether a rule must form gradients where sums of products that may cancel would do.
        memo: what several rules of one node share.
    """

    node: Node
    gradient: Tensor
    layout: Layout
    count: int
    examples: Tensor | slice | None = None
    formed: bool = False
    memo: dict[str, Tensor] = field(default_factory=dict)
    _gradient_rows: Tensor | None = field(default=None, init=False)  # of this layout: not carried over by `replace`

    def rows(self, tensor: Tensor) -> Shaped[Tensor, "m ..."]:
        """A tensor that is laid out like the gradient, example by example."""
        if tensor is self.gradient and self._gradient_rows is not None:
            return self._gradient_rows
        if tensor.layout is not torch.strided:
            raise NotCovered(f"an input of layout {tensor.layout}")
        view = self.layout.split(tensor, self.count)
        rows = view if self.examples is None else view[self.examples]
        if tensor is self.gradient:
            self._gradient_rows = rows
        return rows

    @property
    def wanted(self) -> int:
        """m, the number of examples that are wanted."""
        if self.examples is None:
            return self.count
        return len(self.examples) if isinstance(self.examples, Tensor) else self.examples.stop - self.examples.start

    def place_of(self, examples: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Where each of these examples is among those wanted; m where it is not."""
        if self.examples is None:
            return examples
        place = torch.full((self.count,), self.wanted, device=examples.device)
        place[self.examples] = torch.arange(self.wanted, device=examples.device)
        return place[examples]

    def factor(self, tensor: Tensor | float) -> Tensor | float:
        """A factor that was broadcast against the output, ready to meet `rows(gradient)`."""
        if not isinstance(tensor, Tensor) or tensor.dim() == 0:
            return tensor
        dim = self.layout.dim - (self.gradient.dim() - tensor.dim())
        if dim < 0 or tensor.shape[dim] == 1:
            return tensor
        if tensor.shape[dim] != self.gradient.shape[self.layout.dim]:
            raise NotCovered("a factor that is broadcast in an unforeseen way")
        missing = (None,) * (self.gradient.dim() - tensor.dim())
        return self.rows(tensor[missing])

    def once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """Compute something that several rules of this node need, once."""
        if name not in self.memo:
            self.memo[name] = make()
        return self.memo[name]

    def reduced(self, rows: Float[Tensor, "m ..."], shape: Size) -> Float[Tensor, "m ..."]:
        """Sum the gradient of a broadcast parameter over what it was broadcast along, example by example."""
        aligned = (1,) * (rows.dim() - 1 - len(shape)) + tuple(shape)
        if len(aligned) != rows.dim() - 1 or aligned[self.layout.dim] != 1:
            raise NotCovered("a parameter with entries for each example")
        summed = [k + 1 for k, size in enumerate(aligned) if size == 1 and rows.shape[k + 1] != 1]
        return (rows.sum(summed) if summed else rows).reshape(len(rows), *shape)


def selected(examples: Sequence[int]) -> Tensor | slice:
    """The index of some examples."""
    # The first m of a shuffled batch are as good as any m, and a slice copies nothing.
    if len(examples) and list(examples) == list(range(examples[0], examples[0] + len(examples))):
        return slice(examples[0], examples[0] + len(examples))
    return torch.as_tensor(examples, dtype=torch.long)
