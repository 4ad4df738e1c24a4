"""What a worker sends in an update, by count: one message per step, whatever P is, and the bytes of the gradient."""

import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import TensorDataset

from cases import classify
from variegrad import DropConnect, Langevin, Quantize, TrainConfig, shared_gradient, train
from variegrad.distributed.exchange import VOTES
from variegrad.distributed.workers import World
from variegrad.training import Skip


@pytest.fixture(params=[2, 64, 1024])
def size(request):
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=request.param)
    yield request.param
    dist.destroy_process_group()


@pytest.fixture
def sent(monkeypatch):
    """Bytes of each collective."""
    found = []

    def noting(original):
        def noted(first, *arguments, **named):
            found.append(first.nbytes if isinstance(first, torch.Tensor) else len(first))
            return original(first, *arguments, **named)

        return noted

    for name in ("all_reduce", "broadcast", "all_gather", "batch_isend_irecv"):
        monkeypatch.setattr(dist, name, noting(getattr(dist, name)))
    return found


def run_of(size, make, width=256, **settings):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(4 * size, 64), torch.arange(4 * size) % 10)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    config = TrainConfig(batch_size=2 * size, step_size=1e-4, passes=math.inf, **settings)
    return make(model, classify, data, config, World(rank=0, size=size)), sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("make", [train, shared_gradient])
@pytest.mark.parametrize(
    "settings",
    [{}, {"mechanism": DropConnect(0.5)}, {"mechanism": Quantize()}, {"mechanism": Langevin(0.1)},
     {"when_not_finite": Skip(at_most=3)}],
    ids=str,
)  # fmt: skip
def test_an_update_is_one_message_of_the_gradient_and_the_votes(size, sent, make, settings):
    run, parameters = run_of(size, make, **settings)
    next(run)  # and what is compared once
    sent.clear()
    for _ in range(3):
        next(run)
    assert sent == [4 * (parameters + VOTES)] * 3
    run.close()


def test_buckets_of_25_megabytes_are_filled(size, sent):
    run, parameters = run_of(size, train, width=100_000)
    next(run)
    sent.clear()
    next(run)
    assert sum(sent) == 4 * (parameters + VOTES)
    assert len(sent) <= 1 + math.ceil(4 * parameters / (25 * 2**20))
    run.close()


def test_a_run_that_has_ended_leaves_no_hook(size):
    run, _ = run_of(size, train)
    next(run)
    model = run.gi_frame.f_locals["model"]
    run.close()
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
