"""Where a measured layout may be used again: only where no value of another batch could change it.

Ownership is measured on one batch. For the next batch of the same structure it holds if, from the losses down to each
use, the backward of every operation keeps examples apart whatever the numbers are. One table says so: kind → rule, a
function of the node, the layout of the gradient that arrives, and those of the gradients that it sends on to the nodes
that lead to a use. What is not in the table is measured at every batch, by one more backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import Node

from variegrad.per_example.graph import REARRANGE, Graph, ancestors, base_name, dimensions, hands_on, outputs, saved
from variegrad.per_example.ownership import Layout, Owner
from variegrad.per_example.uses import Use

WHOLE = 2**63 - 1  # the end of a slice that has none
# A gradient's layout and shape.
Side = tuple[Layout, torch.Size]
Rule = Callable[[Node, Side, Mapping[int, Side]], bool]


def _same_place(here: Side, below: Side) -> bool:
    # From the right, as broadcasting aligns: else its backward would sum over the examples.
    (layout, shape), (other, theirs) = here, below
    if layout.dim - len(shape) != other.dim - len(theirs) or shape[layout.dim] != theirs[other.dim]:
        return False
    return layout.example_major == other.example_major


def elementwise(node: Node, here: Side, below: Mapping[int, Side]) -> bool:  # noqa: ARG001
    """The example is in the same dimension above and below."""
    return all(_same_place(here, side) for side in below.values())


def repeated(node: Node, here: Side, below: Mapping[int, Side]) -> bool:
    """Copies are made along dimensions that are not the example's."""
    return elementwise(node, here, below) and saved(node, "repeats")[here[0].dim] == 1


def along(*names: str, output: bool = False) -> Rule:
    """An operation along the dimensions saved under these names: none of them is the example's.

    Args:
        names: as the node saves them.
        output: whether they count the output's dimensions, not the input's.
    """

    def rule(node: Node, here: Side, below: Mapping[int, Side]) -> bool:
        sides = [here] if output else list(below.values())
        for layout, shape in sides:
            if any(layout.dim in dimensions(node, name, len(shape)) for name in names):
                return False
        return all(
            side[0].example_major == here[0].example_major and side[1][side[0].dim] == here[1][here[0].dim]
            for side in below.values()
        )

    return rule


def by_batch(node: Node, here: Side, below: Mapping[int, Side]) -> bool:  # noqa: ARG001
    """Each index of the first dimension for itself."""
    return here[0].dim == 0 and elementwise_from_left(here, below)


def by_channel(node: Node, here: Side, below: Mapping[int, Side]) -> bool:  # noqa: ARG001
    """Each index of the first two dimensions for itself."""
    return here[0].dim in (0, 1) and elementwise_from_left(here, below)


def elementwise_from_left(here: Side, below: Mapping[int, Side]) -> bool:
    """The example is in the same dimension, counted from the front."""
    return all(
        side[0].dim == here[0].dim
        and side[0].example_major == here[0].example_major
        and side[1][side[0].dim] == here[1][here[0].dim]
        for side in below.values()
    )


def normalised(node: Node, here: Side, below: Mapping[int, Side]) -> bool:
    """Normalisation over the last dimensions, of which the example's is none."""
    shape: Sequence[int] | None = getattr(node, "_saved_normalized_shape", None)
    kept = len(here[1]) - (len(here[1]) - 1 if shape is None else len(shape))
    return here[0].dim < kept and elementwise_from_left(here, below)


def batch_normalised(node: Node, here: Side, below: Mapping[int, Side]) -> bool:
    """By running statistics every entry is for itself; by those of a batch every channel is (InstanceNorm)."""
    return (not getattr(node, "_saved_training", True) or here[0].dim == 1) and elementwise_from_left(here, below)


def matrices(node: Node, here: Side, below: Mapping[int, Side]) -> bool:  # noqa: ARG001
    """Functions of the last two dimensions."""
    return here[0].dim < len(here[1]) - 2 and elementwise_from_left(here, below)


