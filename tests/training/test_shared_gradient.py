"""`shared_gradient` leaves Σ m(∇f) in `.grad` for any optimizer; `train` is that with w ← Π_W(w − γ·Σ)."""

import math
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset

import variegrad as vg
from variegrad.problems.models import resnet20
from variegrad.training import Phases, Position, Skip, WithReplacement


def losses(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def data(hole=None):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(11, 4, generator=generator).double()
    if hole is not None:
        x[hole] = math.nan
    return TensorDataset(x, torch.arange(11) % 3)


def config(**changes):
    return vg.TrainConfig(**{"batch_size": 4, "step_size": 0.05, "passes": math.inf, "seed": 1, **changes})


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


MECHANISMS = [None, vg.DropConnect(0.4), vg.Langevin(0.1), vg.Quantize()]
OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
}


@pytest.mark.parametrize("granularity", ["example", "worker"])
@pytest.mark.parametrize("mechanism", MECHANISMS, ids=str)
def test_with_torch_s_sgd_it_is_train(mechanism, granularity):
    settings = config(mechanism=mechanism, granularity=granularity)
    one, other = model(), model()
    wanted = list(islice(vg.train(one, losses, data(), settings), 6))
    optimizer = torch.optim.SGD(other.parameters(), lr=0.05)
    found = []
    for update in islice(vg.shared_gradient(other, losses, data(), settings), 6):
        optimizer.step()
        found.append(update)
    assert torch.equal(weights(one), weights(other))
    assert [(u.updates, u.examples, u.mean_loss) for u in found] == [
        (u.updates, u.examples, u.mean_loss) for u in wanted
    ]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_any_optimizer_steps_on_the_summed_gradient(make):
    one, other = model(), model()
    optimizer, plain = make(one.parameters()), make(other.parameters())
    for k, update in enumerate(islice(vg.shared_gradient(one, losses, data(), config()), 6)):
        drawn = WithReplacement().batch(1, 4 * k, 4, 11)
        plain.zero_grad()
        losses(other, tuple(column[drawn] for column in data().tensors)).sum().backward()
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-15)
        assert update.batch_size == 4
        optimizer.step()
        plain.step()
    torch.testing.assert_close(weights(one), weights(other), rtol=1e-10, atol=1e-14)


def test_it_resumes_with_the_optimizer_s_state_and_across_a_change_of_b():
    phases = Phases({0: config(mechanism=vg.DropConnect(0.4)), 12: config(batch_size=7)})

    def go(net, optimizer, updates, start=0):
        made = []
        for update in islice(vg.shared_gradient(net, losses, data(), phases, start=start), updates):
            optimizer.step()
            made.append(update)
        return made[-1]

    whole, parts = model(), model()
    go(whole, OPTIMIZERS["Adam"](whole.parameters()), 8)
    optimizer = OPTIMIZERS["Adam"](parts.parameters())
    last = go(parts, optimizer, 2)
    again = OPTIMIZERS["Adam"](parts.parameters())
    again.load_state_dict(optimizer.state_dict())
    go(parts, again, 6, start=last.position)
    assert torch.equal(weights(whole), weights(parts))


def test_an_update_that_is_left_out_moves_nothing():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    seen = 0
    for update in islice(vg.shared_gradient(net, losses, data(7), config(when_not_finite=Skip(99))), 12):
        before = weights(net)
        if math.isnan(update.mean_loss):
            seen += 1
            assert all(p.grad is None for p in net.parameters())
            optimizer.step()
            assert torch.equal(weights(net), before)
        optimizer.step()
    assert seen == update.left_out > 0
    assert weights(net).isfinite().all()


class Reads(TorchDispatchMode):
    """Counts what a device would have to be waited for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        self.count += "_local_scalar_dense" in str(function)
        return function(*arguments, **(named or {}))


@pytest.mark.parametrize(
    ("mechanism", "granularity", "most"),
    [(None, "example", 1), (vg.Langevin(0.1), "example", 2), (vg.DropConnect(0.4), "worker", 2)],
    ids=str,
)
def test_a_step_reads_the_device_once(mechanism, granularity, most):
    # `tolist` reads all its numbers at once and is not counted on a CPU: that is the one read of a step.
    net = resnet20()
    images = TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8) % 10)
    settings = config(batch_size=2, mechanism=mechanism, granularity=granularity, step_size=1e-3)
    run = vg.train(net, losses, images, settings, start=Position(examples=2, updates=1))
    next(run)  # the engine learns, and weights are compared after a first update
    with Reads() as reads:
        next(run)
    assert reads.count + 1 <= most
