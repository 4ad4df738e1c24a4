"""Lemma 1 with a mechanism: (1+δ)BγM² with M² and δ = (B−1)/B_eff of m(∇f), by enumeration of all draws and masks."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch

from variegrad.mechanisms import DropConnect, Mechanism, Quantize
from variegrad.moments import GradientMoments

G = np.array([[1.0, -0.5], [0.25, 0.75], [0.5, 1.0]])
W, TARGET, STEP_SIZE = np.array([0.5, -1.0]), np.array([0.1, 0.2]), 0.3
D = GradientMoments.from_gradients(torch.from_numpy(G)).diversity
MECHANISMS = [DropConnect(0.3), DropConnect(0.6, rescale=False), Quantize(), Quantize().then(DropConnect(0.5))]


def outcomes(mechanism: Mechanism, g: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """Every value of m(g) with its probability."""
    if hasattr(mechanism, "second"):
        first = outcomes(mechanism.first, g)  # type: ignore[attr-defined]
        return [(p * q, b) for p, a in first for q, b in outcomes(mechanism.second, a)]
    norm = np.linalg.norm(g)
    if isinstance(mechanism, DropConnect):
        keep, values = np.full(len(g), 1 - mechanism.p), g / ((1 - mechanism.p) if mechanism.rescale else 1)
    else:
        keep, values = np.abs(g) / (norm or 1), norm * np.sign(g)
    return [(float(np.prod(np.where(mask, keep, 1 - keep))), values * mask) for mask in product((0, 1), repeat=len(g))]


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=str)
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_fresh_draws_have_the_effective_bound(mechanism: Mechanism, batch_size: int) -> None:
    drawn = [(p / len(G), m) for g in G for p, m in outcomes(mechanism, g)]
    found = sum(
        np.prod([p for p, _ in joint]) * np.square(W - STEP_SIZE * sum(m for _, m in joint) - TARGET).sum()
        for joint in product(drawn, repeat=batch_size)
    )
    second_moment = mechanism.expected_sq_norm(D) / len(G)
    delta = (batch_size - 1) / D.effective_bound_with(mechanism)
    wanted = np.square(W - TARGET).sum()
    wanted -= 2 * batch_size * STEP_SIZE * mechanism.mean_scale * G.mean(0) @ (W - TARGET)
    wanted += (1 + delta) * batch_size * STEP_SIZE**2 * second_moment
    assert found == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("mechanism", MECHANISMS[:3], ids=str)
def test_without_replacement_it_is_the_paper_s_bound_that_enters(mechanism: Mechanism) -> None:
    # δ = (B−1)ρ_DIM with ρ_DIM = (n/B_DIM − 1)/(n − 1), which is ρ/(1+t).
    found, count = 0.0, 0
    for draw in permutations(range(len(G)), 2):
        count += 1
        for joint in product(*(outcomes(mechanism, G[i]) for i in draw)):
            found += np.prod([p for p, _ in joint]) * np.square(sum(m for _, m in joint)).sum()
    n, second_moment = len(G), mechanism.expected_sq_norm(D) / len(G)
    coherence = (n / D.bound_with(mechanism) - 1) / (n - 1)
    assert found / count == pytest.approx(2 * second_moment * (1 + coherence), rel=1e-12)
    t = D.effective_bound_with(mechanism) / D.batch_size_bound - 1
    assert coherence == pytest.approx(D.coherence / (1 + t))
