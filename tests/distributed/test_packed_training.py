"""`train` with a mechanism for each worker sends packed sums; the run is the one that dense sums give."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from distributed.ranks import play
from variegrad.distributed import packed_sum as room
from variegrad.distributed import payloads
from variegrad.distributed.world import World
from variegrad.mechanisms import DropConnect, Langevin, Quantize
from variegrad.training import Epochs, Skip, TrainConfig, train
from variegrad.training.shared_update import SharedUpdate


def losses(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def _trained(rank, ranks, mechanism, packed, spoiled=None):
    """Weights, and how many sums were packed; the last batch of a pass has fewer examples than there are ranks."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 3000), nn.Tanh(), nn.Linear(3000, 3))  # packing must pay
    generator = torch.Generator().manual_seed(4)
    x, y = torch.randn(21, 4, generator=generator), torch.arange(21) % 3
    if spoiled is not None:
        x[spoiled] = torch.nan
    config = TrainConfig(
        batch_size=5, step_size=0.005, passes=2, mechanism=mechanism, granularity="worker", seed=2, sampling=Epochs(),
        when_not_finite=Skip(5),
    )  # fmt: skip
    if not packed:
        SharedUpdate._packed_sums = lambda *_: None  # in this process only
    counted = 0
    exchange = payloads.exchange

    def counting(*arguments, **named):
        nonlocal counted
        counted += 1
        return exchange(*arguments, **named)

    room.payloads.exchange = counting
    steps = list(train(model, losses, TensorDataset(x, y), config, World(rank=rank, size=ranks)))
    weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return weights.numpy(), counted, len(steps), steps[-1].left_out


@pytest.mark.parametrize(
    ("ranks", "mechanism"),
    [(2, Quantize()), (2, Quantize().then(DropConnect(0.5))), (3, DropConnect(0.6)), (5, Quantize())],
    ids=str,
)
def test_packed_and_dense_sums_train_alike(ranks, mechanism):
    dense = play(ranks, _trained, ranks, mechanism, False)
    for weights, counted, steps, _ in play(ranks, _trained, ranks, mechanism, True):
        assert counted == steps == 10
        # Three float32 terms may be added in another order; two may not.
        np.testing.assert_allclose(weights, play_first(dense), rtol=1e-5 if ranks > 2 else 0, atol=1e-7 * (ranks > 2))


def play_first(played):
    assert all(counted == 0 for _, counted, *_ in played)
    return played[0][0]


def test_noise_is_left_to_dense_sums():
    assert [counted for _, counted, *_ in play(2, _trained, 2, Langevin(0.1), True)] == [0, 0]


def test_an_update_that_is_not_finite_on_one_worker_is_left_out_on_all():
    played = play(2, _trained, 2, Quantize(), True, 7)
    for weights, counted, steps, skipped in played:
        assert (skipped, counted, steps) == (2, 8, 10)  # once in each pass
        assert np.isfinite(weights).all()
        np.testing.assert_array_equal(weights, played[0][0])
