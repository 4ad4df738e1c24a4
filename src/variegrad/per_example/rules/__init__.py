"""One rule a family of graph nodes: from a node's saved inputs and its output gradient to per-example gradients.

A rule is a function (visit, slot, shape) → `Contribution`: what this use adds to the gradient of
its input `slot`, for each example, without forming b gradients where only their norms are wanted. It raises
`NotCovered` if a setting is outside what it is exact for; the parameter then goes, whole, to the exact fallback.
"""

from variegrad.per_example.rules.contribution import Contribution, Dense, NotCovered, Summed
from variegrad.per_example.rules.convolution import convolution
from variegrad.per_example.rules.elementwise import add, div, expand, mul, prelu, repeat, sub
from variegrad.per_example.rules.embedding import embedding, embedding_bag
from variegrad.per_example.rules.matmul import addmm, bmm, mm
from variegrad.per_example.rules.normalization import batch_norm, group_norm, layer_norm, rms_norm
from variegrad.per_example.rules.sparse import sparse_addmm
from variegrad.per_example.rules.tied import combine
from variegrad.per_example.rules.visit import Visit

RULES = {
    "AddBackward0": add,
    "SubBackward0": sub,
    "MulBackward0": mul,
    "DivBackward0": div,
    "ExpandBackward0": expand,
    "RepeatBackward0": repeat,
    "PreluKernelBackward0": prelu,
    "MmBackward0": mm,
    "AddmmBackward0": addmm,
    "BmmBackward0": bmm,
    "SparseAddmmBackward0": sparse_addmm,
    "ConvolutionBackward0": convolution,
    "EmbeddingBackward0": embedding,
    "EmbeddingBagBackward0": embedding_bag,
    "NativeLayerNormBackward0": layer_norm,
    "FusedRmsNormBackward0": rms_norm,
    "NativeGroupNormBackward0": group_norm,
    "NativeBatchNormBackward0": batch_norm,
}

__all__ = ["RULES", "Contribution", "Dense", "NotCovered", "Summed", "Visit", "combine"]
