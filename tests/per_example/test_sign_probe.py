"""The balanced sign probe is unbiased for Σ‖∇f_i‖², whatever the model; checked by enumerating all signs."""

import itertools

import pytest
import torch
from torch import nn

from cases import classify, energy
from reference import loop_gradients
from variegrad import sign_probe
from variegrad.per_example.sign_probe import balanced_signs


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
    [({"probes": 1}, "probes must be at least 2"), ({"confidence": 1.0}, "confidence must lie in")],
)
def test_unusable_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        sign_probe(nn.Linear(4, 2), energy, torch.randn(4, 4), **settings)


def test_a_single_example_is_refused():
    with pytest.raises(ValueError, match="at least 2 examples"):
        sign_probe(nn.Linear(4, 2), energy, torch.randn(1, 4))
