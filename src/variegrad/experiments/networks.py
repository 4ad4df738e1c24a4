"""The networks of the experiments by a word: those of the paper, and smaller ones of the same make.

`mlp:64x64:relu` is a perceptron with two hidden layers, `convnet:16` the cuda-convnet with that many channels where the
paper's has 64 (and fully connected layers narrowed alike), `mnist-cnn:8` likewise; `resnet8` has one block per stage
where `resnet20` has three.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

from variegrad.problems import mlp, resnet20
from variegrad.problems.models import BasicBlock

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "sigmoid": nn.Sigmoid, "identity": nn.Identity,
}  # fmt: skip


def network(word: str, inputs: tuple[int, ...], classes: int, *, seed: int) -> nn.Module:
    """The network of a word.

    Args:
        word: `mlp:WIDTHxWIDTH…:ACTIVATION`, `convnet:CHANNELS[:ACTIVATION]`, `mnist-cnn:CHANNELS`, `resnet20` or
            `resnet8`.
        inputs: shape of one example.
        classes: how many logits.
        seed: of the starting weights.

    Returns:
        The network at its starting weights.

    Raises:
        ValueError: if the word is none of these.
    """
    kind, *options = word.split(":")
    if kind == "mlp" and len(options) == 2:
        hidden = [int(width) for width in options[0].split("x")]
        size = int(torch.Size(inputs).numel())
        return mlp([size, *hidden, classes], ACTIVATIONS[options[1]], seed=seed)
    if kind in ("convnet", "mnist-cnn") and 1 <= len(options) <= 2:
        activation = ACTIVATIONS[options[1] if len(options) == 2 else "relu"]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            build = _convnet if kind == "convnet" else _mnist_cnn
            return build(inputs, classes, int(options[0]), activation)
    if word == "resnet20":
        return resnet20(seed=seed)
    if word == "resnet8":
        return _resnet8(seed)
    raise ValueError(
        f"network: unknown word {word!r}; write mlp:64x64:relu, convnet:16, mnist-cnn:8, resnet20 or resnet8."
    )


def _resnet8(seed: int) -> nn.Module:
    """`problems.resnet20` with every second and third block of a stage left out."""
    layers = list(resnet20(seed=seed))
    blocks = [layer for layer in layers if isinstance(layer, BasicBlock)]
    return nn.Sequential(*(layer for layer in layers if layer not in blocks or blocks.index(layer) % 3 == 0))


def _convnet(inputs: tuple[int, ...], classes: int, channels: int, activation: Callable[[], nn.Module]) -> nn.Module:
    """`problems.cuda_convnet` with other widths: 64 channels, 384 and 192 features there."""
    colours, height, width = inputs
    left = math.ceil(height / 4) * math.ceil(width / 4)  # pixels after two pools that round up

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, stride=2, ceil_mode=True)

    def response_norm() -> nn.Module:
        return nn.LocalResponseNorm(9, alpha=0.001, beta=0.75, k=1.0)

    return nn.Sequential(
        *(nn.Conv2d(colours, channels, 5, padding=2), activation(), pool(), response_norm()),
        *(nn.Conv2d(channels, channels, 5, padding=2), activation(), response_norm(), pool()),
        *(nn.Flatten(), nn.Linear(channels * left, 6 * channels), activation()),
        *(nn.Linear(6 * channels, 3 * channels), activation(), nn.Linear(3 * channels, classes)),
    )


def _mnist_cnn(inputs: tuple[int, ...], classes: int, channels: int, activation: Callable[[], nn.Module]) -> nn.Module:
    """`problems.mnist_cnn` with other widths: 32 channels, then 64, and 512 features there."""
    colours, height, width = inputs
    return nn.Sequential(
        *(nn.Conv2d(colours, channels, 5, padding=2), activation(), nn.MaxPool2d(2)),
        *(nn.Conv2d(channels, 2 * channels, 5, padding=2), activation(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(2 * channels * (height // 4) * (width // 4), 16 * channels), activation()),
        nn.Linear(16 * channels, classes),
    )
