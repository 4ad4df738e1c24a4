"""Twin runs: equal where the data are, apart only by the changed example, and coupled in every draw."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import variegrad as vg
from variegrad.training import Cadence, TrainConfig, twin_runs

SEED = 4


def squared(model, batch):
    return (model(batch[0]).squeeze(1) - batch[1]) ** 2 / 2


def linear():
    torch.manual_seed(0)
    return nn.Linear(5, 1, bias=False).double()


def data(change=0.0):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(30, 5, generator=generator).double(), torch.arange(30).double() % 2
    y[7] += change
    return TensorDataset(x, y)


def run(change=1.0, model=None, every=None, **settings):
    # A seed whose first updates draw example 7, so that the runs are apart when they are first compared.
    config = TrainConfig(**{"batch_size": 4, "step_size": 0.01, "passes": 8, "seed": SEED, **settings})
    return twin_runs(model or linear(), squared, data(), data(change), config, every=every or Cadence(updates=5))


def test_equal_data_give_equal_runs():
    same = run(change=0.0)
    assert max(same.distances) == 0
    assert same.smallest_bound == math.inf


def test_runs_drift_apart_only_by_the_changed_example():
    apart = run()
    assert apart.updates == tuple(range(5, 61, 5))
    assert apart.passes[-1] == 8
    assert 0 < apart.normalised_distances[-1] < 1
    assert 1 <= apart.smallest_bound < math.inf
    assert "60 updates" in str(apart)
    assert "empirical, not a bound" in str(apart)


def test_the_bound_is_that_of_least_squares_by_hand():
    # Δ_i = x_i⟨x_i, w − w′⟩ depends on the direction of w − w′ alone, which one update in which 7 is drawn first sets.
    found = run(every=Cadence(updates=1), batch_size=30, passes=1.0)
    model, x = linear(), data().tensors[0]
    twins = []
    for change in (0.0, 1.0):
        config = TrainConfig(batch_size=30, step_size=0.01, passes=1.0, seed=SEED)
        twin = linear()
        list(vg.train(twin, squared, data(change), config))
        twins.append(twin.weight.detach()[0])
    differences = (x * (x @ (twins[0] - twins[1]))[:, None]).numpy()
    expected = 30 * np.square(differences).sum() / np.square(differences.sum(axis=0)).sum()
    assert found.bounds[-1] == pytest.approx(expected, rel=1e-10)
    assert torch.equal(model.weight, linear().weight)


@pytest.mark.parametrize("mechanism", [vg.DropConnect(0.4), vg.Langevin(0.5), vg.Quantize()], ids=str)
def test_draws_of_a_mechanism_are_shared(mechanism):
    assert max(run(change=0.0, mechanism=mechanism).distances) == 0


def test_the_same_mask_gives_theorem_7_for_the_differences():
    found = run(mechanism=vg.DropConnect(0.4))
    assert found.bounds != run().bounds  # another trajectory
    for plain, dropped in zip(found.bounds, found.mechanism_bounds, strict=True):
        assert 1 / dropped == pytest.approx(0.6 / plain + 0.4 / 30, rel=1e-10)


def test_one_mask_for_the_sum_of_a_worker_claims_no_closed_form():
    found = run(mechanism=vg.DropConnect(0.4), granularity="worker")
    assert found.bounds
    assert found.mechanism_bounds == []


def test_the_same_noise_cancels():
    found, plain = run(mechanism=vg.Langevin(0.05)), run()
    assert found.mechanism_bounds == found.bounds
    # Least squares: with equal noise the difference of the runs obeys the recursion without it.
    assert found.distances == pytest.approx(plain.distances, rel=1e-9)


def test_quantising_is_not_linear_and_claims_nothing():
    assert run(mechanism=vg.Quantize()).mechanism_bounds == []


def test_distances_alone_need_no_measurement():
    config = TrainConfig(batch_size=4, step_size=0.01, passes=1)
    found = twin_runs(linear(), squared, data(), data(1.0), config, every=Cadence(updates=3), bounds=False)
    assert (len(found.distances), found.bounds, found.mechanism_bounds) == (3, [], [])
    assert math.isnan(found.smallest_bound)


def test_twin_runs_need_neighbours_and_an_end():
    config = TrainConfig(batch_size=1, step_size=0.1)
    x, y = data().tensors
    with pytest.raises(ValueError, match="must differ in one example only; got 30 and 29 examples"):
        twin_runs(linear(), squared, data(), TensorDataset(x[1:], y[1:]), config, every=Cadence(updates=1))
    with pytest.raises(ValueError, match=r"give config\.passes a finite number"):
        run(passes=math.inf)
