"""The models are those of the literature: parameters counted by hand, shapes, seeds, independence of examples."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from variegrad.problems import cuda_convnet, group_norm, logistic_regression, mlp, mnist_cnn, resnet20
from variegrad.problems.models import ResponseNorm


def conv(size: int, inputs: int, outputs: int, bias: bool = True) -> int:
    return size * size * inputs * outputs + outputs * bias


def fc(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


RESNET20 = (
    conv(3, 3, 16, bias=False)
    + 6 * conv(3, 16, 16, bias=False)
    + conv(3, 16, 32, bias=False)
    + 5 * conv(3, 32, 32, bias=False)
    + conv(3, 32, 64, bias=False)
    + 5 * conv(3, 64, 64, bias=False)
    + 2 * (7 * 16 + 6 * 32 + 6 * 64)
    + fc(64, 10)
)

MODELS = [
    pytest.param(lambda seed: logistic_regression(12, seed=seed), (12,), 1, 13, id="logistic-2"),
    pytest.param(lambda seed: logistic_regression(12, 5, seed=seed), (3, 4), 5, 65, id="logistic-5"),
    pytest.param(lambda seed: mlp([64, 32, 10], seed=seed), (64,), 10, 2410, id="mlp"),
    pytest.param(
        lambda seed: mnist_cnn(seed=seed),
        (1, 28, 28),
        10,
        conv(5, 1, 32) + conv(5, 32, 64) + fc(7 * 7 * 64, 512) + fc(512, 10),
        id="mnist-cnn",
    ),
    pytest.param(
        lambda seed: cuda_convnet(seed=seed),
        (3, 32, 32),
        10,
        conv(5, 3, 64) + conv(5, 64, 64) + fc(8 * 8 * 64, 384) + fc(384, 192) + fc(192, 10),
        id="cuda-convnet",
    ),
    pytest.param(lambda seed: resnet20(seed=seed), (3, 32, 32), 10, RESNET20, id="resnet20-group"),
    pytest.param(lambda seed: resnet20(nn.BatchNorm2d, seed=seed), (3, 32, 32), 10, RESNET20, id="resnet20-batch"),
]

Make = Callable[[int], nn.Module]


@pytest.mark.parametrize(("make", "shape", "outputs", "parameters"), MODELS)
def test_shape_of_answer_and_number_of_parameters(
    make: Make, shape: tuple[int, ...], outputs: int, parameters: int
) -> None:
    model = make(0)
    assert model(torch.zeros(3, *shape)).shape == (3, outputs)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(("make", "shape", "outputs", "parameters"), MODELS)
def test_weights_are_a_function_of_the_seed_and_the_global_generator_is_left_alone(
    make: Make, shape: tuple[int, ...], outputs: int, parameters: int
) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = nn.utils.parameters_to_vector(make(3).parameters())
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert torch.equal(nn.utils.parameters_to_vector(make(3).parameters()), one)
    assert not torch.equal(nn.utils.parameters_to_vector(make(4).parameters()), one)


@pytest.mark.parametrize(("make", "shape", "outputs", "parameters"), MODELS)
def test_examples_are_answered_independently(make: Make, shape: tuple[int, ...], outputs: int, parameters: int) -> None:
    model = make(0).double()
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        model.eval()  # in training mode it couples them, as its documentation says
    batch = torch.randn(4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([model(example[None]) for example in batch])
    torch.testing.assert_close(model(batch), alone, rtol=1e-10, atol=1e-10)


def test_batch_norm_variant_couples_examples_in_training_mode() -> None:
    model = resnet20(nn.BatchNorm2d)
    batch = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(copy.deepcopy(model)(batch)[:2], copy.deepcopy(model)(batch[:2]), atol=1e-3)


def test_published_totals() -> None:
    # 0.27 M is Table 6 of He et al. 2016.
    assert RESNET20 == 269_722


def test_resnet_shortcut_pads_with_zero_channels_and_has_no_parameters() -> None:
    block = resnet20()[6]  # the first block of the second stage
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.rand(2, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(2, 32, 16, 16)
    expected[:, 8:24] = x[:, :, ::2, ::2]
    assert torch.equal(block(x), expected)


def test_local_response_norm_is_tensorflows() -> None:
    # tf.nn.lrn(x, depth_radius=4, bias=1, alpha=0.001/9, beta=0.75), written out.
    layer = next(module for module in cuda_convnet().modules() if isinstance(module, ResponseNorm))
    x = 30 * torch.randn(2, 64, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    expected = torch.empty_like(x)
    for channel in range(64):
        window = x[:, max(0, channel - 4) : channel + 5]
        expected[:, channel] = x[:, channel] / (1 + 0.001 / 9 * window.square().sum(1)) ** 0.75
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(nn.LocalResponseNorm(9, alpha=0.001, beta=0.75, k=1.0)(x), expected)


def test_group_norm_has_eight_channels_to_a_group() -> None:
    layer = group_norm(32)
    assert isinstance(layer, nn.GroupNorm)
    assert layer.num_groups == 4


def test_mlp_takes_any_activation() -> None:
    layers = list(mlp([4, 3, 3, 2], nn.Tanh))
    assert [type(layer) for layer in layers] == [nn.Flatten, nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]


def test_too_few_sizes_or_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sizes must include at least the input and the output; got \[4\]"):
        mlp([4])
    with pytest.raises(ValueError, match="classes must be at least 2; got 1"):
        logistic_regression(4, 1)
