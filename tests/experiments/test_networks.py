"""Networks by name, on images and on digits, whose features are flat."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from variegrad.experiments.networks import ChannelsLast, network

WORDS = ["mlp:8x8:relu", "convnet:4", "convnet:4:tanh", "mnist-cnn:4", "resnet8", "resnet20"]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("inputs", [(64,), (3, 16, 16)], ids=["digits", "images"])
def test_every_network_takes_images_and_the_digits_that_stand_in(word: str, inputs: tuple[int, ...]) -> None:
    assert network(word, inputs, 10, seed=0)(torch.rand(5, *inputs)).shape == (5, 10)


@pytest.mark.parametrize("inputs", [(63,), (8, 8)])
def test_features_that_are_no_image_are_refused_by_name(inputs: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="needs images"):
        network("convnet:4", inputs, 10, seed=0)


def test_channels_last_changes_no_number() -> None:
    layers = network("convnet:4", (3, 16, 16), 10, seed=0).double()
    assert isinstance(layers, nn.Sequential)
    x = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    without = nn.Sequential(*(layer for layer in layers if not isinstance(layer, ChannelsLast)))
    torch.testing.assert_close(layers(x), without(x))
