"""The balanced sign probe is unbiased for Σ‖∇f_i‖², whatever the model; checked by enumerating all signs."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from cases import classify, energy
from reference import loop_gradients
from variegrad import sign_probe
from variegrad.estimators import estimate_from_workers
from variegrad.keys import balanced_signs, generator


def flat(model, losses, batch):
    rows = loop_gradients(model, losses, batch)
    return torch.cat([r.double().reshape(len(r), -1) for r in rows.values()], 1)


def test_the_identity_behind_it_by_enumeration():
    g = torch.randn(6, 4, dtype=torch.float64)
    chosen = [s for s in itertools.product((1.0, -1.0), repeat=6) if sum(s) == 0]
    mean = sum(float((torch.tensor(s, dtype=torch.float64) @ g).square().sum()) for s in chosen) / len(chosen)
    assert mean == pytest.approx((6 * float(g.square().sum()) - float(g.sum(0).square().sum())) / 5, rel=1e-12)


@pytest.mark.parametrize("count", [6, 7])
def test_many_probes_agree_with_the_loop(count):
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double(), torch.randn(count, 4).double()
    truth = float(flat(model, energy, x).square().sum())
    probe = sign_probe(model, energy, x, probes=400)
    spread = torch.tensor(probe.values).std() / 400**0.5
    assert abs(probe.sum_sq_norms - truth) < 4 * float(spread)  # 4 standard errors of 400 keyed draws
    assert probe.low < truth < probe.high


def test_it_works_where_examples_are_coupled():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).train()
    batch = (torch.randn(8, 4), torch.arange(8) % 3)
    truth = float(flat(model, classify, batch).square().sum())
    probe = sign_probe(model, classify, batch, probes=200)
    assert abs(probe.sum_sq_norms - truth) < 4 * float(torch.tensor(probe.values).std()) / 200**0.5


def test_signs_are_balanced_and_a_function_of_their_key():
    for count in (2, 7, 64):
        signs = balanced_signs(count, 3, 1)
        assert float(signs.sum()) == 0
        assert int((signs == 0).sum()) == count % 2
        assert torch.equal(signs, balanced_signs(count, 3, 1))
    assert not torch.equal(balanced_signs(64, 3, 1), balanced_signs(64, 3, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 3}, "groups must be 0"),
        ({"probes": 1}, "probes must be at least 2"),
        ({"confidence": 1.0}, "confidence must lie in"),
    ],
)
def test_unusable_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        sign_probe(nn.Linear(4, 2), energy, torch.randn(4, 4), **settings)


def test_a_single_example_is_refused():
    with pytest.raises(ValueError, match="at least 2 examples"):
        sign_probe(nn.Linear(4, 2), energy, torch.randn(1, 4))


def batch_norm(count):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).train()
    return model, (torch.randn(count, 4), torch.arange(count) % 3)


@pytest.mark.parametrize("count", [8, 33, 64])
def test_the_bound_is_that_of_random_groups_of_the_losses(count):
    model, batch = batch_norm(count)
    found = sign_probe(model, classify, batch, groups=4, seed=5)
    rows = flat(model, classify, batch)
    parts = np.array_split(generator(5, "groups", 0).permutation(count), 4)
    means = torch.stack([rows[torch.as_tensor(part)].mean(0) for part in parts])
    expected = estimate_from_workers(means @ means.T, [len(part) for part in parts])
    # The gradients are float32; fewer coordinates than a sketch has sums, but parameters share them.
    assert found.bound.coherence == pytest.approx(expected.coherence, rel=1e-4, abs=1e-6)
    assert found.bound.batch_size_bound == pytest.approx(expected.batch_size_bound, rel=1e-3)
    assert found.bound.count == 4


def test_the_bound_covers_that_of_the_population_with_batch_norm():
    model, (x, y) = batch_norm(4096)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()
    rows = flat(model, classify, (x[:512], y[:512]))  # within a large batch
    a, s = rows.square().sum(), rows.sum(0).square().sum()
    truth = float(512 * a / s)
    covered = 0
    for k in range(20):
        batch = x[k * 128 : (k + 1) * 128], y[k * 128 : (k + 1) * 128]
        bound = sign_probe(model, classify, batch, probes=2, seed=k).bound
        covered += bound.low <= truth <= bound.high
    assert covered >= 16  # 20 draws of 0.95 fall below 16 with probability 0.003


def test_too_few_examples_have_no_bound_and_say_so():
    model, batch = batch_norm(6)
    found = sign_probe(model, classify, batch)
    assert found.bound is None
    assert "at least 8" in str(found)
    assert sign_probe(*batch_norm(8)[:1], classify, batch_norm(8)[1], groups=0).bound is None
    assert "groups of losses" in str(sign_probe(batch_norm(16)[0], classify, batch_norm(16)[1]))
