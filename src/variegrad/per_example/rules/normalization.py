"""Weights and biases of LayerNorm, RMSNorm, GroupNorm (InstanceNorm) and of BatchNorm with fixed statistics.

With x̂ the normalised input, g_γ = Σ_t δ_t·x̂_t and g_β = Σ_t δ_t over an example's positions. Batch statistics couple
the examples; such a node's gradients are found to be mixed before a rule is asked.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import Node

from variegrad.per_example.ownership import Layout
from variegrad.per_example.rules.contribution import Contribution, Dense, NotCovered
from variegrad.per_example.rules.elementwise import reduce_rows

WEIGHT, BIAS = 1, 2


def layer_norm(node: Node, slot: int, gradient: Tensor, layout: Layout, count: int, shape: torch.Size) -> Contribution:
    """x̂ = (x − mean)/std over the last dimensions.

    Args:
        node: the normalisation.
        slot: 1 for the weight, 2 for the bias.
        gradient: the gradient at its output.
        layout: where its examples are.
        count: b.
        shape: of the parameter.

    Returns:
        The contribution.
    """
    _only_parameters(slot)
    if slot == BIAS:
        return Dense(reduce_rows(gradient, layout, count, shape))
    mean, reciprocal = node._saved_result1, node._saved_result2  # type: ignore[attr-defined]
    normalised = (node._saved_input - mean).mul_(reciprocal).mul_(gradient)  # type: ignore[attr-defined]
    return Dense(reduce_rows(normalised, layout, count, shape))


def rms_norm(node: Node, slot: int, gradient: Tensor, layout: Layout, count: int, shape: torch.Size) -> Contribution:
    """x̂ = x/rms(x) over the last dimensions.

    Args:
        node: the normalisation.
        slot: 1, the weight.
        gradient: the gradient at its output.
        layout: where its examples are.
        count: b.
        shape: of the parameter.

    Returns:
        The contribution.
    """
    _only_parameters(slot)
    normalised = node._saved_input * node._saved_result1 * gradient  # type: ignore[attr-defined]
    return Dense(reduce_rows(normalised, layout, count, shape))


def group_norm(node: Node, slot: int, gradient: Tensor, layout: Layout, count: int, shape: torch.Size) -> Contribution:
    """x̂ by groups of channels; a weight and a bias for each channel.

    Args:
        node: the normalisation.
        slot: 1 for the weight, 2 for the bias.
        gradient: the gradient at its output, (N, C, …).
        layout: where its examples are.
        count: b.
        shape: (C,).

    Returns:
        The contribution.
    """
    _only_parameters(slot)
    channels = torch.Size((*shape, *(1,) * (gradient.dim() - 2)))
    if slot == BIAS:
        return Dense(reduce_rows(gradient, layout, count, channels).flatten(1))
    # Σ δ·(x − mean)·r = r·(Σ δ·x − mean·Σ δ), channel by channel: no normalised copy of the input is needed.
    batch, width = gradient.shape[:2]
    groups = int(node._saved_group)  # type: ignore[attr-defined]
    inputs: Tensor = node._saved_input  # type: ignore[attr-defined]
    product = (gradient * inputs).reshape(batch, width, -1).sum(2).view(batch, groups, -1)
    plain = gradient.reshape(batch, width, -1).sum(2).view(batch, groups, -1)
    mean, reciprocal = (s.view(batch, groups, 1) for s in (node._saved_result1, node._saved_result2))  # type: ignore[attr-defined]
    entries = ((product - mean * plain) * reciprocal).view(batch, width)
    return Dense(reduce_rows(entries, layout, count, shape))


def batch_norm(node: Node, slot: int, gradient: Tensor, layout: Layout, count: int, shape: torch.Size) -> Contribution:
    """x̂ by running statistics, channel by channel.

    Args:
        node: the normalisation.
        slot: 1 for the weight, 2 for the bias.
        gradient: the gradient at its output, (N, C, …).
        layout: where its examples are.
        count: b.
        shape: (C,).

    Returns:
        The contribution.

    Raises:
        NotCovered: if statistics of the batch are used.
    """
    _only_parameters(slot)
    if node._saved_training or node._saved_running_mean is None:  # type: ignore[attr-defined]
        raise NotCovered("batch statistics")
    channels = torch.Size((*shape, *(1,) * (gradient.dim() - 2)))
    if slot == BIAS:
        return Dense(reduce_rows(gradient, layout, count, channels).flatten(1))
    mean = node._saved_running_mean.view(channels)  # type: ignore[attr-defined]
    variance = node._saved_running_var  # type: ignore[attr-defined]
    reciprocal = (variance + node._saved_eps).rsqrt()  # type: ignore[attr-defined]
    entries = (node._saved_input - mean).mul_(gradient)  # type: ignore[attr-defined]
    return Dense(reduce_rows(entries, layout, count, channels).flatten(1) * reciprocal)


def _only_parameters(slot: int) -> None:
    if slot not in (WEIGHT, BIAS):
        raise NotCovered("the input of a normalisation")
