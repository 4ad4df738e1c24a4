"""Theorem 7: where B_D ≤ n, DropConnect, Langevin noise and quantisation do not lower it: B_DIM ≥ B_D."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mechanisms.own import Jitter, SkipExample
from variegrad.mechanisms import DropConnect, Langevin, MomentMatched, Quantize
from variegrad.moments import GradientMoments

MECHANISMS = [
    DropConnect(0.1),
    DropConnect(0.7),
    DropConnect(0.5, rescale=False),
    Langevin(0.3),
    Langevin(3.0),
    Quantize(),
    MomentMatched(DropConnect(0.4)),
    Quantize().then(DropConnect(0.3)),
    DropConnect(0.4, rescale=False).then(Langevin(0.2)),
    Jitter(0.8),
    SkipExample(0.3),
]


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=str)
def test_the_bound_rises_exactly_where_it_did_not_exceed_n(mechanism: object) -> None:
    generator = np.random.default_rng(0)
    below = above = 0
    for _ in range(300):
        n, d = generator.integers(2, 8, size=2)
        gradients = generator.standard_normal((n, d)) + generator.choice([0.0, 1.0])
        diversity = GradientMoments.from_gradients(torch.from_numpy(gradients)).diversity
        with_mechanism = diversity.bound_with(mechanism)
        if diversity.batch_size_bound <= n:
            below += 1
            assert diversity.batch_size_bound * (1 - 1e-12) <= with_mechanism <= n * (1 + 1e-12)
        else:
            above += 1
            assert n * (1 - 1e-12) <= with_mechanism <= diversity.batch_size_bound * (1 + 1e-12)
        # What Lemma 1 needs, where every draw is fresh, rises without any condition.
        assert diversity.effective_bound_with(mechanism) >= diversity.batch_size_bound * (1 - 1e-12)
    assert below > 50 < above


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=str)
def test_the_bound_is_the_mediant_of_b_d_and_n(mechanism: object) -> None:
    gradients = np.random.default_rng(1).standard_normal((5, 4)) + 0.5
    diversity = GradientMoments.from_gradients(torch.from_numpy(gradients)).diversity
    t = diversity.effective_bound_with(mechanism) / diversity.batch_size_bound - 1
    assert diversity.bound_with(mechanism) == pytest.approx(5 * (1 + t) / (5 / diversity.batch_size_bound + t))
