"""Weights and biases of LayerNorm, RMSNorm, GroupNorm and of BatchNorm with fixed statistics.

With x̂ the normalised input, g_γ = Σ_t δ_t·x̂_t and g_β = Σ_t δ_t over an example's positions. Batch statistics couple
the examples: such a node is refused before a rule is asked. (InstanceNorm is batch normalisation of a reshaped batch
in the graph, and its weight is a repetition.)
"""

from __future__ import annotations

import torch
from torch import Size, Tensor

from variegrad.per_example.graph import saved
from variegrad.per_example.rules.contribution import Contribution, Dense, NotCovered
from variegrad.per_example.rules.visit import Visit

WEIGHT, BIAS = 1, 2


def layer_norm(visit: Visit, slot: int, shape: Size) -> Contribution:
    """x̂ = (x − mean)/std over the last dimensions."""
    _only_parameters(slot)
    rows = visit.rows(visit.gradient)
    if slot == BIAS:
        return Dense(visit.reduced(rows, shape))
    node = visit.node
    mean, reciprocal = visit.rows(saved(node, "result1")), visit.rows(saved(node, "result2"))
    entries = (visit.rows(saved(node, "input")) - mean).mul_(reciprocal).mul_(rows)
    return Dense(visit.reduced(entries, shape))


def rms_norm(visit: Visit, slot: int, shape: Size) -> Contribution:
    """x̂ = x/rms(x) over the last dimensions."""
    _only_parameters(slot)
    node = visit.node
    entries = visit.rows(saved(node, "input")) * visit.rows(saved(node, "result1"))
    return Dense(visit.reduced(entries * visit.rows(visit.gradient), shape))


def group_norm(visit: Visit, slot: int, shape: Size) -> Contribution:
    """x̂ by groups of channels; a weight and a bias for each channel.

    Σ_t δ_t·(x_t − mean)·r = r·(Σ_t δ_t·x_t − mean·Σ_t δ_t): no normalised copy of the input is made.

    Args:
        visit: the normalisation.
        slot: 1 for the weight, 2 for the bias.
        shape: (C,).

    Returns:
        The contribution.

    Raises:
        NotCovered: if examples do not run along the batch.
    """
    _only_parameters(slot)
    if visit.layout.dim != 0:
        raise NotCovered("a normalisation whose examples do not run along its batch")
    node = visit.node
    images, groups = len(visit.gradient), int(saved(node, "group"))
    scale, shift = _by_image(visit, groups, shape[0])
    if scale is not None and shift is not None:
        return Dense(scale if slot == WEIGHT else shift)
    plain = visit.once("sum", lambda: _positions(visit.rows(visit.gradient)).sum(-1))
    if slot == BIAS:
        return Dense(plain.sum(1))
    product = _dot(_positions(visit.rows(visit.gradient)), _positions(visit.rows(saved(node, "input"))))
    mean, reciprocal = (
        visit.rows(s.view(images, groups)).repeat_interleave(shape[0] // groups, dim=-1)
        for s in (saved(node, "result1"), saved(node, "result2"))
    )
    return Dense(((product - mean * plain) * reciprocal).sum(1))


def batch_norm(visit: Visit, slot: int, shape: Size) -> Contribution:  # noqa: ARG001
    """x̂ by running statistics, channel by channel."""
    _only_parameters(slot)
    node = visit.node
    if saved(node, "training") or saved(node, "running_mean") is None or visit.layout.dim != 0:
        raise NotCovered("batch statistics")
    plain = visit.once("sum", lambda: _positions(visit.rows(visit.gradient)).sum(-1))
    if slot == BIAS:
        return Dense(plain.sum(1))
    product = _dot(_positions(visit.rows(visit.gradient)), _positions(visit.rows(saved(node, "input"))))
    reciprocal = (saved(node, "running_var") + saved(node, "eps")).rsqrt()
    return Dense(((product - saved(node, "running_mean") * plain) * reciprocal).sum(1))


def _by_image(visit: Visit, groups: int, channels: int) -> tuple[Tensor | None, Tensor | None]:
    # The library's own pass over both sums, with every image's channels as channels of one image: nothing is summed
    # over images, and no product of the size of the input is written.
    node = visit.node
    parts = [visit.gradient, saved(node, "input"), saved(node, "result1"), saved(node, "result2")]
    if parts[0].device.type != "cpu" or len({part.dtype for part in parts}) > 1:
        return None, None

    def both() -> Tensor:
        gradient, inputs = (_positions(visit.rows(part)).contiguous() for part in parts[:2])
        images = gradient.shape[0] * gradient.shape[1]
        mean, reciprocal = (visit.rows(part.view(-1, groups)).reshape(1, -1) for part in parts[2:])
        like = gradient.new_empty(images * channels)  # for its shape only
        _, scale, shift = torch.ops.aten.native_group_norm_backward(
            gradient, inputs, mean, reciprocal, like, 1, images * channels, gradient.shape[3], images * groups,
            [False, True, True],
        )  # fmt: skip
        return torch.stack((scale, shift)).view(2, *gradient.shape[:3]).sum(2)

    scale, shift = visit.once("both", both)
    return scale, shift


def _positions(rows: Tensor) -> Tensor:
    # (m, images, C, …) → (m, images, C, positions); a normalisation of vectors has one position.
    return rows.flatten(3) if rows.dim() > 3 else rows.unsqueeze(3)


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return torch.linalg.vecdot(first, second)


def _only_parameters(slot: int) -> None:
    if slot not in (WEIGHT, BIAS):
        raise NotCovered("the input of a normalisation")
