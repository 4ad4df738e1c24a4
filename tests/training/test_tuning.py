"""The tuner's optimum is interior, its interval honest, and runs that are stacked are those made one by one."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import variegrad as vg
from variegrad.training import Epochs, TrainConfig, Tuned, WithReplacement, tune, tuning
from variegrad.training.evaluation import mean_of
from variegrad.training.tuning_stacked import can_be_stacked, stacked_losses


def squared(model, batch):
    return (model(batch[0]).squeeze(1) - batch[1]) ** 2 / 2


def cross(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def line(n=24, noise=0.0):
    """One weight, f_i = (x_i w − y_i)²/2 with x_i = ±1: full batches contract w − 1 by 1 − γn, best at γ = 1/n."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randint(0, 2, (n, 1), generator=generator) * 2 - 1).double()
    return TensorDataset(x, x[:, 0] + noise * torch.randn(n, generator=generator).double())


def one_weight():
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(0.0)
    return model


def config(**changes):
    return TrainConfig(**{"batch_size": 24, "step_size": 0.01, "passes": 3, "sampling": Epochs(), **changes})


@pytest.mark.parametrize("middle", [0.0003, 0.02, 0.09])
def test_the_best_step_of_a_parabola_is_found_wherever_the_grid_begins(middle):
    found = tune(one_weight(), squared, line(), config(step_size=middle), repeats=1)
    assert found.interior
    # The grid's resolution: the best is within √2 of 1/24, and better than both neighbours.
    assert 1 / math.sqrt(2) <= found.step_size * 24 <= math.sqrt(2)
    sizes = [arm.step_size for arm in found.arms]
    at = sizes.index(found.step_size)
    assert sizes[at + 1] / sizes[at] == pytest.approx(math.sqrt(2))
    assert sizes[at] / sizes[at - 1] == pytest.approx(math.sqrt(2))
    assert all(found.arms[at].mean_loss <= arm.mean_loss for arm in found.arms)
    assert all(arm.diverged == (arm.step_size * 24 > 2) for arm in found.arms)  # |1 − γn| > 1


def test_an_edge_is_said_to_be_one():
    found = tune(one_weight(), squared, line(), config(step_size=1e-6), repeats=1, growth=2)
    assert not found.interior
    assert "at the edge of what was tried: the best may lie beyond" in str(found)
    assert "one run per step size cannot tell it from others" in str(found)


def test_step_sizes_that_all_diverge_are_an_error():
    with pytest.raises(ValueError, match=r"every step size from 0\.\d+ up diverged or did not lower the loss"):
        tune(one_weight(), squared, line(), config(step_size=10.0), growth=2)


def test_the_interval_holds_what_repeats_cannot_tell_apart():
    settings = {"batch_size": 2, "step_size": 0.1, "passes": 4, "sampling": WithReplacement()}
    noisy = tune(one_weight(), squared, line(noise=1.0), config(**settings), repeats=4)
    assert noisy.cannot_separate
    assert noisy.low <= noisy.step_size <= noisy.high
    assert f"statistically indistinguishable from step sizes in [{noisy.low:.4g}, {noisy.high:.4g}]" in str(noisy)
    clean = tune(one_weight(), squared, line(), config(), repeats=3)  # full batches: every repeat is the same
    assert not clean.cannot_separate
    assert "better than every other" in str(clean)


def test_the_model_and_the_global_state_are_left_alone():
    model = one_weight()
    before = torch.get_rng_state()
    tune(model, squared, line(), config(), repeats=2)
    assert model.weight.item() == 0
    assert model.weight.grad is None
    assert torch.equal(torch.get_rng_state(), before)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.second.weight = self.first.weight
        self.last.bias.requires_grad_(False)
        self.double()

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Normed(nn.Sequential):
    def __init__(self):
        torch.manual_seed(1)
        super().__init__(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2))
        self.double()
        self[3].eval()


def labelled(n=25):
    generator = torch.Generator().manual_seed(2)
    return TensorDataset(torch.randn(n, 3, generator=generator).double(), torch.arange(n) % 2)


def one_by_one(model, settings, sizes, seeds):
    found = []
    for seed in seeds:
        found.append([])
        for size in sizes:
            net = copy.deepcopy(model)
            of_run = TrainConfig(**{**settings, "seed": seed, "step_size": size})
            for _ in vg.train(net, cross, labelled(), of_run):
                pass
            found[-1].append(mean_of(cross, net, labelled()))
    return found


@pytest.mark.parametrize("model", [Tied(), Normed()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("sampling", [WithReplacement(), Epochs()], ids=str)
def test_stacked_runs_are_those_made_one_by_one(model, sampling):
    settings = {"batch_size": 4, "step_size": 1.0, "passes": 2, "sampling": sampling}
    sizes, seeds = [0.01, 0.03, 0.1, 0.3], [0, 5]
    assert can_be_stacked(model, TrainConfig(**settings))
    found = stacked_losses(model, cross, labelled(), TrainConfig(**settings), sizes, seeds)
    # float64: products sum in another order, over 13 updates of steps up to 1.2 of the mean gradient
    np.testing.assert_allclose(found, one_by_one(model, settings, sizes, seeds), rtol=1e-11)


def test_what_cannot_be_stacked_is_run_one_by_one(monkeypatch):
    torch.manual_seed(0)
    dropped = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)).double()
    settings = config(batch_size=5, step_size=0.05, passes=1)
    found = tune(dropped, cross, labelled(), settings, repeats=1, growth=0)
    monkeypatch.setattr(tuning, "can_be_stacked", lambda *_: False)
    assert tune(dropped, cross, labelled(), settings, repeats=1, growth=0) == found
    assert not can_be_stacked(dropped, config(mechanism=vg.DropConnect(0.4)))
    settings = config(mechanism=vg.DropConnect(0.4), passes=1)
    assert isinstance(tune(dropped.eval(), cross, labelled(), settings, repeats=1, growth=0), Tuned)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 4}, "points must be odd and at least 3; got 4"),
        ({"points": 1}, "points must be odd and at least 3; got 1"),
        ({"growth": -1}, "growth must be at least 0 and repeats at least 1; got -1 and 3"),
        ({"repeats": 0}, "growth must be at least 0 and repeats at least 1; got 8 and 0"),
        ({"confidence": 1.0}, "confidence must lie between 0 and 1; got 1.0"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tune(one_weight(), squared, line(), config(), **options)


def test_an_endless_budget_is_refused():
    with pytest.raises(ValueError, match="passes must be finite"):
        tune(one_weight(), squared, line(), config(passes=math.inf))
