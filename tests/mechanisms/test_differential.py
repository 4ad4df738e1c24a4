"""The same draw at both weights: DropConnect acts on the differences of gradients, shared noise cancels."""

import copy
from statistics import fmean, stdev

import pytest
import torch
from torch import nn

from cases import classify
from mechanisms.drawn_differences import drawn_differences
from variegrad.measurement import measure_differential
from variegrad.mechanisms import DropConnect, Langevin


def twins():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return model, other, (torch.randn(4, 4).double(), torch.arange(4) % 3)


def test_the_closed_form_of_dropconnect_holds_for_differences():
    model, other, batch = twins()
    closed = measure_differential(model, other, classify, [batch])
    mechanism, steps = DropConnect(0.4), 60
    each, whole = [], []
    for step in range(steps):
        found = drawn_differences(model, other, classify, batch, mechanism, samples_seen=4 * step).diversity
        each.append(found.sum_sq_norms)
        whole.append(found.sq_norm_of_sum)
    # Means of 60 steps, four standard errors of their own.
    for values, wanted in (
        (each, mechanism.expected_sq_norm(closed)),
        (whole, 4 * mechanism.expected_sq_norm(closed) / closed.bound_with(mechanism)),
    ):
        assert abs(fmean(values) - wanted) < 4 * stdev(values) / steps**0.5


def test_shared_langevin_noise_leaves_differential_diversity_as_it_is():
    model, other, batch = twins()
    closed = measure_differential(model, other, classify, [batch])
    found = drawn_differences(model, other, classify, batch, Langevin(3.0)).diversity
    assert found.batch_size_bound == pytest.approx(closed.batch_size_bound)


def test_models_that_differ_are_refused():
    model, _, batch = twins()
    with pytest.raises(ValueError, match="compares one model at two weights"):
        drawn_differences(model, nn.Linear(4, 3).double(), classify, batch, DropConnect(0.1))
