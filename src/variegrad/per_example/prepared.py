"""Parameters that are prepared before their use by operations on parameters alone: no example can be coupled in there.

Where a weight is looked up row by row in order (positions), split, scaled, masked or multiplied with another weight
before it meets the examples, everything below its use is a function of parameters. The graph shows that: each input of
each operation leads to parameters again, or is a constant that adds no entries which examples could stand in.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import Node

from variegrad.per_example.graph import ACCUMULATE, EMBED_IN_ZEROS, REARRANGE, Use, leaf, outputs, saved

# Functions of their differentiable inputs and of numbers; what takes other data (indices, masks) is not among them.
_PURE = REARRANGE | EMBED_IN_ZEROS | {
    f"{name}Backward{version}"
    for name in ("Split", "SplitWithSizes", "UnsafeSplit", "Chunk", "Unbind", "Cat", "Stack", "Expand", "Repeat", "Mm",
                 "Bmm", "Addmm", "Neg", "Abs", "Exp", "Log", "Sqrt", "Rsqrt", "Pow", "Sum", "Mean", "Norm", "Sigmoid",
                 "Tanh", "Softplus", "Softmax", "LinalgVectorNorm", "WeightNormInterface", "Tril", "Triu",
                 "ViewAsComplex", "ViewAsReal")
    for version in (0, 1, 2)
}  # fmt: skip
_ELEMENTWISE = ("MulBackward0", "AddBackward0", "SubBackward0", "DivBackward0")


def from_parameters_alone(use: Use) -> bool:
    """Whether what a use sees in its input is a function of parameters and of nothing that examples could enter by.

    Args:
        use: one use of one parameter.

    Returns:
        Whether that is certain.
    """
    seen: set[Node] = set()
    climb = [use.below[0]]
    while climb:
        node = climb.pop()
        if node in seen or node.name() == ACCUMULATE:
            continue
        seen.add(node)
        if not _adds_no_examples(node):
            return False
        climb.extend(child for child, _ in node.next_functions if child is not None)
    return True


def _adds_no_examples(node: Node) -> bool:
    below = [(child, k) for child, k in node.next_functions if child is not None]
    if node.name() == "EmbeddingBackward0":
        indices: Tensor = saved(node, "indices").flatten()
        # Rows in order, each once: a slice of the weight. Labels or tokens of examples do not come like this.
        return bool((indices == indices[:1] + torch.arange(len(indices), device=indices.device)).all())
    if len(below) == len(node.next_functions):
        return node.name() in _PURE or node.name() in _ELEMENTWISE
    if node.name() not in _ELEMENTWISE or not below:
        return False
    child, output = below[0]
    shape = leaf(child).shape if child.name() == ACCUMULATE else torch.Size(outputs(child)[output].shape)
    return torch.Size(outputs(node)[0].shape).numel() == shape.numel()