def product(first: int, batched: bool) -> Rule:
    """A product: rows of the left factor, columns of the right one, or the dimension of a batch of products.

    Args:
        first: the slot of the left factor; slots before it are added.
        batched: whether dimension 0 counts products.
    """

    def rule(node: Node, here: Side, below: Mapping[int, Side]) -> bool:  # noqa: ARG001
        dim = here[0].dim
        for slot, side in below.items():
            if slot < first:
                if not _same_place(here, side):
                    return False
            elif (
                (not (batched and dim == 0) and slot - first != dim - batched)
                or side[0].dim != dim
                or not elementwise_from_left(here, {0: side})
            ):
                return False
        return True

    return rule


def indexed(node: Node, here: Side, below: Mapping[int, Side]) -> bool:
    """Indices on the dimensions behind the example's, or one row for each example in order (see `in_order`)."""
    first = all(side[0].dim == 0 for side in (here, *below.values()))
    return first and not any(map(bool, out_of_order([node])))


def _out_of_order(node: Node) -> Tensor | None:
    rows: Tensor | None = next(iter(saved(node, "indices")), None)
    if rows is None:
        return None
    count = int(saved(node, "self_sym_sizes")[0])
    if rows.dtype == torch.bool or len(rows) != count or rows.numel() != count:
        return torch.ones((), dtype=torch.bool, device=rows.device)
    return (rows.flatten() != torch.arange(count, device=rows.device)).any()


def sliced(node: Node, here: Side, below: Mapping[int, Side]) -> bool:
    """A slice of another dimension than the example's, or `[:]`, which torch 2.6 records for `x[:, 0]` as well."""
    limits = [getattr(node, f"_saved_{name}", None) for name in ("start", "end", "step")]
    whole = limits[0] in (0, None) and limits[1] in (WHOLE, None) and limits[2] == 1
    return elementwise_from_left(here, below) if whole else along("dim")(node, here, below)


