"""The models of the paper's experiments, and the multilayer perceptron, by their field's standard definitions.

Weights start from PyTorch's own initialisation of each layer (`resnet20`: He et al. 2015). They are a function of
`seed` alone: they are drawn on the CPU, and the global generators are left as they were found. The first dimension of
a batch is the example, and every model answers each example independently of the others, as per-example gradients
require; batch normalisation, where a caller asks for it, is the exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu

from variegrad.shapes import Float

Norm = Callable[[int], nn.Module]


def logistic_regression(inputs: int, classes: int = 2, *, seed: int = 0) -> nn.Sequential:
    """Logistic regression: one logit ⟨w, x⟩ + v for two classes, a softmax over K logits for K > 2.

    Args:
        inputs: features of one example, in any shape.
        classes: K ≥ 2.
        seed: of the starting weights.

    Returns:
        A model from (b, …) to (b, 1) or (b, K): `inputs` + 1 parameters, or K times as many.

    Raises:
        ValueError: if there are fewer than two classes.

    Source: the generalised linear models of Section 3 of the paper.
    """
    if classes < 2:
        raise ValueError(f"logistic_regression: classes must be at least 2; got {classes}.")
    with _drawn_from(seed):
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 1 if classes == 2 else classes))


def mlp(sizes: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU, *, seed: int = 0) -> nn.Sequential:
    """A multilayer perceptron with an activation between its linear layers and none after the last.

    Args:
        sizes: features of the input, of each hidden layer and of the output.
        activation: makes one activation.
        seed: of the starting weights.

    Returns:
        A model from (b, …) to (b, sizes[-1]) with Σ (sizes[k] + 1)·sizes[k+1] parameters.

    Raises:
        ValueError: if there is no layer, that is fewer than two sizes.
    """
    if len(sizes) < 2:
        raise ValueError(f"mlp: sizes must include at least the input and the output; got {list(sizes)}.")
    with _drawn_from(seed):
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), activation()]
        return nn.Sequential(*layers[:-1])


def mnist_cnn(*, seed: int = 0) -> nn.Sequential:
    """The convolutional network of the TensorFlow MNIST tutorial, without its dropout: 1,663,370 parameters.

    conv 5×5×32, ReLU, pool 2/2, conv 5×5×64, ReLU, pool 2/2, fc 512, ReLU, fc 10; convolutions keep the size.

    Args:
        seed: of the starting weights.

    Returns:
        A model from (b, 1, 28, 28) to (b, 10).

    Source: `models/image/mnist/convolutional.py` of TensorFlow 0.x (Table 1 of the paper).
    """
    with _drawn_from(seed):
        return nn.Sequential(
            *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(64 * 7 * 7, 512), nn.ReLU(), nn.Linear(512, 10)),
        )


def cuda_convnet(*, seed: int = 0) -> nn.Sequential:
    """The cuda-convnet variant of the TensorFlow CIFAR-10 tutorial on whole 32×32 images: 1,756,426 parameters.

    conv 5×5×64, ReLU, pool 3/2, LRN, conv 5×5×64, ReLU, LRN, pool 3/2, fc 384, ReLU, fc 192, ReLU, fc 10. The tutorial
    crops images to 24×24; here they are not cropped, so that the training set is finite.

    Args:
        seed: of the starting weights.

    Returns:
        A model from (b, 3, 32, 32) to (b, 10).

    Source: `models/image/cifar10/cifar10.py` of TensorFlow 0.x, after A. Krizhevsky's cuda-convnet (Figures 1 to 3).
    """

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, stride=2, ceil_mode=True)  # rounding up is what TensorFlow's 'SAME' does to an even size

    with _drawn_from(seed):
        return nn.Sequential(
            *(nn.Conv2d(3, 64, 5, padding=2), nn.ReLU(), pool(), ResponseNorm()),
            *(nn.Conv2d(64, 64, 5, padding=2), nn.ReLU(), ResponseNorm(), pool()),
            *(nn.Flatten(), nn.Linear(64 * 8 * 8, 384), nn.ReLU(), nn.Linear(384, 192), nn.ReLU(), nn.Linear(192, 10)),
        )


class ResponseNorm(nn.Module):
    """Local response normalisation of the tutorial: x_c / (1 + 0.001/9 · Σ x_k²)^0.75, nine channels k.

    As `nn.LocalResponseNorm(9, alpha=0.001, beta=0.75, k=1.0)`, but the sums over channels are one product with a band
    of ones, and the power is two square roots, which is faster.
    """

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The normalised activations."""
        channel = torch.arange(x.shape[1], device=x.device)
        band = ((channel[:, None] - channel).abs() <= 4).to(x.dtype) * (0.001 / 9)  # TensorFlow: radius 4
        root = (1 + (x.square().movedim(1, -1) @ band).movedim(-1, 1)).sqrt()
        return x / (root * root.sqrt())


def group_norm(channels: int) -> nn.Module:
    """Group normalisation with eight channels to a group, which keeps examples apart (Wu and He 2018).

    Args:
        channels: a multiple of eight.

    Returns:
        The layer.
    """
    return nn.GroupNorm(channels // 8, channels)


def resnet20(norm: Norm = group_norm, *, seed: int = 0) -> nn.Sequential:
    """The residual network with 20 layers for CIFAR-10: 269,722 parameters with group or batch normalisation.

    conv 3×3×16, then three stages of three basic blocks with 16, 32 and 64 channels, global average, fc 10. Shortcuts
    have no parameters: where the size changes they skip every second pixel and pad with zero channels (option A).

    Args:
        norm: makes the normalisation of given channels: `group_norm`, or `nn.BatchNorm2d` as first published, which
            couples the examples of a batch while it is in training mode.
        seed: of the starting weights.

    Returns:
        A model from (b, 3, 32, 32) to (b, 10).

    Source: He, Zhang, Ren, Sun 2016, "Deep Residual Learning for Image Recognition", Section 4.2 (Figure 2c).
    """
    widths = [16] * 4 + [32] * 3 + [64] * 3
    with _drawn_from(seed):
        model = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1, bias=False), norm(16), nn.ReLU()),
            *(BasicBlock(inputs, outputs, norm) for inputs, outputs in pairwise(widths)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
        )
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


class BasicBlock(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))), halving the image where the number of channels grows."""

    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        """A block with given numbers of input and output channels.

        Args:
            inputs: channels that come in.
            outputs: channels that go out, at least as many.
            norm: makes a normalisation for a number of channels.
        """
        super().__init__()
        self.stride = 1 if inputs == outputs else 2
        self.new_channels = outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=self.stride, padding=1, bias=False)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = norm(outputs)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """The block's output.

        Args:
            x: a batch of images.

        Returns:
            A batch of images, of half the size where channels were added.
        """
        shortcut = x
        if self.new_channels:
            shortcut = pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.new_channels // 2, self.new_channels // 2))
        return relu(shortcut + self.norm2(self.conv2(relu(self.norm1(self.conv1(x))))))


@contextmanager
def _drawn_from(seed: int) -> Iterator[None]:
    # Only the CPU's generator is seeded: torch.manual_seed would reseed the accelerators' too.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield
