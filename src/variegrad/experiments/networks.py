"""The networks of the experiments by a word: those of the paper, and smaller ones of the same make.

`mlp:64x64:relu` is a perceptron with two hidden layers, `convnet:16` the cuda-convnet with that many channels where the
paper's has 64 (and fully connected layers narrowed alike), `mnist-cnn:8` likewise; `resnet8` has one block per stage
where `resnet20` has three.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from variegrad.problems import mlp, resnet20
from variegrad.problems.models import BasicBlock, ResponseNorm
from variegrad.shapes import Float

Image = tuple[int, int, int]  # colours, height, width

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
        ValueError: if the word is none of these, or one example is no image where the network needs one.
    """
    kind, *options = word.split(":")
    if kind == "mlp" and len(options) == 2:
        hidden = [int(width) for width in options[0].split("x")]
        return mlp([math.prod(inputs), *hidden, classes], ACTIVATIONS[options[1]], seed=seed)
    if kind in ("convnet", "mnist-cnn") and 1 <= len(options) <= 2:
        activation = ACTIVATIONS[options[1] if len(options) == 2 else "relu"]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            build = _convnet if kind == "convnet" else _mnist_cnn
            return _on_images(build(_image(inputs), classes, int(options[0]), activation), inputs)
    if word in ("resnet20", "resnet8"):
        return _on_images(resnet20(seed=seed) if word == "resnet20" else _resnet8(seed), inputs, colours=3)
    raise ValueError(
        f"network: unknown word {word!r}; write mlp:64x64:relu, convnet:16, mnist-cnn:8, resnet20 or resnet8."
    )


def _image(inputs: tuple[int, ...]) -> Image:
    """Colours, height and width of one example; flat features are one square grey image, as in digits."""
    side = math.isqrt(math.prod(inputs))
    if len(inputs) == 3:
        return inputs
    if len(inputs) != 1 or side * side != inputs[0]:
        raise ValueError(f"network: a convolutional network needs images; one example has the shape {inputs}.")
    return 1, side, side


def _on_images(layers: nn.Sequential, inputs: tuple[int, ...], *, colours: int = 1) -> nn.Sequential:
    """The network behind a layer that makes images of flat features, with grey ones in as many colours as it reads."""
    if len(inputs) == 3:
        return layers
    return nn.Sequential(nn.Unflatten(1, _image(inputs)), *([Colours(colours)] if colours > 1 else []), *layers)


class Colours(nn.Module):
    """A grey image in as many equal colours as the next layer reads."""

    def __init__(self, colours: int) -> None:
        """A layer that gives this many colours."""
        super().__init__()
        self.colours = colours

    def forward(self, x: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b c h w"]:
        """The images."""
        return x.expand(-1, self.colours, -1, -1)


class ChannelsLast(nn.Module):
    """The same images with channels last in memory, in which pools and norms of few channels are faster on a CPU."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The images."""
        return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _resnet8(seed: int) -> nn.Sequential:
    """`problems.resnet20` with every second and third block of a stage left out."""
    layers = list(resnet20(seed=seed))
    blocks = [layer for layer in layers if isinstance(layer, BasicBlock)]
    return nn.Sequential(*(layer for layer in layers if layer not in blocks or blocks.index(layer) % 3 == 0))


def _convnet(
    inputs: tuple[int, ...], classes: int, channels: int, activation: Callable[[], nn.Module]
) -> nn.Sequential:
    """`problems.cuda_convnet` with other widths: 64 channels, 384 and 192 features there."""
    colours, height, width = inputs
    left = math.ceil(height / 4) * math.ceil(width / 4)  # pixels after two pools that round up

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, stride=2, ceil_mode=True)

    return nn.Sequential(
        ChannelsLast(),
        *(nn.Conv2d(colours, channels, 5, padding=2), activation(), pool(), ResponseNorm()),
        *(nn.Conv2d(channels, channels, 5, padding=2), activation(), ResponseNorm(), pool()),
        *(nn.Flatten(), nn.Linear(channels * left, 6 * channels), activation()),
        *(nn.Linear(6 * channels, 3 * channels), activation(), nn.Linear(3 * channels, classes)),
    )


def _mnist_cnn(
    inputs: tuple[int, ...], classes: int, channels: int, activation: Callable[[], nn.Module]
) -> nn.Sequential:
    """`problems.mnist_cnn` with other widths: 32 channels, then 64, and 512 features there."""
    colours, height, width = inputs
    return nn.Sequential(
        *(nn.Conv2d(colours, channels, 5, padding=2), activation(), nn.MaxPool2d(2)),
        *(nn.Conv2d(channels, 2 * channels, 5, padding=2), activation(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(2 * channels * (height // 4) * (width // 4), 16 * channels), activation()),
        nn.Linear(16 * channels, classes),
    )