_TABLE: Mapping[str, Rule] = {
    **dict.fromkeys(
        """Abs Add Addcmul Addcdiv Atan Atan2 Celu Clamp ClampMax ClampMin Cos Cosh Digamma Div Dropout Elu Erf Erfc Exp
        Erfinv Expm1 Expand Fill Gelu Hardshrink Hardsigmoid Hardswish Hardtanh HuberLoss LeakyRelu Lerp Lgamma Log
        Log10 Log1P Log2 LogSigmoid LogSigmoidForward Logaddexp Logaddexp2 MaskedFill Maximum Minimum Mish MseLoss Mul
        NativeDropout Neg PreluKernel Pow Reciprocal Relu Rsqrt Rsub Selu Sigmoid Silu Sin Sinc Sinh SmoothL1Loss
        SoftMarginLoss Softplus Softshrink Sqrt Sub Tan Tanh Threshold Where Xlogy BinaryCrossEntropy
        BinaryCrossEntropyWithLogits KlDiv Square Asin Acos Asinh Acosh Atanh Fmod Remainder Sign Round Floor Ceil
        Real Imag Conj ViewAsReal ViewAsComplex Complex Polar Angle Tril Triu NanToNum
        TanhBackward SigmoidBackward GeluBackward SiluBackward EluBackward SoftplusBackward LeakyReluBackward
        ThresholdBackward HardswishBackward HardsigmoidBackward LogSigmoidBackward MishBackward MseLossBackward
        SmoothL1LossBackward NativeDropoutBackward""".split(),  # noqa: SIM905
        elementwise,
    ),
    **dict.fromkeys(
        """Sum Mean Amax Amin Max Min Logsumexp LinalgVectorNorm Norm Softmax SafeSoftmax LogSoftmax Var Std VarMean
        StdMean Prod Cumsum Cumprod Logcumsumexp Cummax Cummin Unbind Select Narrow Split SplitWithSizes
        UnsafeSplit Chunk Gather IndexSelect Scatter ScatterAdd IndexAdd IndexCopy IndexFill Topk Sort Kthvalue Median
        Mode Glu FftR2C FftC2R FftC2C Renorm SoftmaxBackwardData LogSoftmaxBackwardData""".split(),  # noqa: SIM905
        along("dim"),
    ),
    **dict.fromkeys(("Cat", "Stack", "Unsqueeze"), along("dim", output=True)),
    **dict.fromkeys(("Flip", "Roll"), along("dims")),
    "Slice": sliced,
    "Unfold": along("dimension"),
    "Diagonal": along("dim1", "dim2"),
    "Repeat": repeated,
    **dict.fromkeys(
        """Convolution NativeGroupNorm PixelShuffle PixelUnshuffle Im2Col Col2Im NllLoss NllLoss2D NllLossNd
        MultilabelMarginLoss MultiMarginLoss GridSampler2D GridSampler3D NllLossBackward CtcLoss""".split(),  # noqa: SIM905
        by_batch,
    ),
    **dict.fromkeys(
        """MaxPool1D MaxPool2DWithIndices MaxPool3DWithIndices MkldnnMaxPool2D AvgPool1D AvgPool2D AvgPool3D
        AdaptiveAvgPool1D AdaptiveAvgPool2D AdaptiveAvgPool3D AdaptiveMaxPool2D MkldnnAdaptiveAvgPool2D ConstantPadNd
        ReflectionPad1D ReflectionPad2D ReflectionPad3D ReplicationPad1D ReplicationPad2D ReplicationPad3D
        UpsampleNearest1D UpsampleNearest2D UpsampleBilinear2D UpsampleBicubic2D UpsampleTrilinear3D
        UpsampleNearestExact2D""".split(),  # noqa: SIM905
        by_channel,
    ),
    **dict.fromkeys(("NativeLayerNorm", "FusedRmsNorm"), normalised),
    **dict.fromkeys(("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"), batch_normalised),
    **dict.fromkeys(
        """ScaledDotProductEfficientAttention ScaledDotProductFlashAttention ScaledDotProductFlashAttentionForCpu
        ScaledDotProductCudnnAttention ScaledDotProductAttentionMath""".split(),  # noqa: SIM905
        by_channel,
    ),
    **dict.fromkeys(
        "LinalgInvEx LinalgSolveEx LinalgCholeskyEx LinalgDet LinalgQr LinalgEigh LinalgMatrixExp Cholesky".split(),  # noqa: SIM905
        matrices,
    ),
    "Mm": product(0, batched=False),
    "Addmm": product(1, batched=False),
    "SparseAddmm": product(1, batched=False),
    "Bmm": product(0, batched=True),
    "Baddbmm": product(1, batched=True),
    "Index": indexed,
}


def keeps_examples_apart(
    graph: Graph, owners: Mapping[tuple[int, int], Owner], uses: Sequence[Use]
) -> tuple[bool, list[Node]]:
    """Whether no other values could lead an example's gradient elsewhere on its way to these uses.

    Also the nodes whose indices must be those of the examples in order for that (`out_of_order`).
    """
    nodes = {use.arc.node for use in uses}
    cone = ancestors(graph, nodes)
    asked = []
    for node in cone:
        below: dict[int, Side] = {}
        for slot, (child, k) in enumerate(node.next_functions):
            if child is not None and (child in cone or child in nodes):
                layout = owners.get((graph.number[child], k))
                if layout is None:
                    continue  # this output of the child gets no gradient
                if not isinstance(layout, Layout) or not layout.certain:
                    return False, []
                below[slot] = (layout, torch.Size(outputs(child)[k].shape))
        rule = _TABLE.get(base_name(node))
        for k, meta in enumerate(outputs(node)):
            layout = owners.get((graph.number[node], k))
            if layout is None:
                continue
            if not isinstance(layout, Layout) or not layout.certain:
                return False, []
            if hands_on(node) or node.name() in REARRANGE or not node.next_functions:
                continue
            if rule is None or not rule(node, (layout, torch.Size(meta.shape)), below):
                return False, []
            if rule is indexed:
                asked.append(node)
    return True, asked


def out_of_order(nodes: Sequence[Node]) -> list[Tensor]:
    """Whether the indices of nodes are not those of the examples, in order, in this batch: flags on the device."""
    return [flag for node in nodes if (flag := _out_of_order(node)) is not None]
