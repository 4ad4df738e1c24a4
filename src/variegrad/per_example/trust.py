"""When a measured layout may be used again: only where no value of another batch could change it.

Ownership is measured on one batch. For the next batch of the same structure it holds if, between the losses and the
use, every operation keeps examples apart whatever the numbers are: element-wise operations, products along other
dimensions, convolutions, pooling, attention and normalisation by example. An operation that reads rows by an index,
multiplies along the examples by data, or that this list does not know, could mix them next time: then ownership is
measured again, for every batch. Settings that are not numbers (dimensions, training flags) belong to the signature.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from torch.autograd.graph import Node

from variegrad.per_example.graph import ACCUMULATE, REARRANGE, Graph, hands_on, outputs, saved
from variegrad.per_example.ownership import IRREGULAR, MIXED, ZERO, Layout, Owner

_ELEMENTWISE = frozenset(
    """
    Abs Add Addcmul Addcdiv Atan Celu Clamp ClampMax ClampMin Cos Cosh Digamma Div Dropout Elu Erf Erfc Exp
    Expm1 Expand Fill Gelu Glu Hardshrink Hardsigmoid Hardswish Hardtanh HuberLoss LeakyRelu Lerp Lgamma Log
    Log10 Log1P Log2 LogSigmoid LogSigmoidForward MaskedFill Maximum Minimum Mish MseLoss Mul NativeDropout
    Neg PreluKernel Pow Reciprocal Relu Rsqrt Rsub Selu Sigmoid Sigmoidbackward Silu Sin Sinh SmoothL1Loss
    SoftMarginLoss Softplus Softshrink Sqrt Sub Tan Tanh Threshold Where Xlogy BinaryCrossEntropy
    BinaryCrossEntropyWithLogits KlDiv Square Asin Acos Atanh Special
    """.split()  # noqa: SIM905
)
# Along one or more dimensions that the node names; sums over the examples' own dimension mix always, and are seen to.
_REDUCING = frozenset(
    """
    Sum Mean Amax Amin Max Min Logsumexp LinalgVectorNorm Norm Softmax SafeSoftmax LogSoftmax Var Std VarMean
    StdMean Prod Cumsum Unbind Stack Select Squeeze Unsqueeze Repeat Flip
    """.split()  # noqa: SIM905
)
_BY_BATCH = frozenset(
    """
    Convolution MaxPool1D MaxPool2DWithIndices MaxPool3DWithIndices MkldnnMaxPool2D AvgPool1D AvgPool2D
    AvgPool3D AdaptiveAvgPool1D AdaptiveAvgPool2D AdaptiveAvgPool3D AdaptiveMaxPool2D MkldnnAdaptiveAvgPool2D
    ConstantPadNd ReflectionPad1D ReflectionPad2D ReflectionPad3D ReplicationPad1D ReplicationPad2D
    ReplicationPad3D NativeGroupNorm UpsampleNearest1D UpsampleNearest2D UpsampleBilinear2D UpsampleBicubic2D
    PixelShuffle PixelUnshuffle Im2Col Col2Im NllLoss NllLoss2D NllLossNd NativeBatchNorm MultilabelMarginLoss
    MultiMarginLoss GridSampler2D
    """.split()  # noqa: SIM905
)
_ATTENTION = ("ScaledDotProduct",)
_ALONG = ("Cat", "Slice", "Narrow", "Split", "SplitWithSizes", "UnsafeSplit", "Chunk")

# Settings that decide where examples go, by kind; they are a part of a structure's signature.
SETTINGS = {
    "Transpose": ("dim0", "dim1"), "Permute": ("dims",), "Sum": ("dim",), "Mean": ("dim",), "Softmax": ("dim",),
    "LogSoftmax": ("dim",), "Cat": ("dim",), "Stack": ("dim",), "Select": ("dim",), "Unbind": ("dim",),
    "Slice": ("dim",), "Split": ("dim",), "SplitWithSizes": ("dim",), "UnsafeSplit": ("dim",),
    "NativeBatchNorm": ("training",),
    "CudnnBatchNorm": ("training",), "Unsqueeze": ("dim",), "Squeeze": ("dim",), "Amax": ("dim",), "Amin": ("dim",),
    "Max": ("dim",), "Min": ("dim",), "Logsumexp": ("dim",), "LinalgVectorNorm": ("dim",), "Norm": ("dim",),
    "Var": ("dim",), "Std": ("dim",), "Cumsum": ("dim",), "Movedim": ("source", "destination"),
}  # fmt: skip


def base_name(node: Node) -> str:
    """A node's kind without its suffix: `AddmmBackward0` is `Addmm`.

    Args:
        node: the node.

    Returns:
        Its kind.
    """
    return _base_name(node.name())


@cache
def _base_name(name: str) -> str:
    return name.rstrip("0123456789").removesuffix("Backward")


def settings(node: Node) -> tuple[object, ...]:
    """What besides its kind decides where a node sends the examples.

    Args:
        node: the node.

    Returns:
        Dimensions and flags, and which dimensions of its output have one entry.
    """
    made = outputs(node)
    ones = [size == 1 for size in made[0].shape] if made else ()
    return (*ones, *[str(getattr(node, name, None)) for name in _saved_settings(node.name())])


@cache
def _saved_settings(name: str) -> tuple[str, ...]:
    return tuple(f"_saved_{setting}" for setting in SETTINGS.get(_base_name(name), ()))


def structure(graph: Graph) -> int:
    """Equal for graphs in which examples go the same ways, whatever the sizes and the numbers.

    Args:
        graph: the graph.

    Returns:
        A key.
    """
    return hash((graph.signature, tuple([settings(node) for node in graph.order if node.name() != ACCUMULATE])))


def keeps_examples_apart(graph: Graph, owners: Mapping[tuple[int, int], Owner]) -> bool:
    """Whether no other values could lead an example's gradient elsewhere than in the batch that was measured.

    Args:
        graph: the graph.
        owners: who owns the gradient at each node's outputs there.

    Returns:
        Whether the measured layouts may be used again.
    """
    for node in graph.order:
        if node.name() == ACCUMULATE or (node is graph.root and not node.next_functions):
            continue
        found = [owners.get((graph.number[node], k)) for k in range(len(outputs(node)))]
        if all(owner == MIXED for owner in found if owner is not None) and any(o is not None for o in found):
            continue  # below where the examples separate: it prepares a parameter
        if all(owner is None for owner in found):
            continue  # it does not lead to a trained parameter
        layouts = [owner for owner in found if isinstance(owner, Layout)]
        if not layouts or any(owner in (ZERO, IRREGULAR) for owner in found):
            return False  # no gradient came here this time, or rows of lengths that may differ: not known for others
        if not all(_safe(graph, node, layout, owners) for layout in layouts):
            return False
    return True


def _safe(  # noqa: PLR0911
    graph: Graph, node: Node, layout: Layout, owners: Mapping[tuple[int, int], Owner]
) -> bool:
    kind = base_name(node)
    if hands_on(node) or node.name() in REARRANGE or kind in _ELEMENTWISE or kind in _REDUCING:
        return True
    if kind in _BY_BATCH:
        return layout.dim == 0
    if kind.startswith(_ATTENTION):
        return layout.dim in (0, 1)
    if kind in ("NativeLayerNorm", "FusedRmsNorm"):
        return layout.dim == 0 or layout.dim < len(outputs(node)[0].shape) - 1
    if kind in _ALONG:
        return _dimension(node, len(outputs(node)[0].shape)) != layout.dim
    # For the rest it matters which of its inputs carry examples.
    carrying = [
        slot
        for slot, (child, output) in enumerate(node.next_functions)
        if child is not None and child.name() != ACCUMULATE and _carries(owners.get((graph.number[child], output)))
    ]
    match kind:
        case "Mm":
            return all(slot == layout.dim for slot in carrying)
        case "Addmm":
            return all(slot == 0 or slot - 1 == layout.dim for slot in carrying)
        case "Bmm":
            return layout.dim == 0 or all(slot == layout.dim - 1 for slot in carrying)
        case "Baddbmm":
            return layout.dim == 0 or all(slot in (0, layout.dim) for slot in carrying)
        case "Embedding" | "EmbeddingBag":
            return not carrying
    return False


def _carries(owner: Owner | None) -> bool:
    return owner != MIXED


def _dimension(node: Node, dimensions: int) -> int:
    dim = int(saved(node, "dim"))
    dim = dim - (1 << 64) if dim >= 1 << 63 else dim
    return dim % dimensions
