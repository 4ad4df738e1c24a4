"""Quantize by thinning: independent Bernoulli(|g_l|/‖g‖) draws, by `draw` and by the sum over products alike.

Every statistic is a mean of 10⁴ draws and is allowed four of its standard errors.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

from cases import classify
from mechanisms.slow import gradients_of
from variegrad.mechanisms import Draws, Quantize, backward, thinning
from variegrad.moments import GradientMoments

DRAWS = 10_000
ROWS = {
    "plain": [1.0, -0.5, 0.25],
    "one large": [8.0, -0.1, 0.2],
    "zeros": [0.0, 1.0, 0.0],
    "one alone": [0.0, 0.0, -2.0],
    "half": [1.0, 1.0, 1.0],
}
COLUMNS = [0.5, -1.0, 0.0, 0.3]


def hits(rows, columns, formed):
    """Which coordinates of r ⊗ c were kept in each of 10⁴ draws, and ‖g‖."""
    r, c = torch.tensor([rows] * DRAWS), torch.tensor([columns] * DRAWS)
    norm = torch.outer(r[0], c[0]).double().norm()
    draws = Draws.keyed(7, "weight", torch.empty(len(rows), len(columns)), range(DRAWS), norms=norm.expand(DRAWS))
    if formed:
        return Quantize().draw(r.unsqueeze(2) * c.unsqueeze(1), draws), float(norm)
    found = torch.zeros(DRAWS, len(rows), len(columns))
    for i in range(DRAWS):
        one = Draws.keyed(7, "weight", torch.empty(len(rows), len(columns)), [i], norms=norm.reshape(1))
        found[i] = Quantize().sum_of_outer(r[:1], c[:1], one)
    return found, float(norm)


@pytest.mark.parametrize("formed", [True, False], ids=["draw", "products"])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_marginals_and_pair_covariances_are_those_of_independent_draws(rows, formed):
    found, norm = hits(rows, COLUMNS, formed)
    g = torch.outer(torch.tensor(rows), torch.tensor(COLUMNS)).double()
    q = (g.abs() / norm).reshape(-1).numpy()
    values = found.reshape(DRAWS, -1).double()
    kept = (values != 0).numpy().astype(float)
    assert torch.allclose(values.abs()[values != 0], torch.tensor(norm).double(), rtol=1e-6)
    assert bool((values.sign() * g.reshape(-1).sign() >= 0).all())
    error = np.sqrt(q * (1 - q) / DRAWS)
    assert (np.abs(kept.mean(0) - q) <= 4 * error + 1e-7).all()
    covariance = (kept - q).T @ (kept - q) / DRAWS
    bound = 4 * np.sqrt(np.outer(q * (1 - q), q * (1 - q)) / DRAWS) + 1e-3  # and rare pairs
    np.fill_diagonal(covariance, 0)
    assert (np.abs(covariance) <= bound).all()


@pytest.mark.parametrize("formed", [True, False], ids=["draw", "products"])
def test_the_summed_form_has_the_closed_form_s_moments(formed):
    torch.manual_seed(2)
    left, right = torch.relu(torch.randn(6, 5)), torch.randn(6, 4)
    g = (left.unsqueeze(2) * right.unsqueeze(1)).double()
    norms = g.reshape(6, -1).norm(dim=1)
    diversity = GradientMoments.from_gradients(g.reshape(6, -1)).diversity
    l1 = float((g.abs().sum((1, 2)) * norms).sum())
    sums = []
    for k in range(4000):
        draws = Draws.keyed(1, "weight", torch.empty(5, 4), range(6 * k, 6 * k + 6), norms=norms)
        sums.append(Quantize().draw(g.float(), draws).sum(0) if formed else Quantize().sum_of_outer(left, right, draws))
    sums = torch.stack(sums).double().reshape(4000, -1)
    mean, error = sums.mean(0), sums.std(0) / math.sqrt(4000)
    assert bool(((mean - g.sum(0).reshape(-1)).abs() <= 4 * error + 1e-9).all())
    squares = sums.square().sum(1)
    wanted = diversity.sq_norm_of_sum + l1 - diversity.sum_sq_norms
    assert abs(float(squares.mean()) - wanted) < 4 * float(squares.std()) / math.sqrt(4000)


@pytest.mark.parametrize("shape", [(5, 4), (1, 7), (9, 1), (40, 60)])
def test_products_and_formed_gradients_are_drawn_alike(shape):
    # Which of the two the engine offers may depend on how a batch is shared: the draws must not.
    torch.manual_seed(3)
    left, right = torch.relu(torch.randn(64, shape[0])).double(), torch.randn(64, shape[1]).double()
    left[:, 0] += 0.1
    g = left.unsqueeze(2) * right.unsqueeze(1)
    norms = g.reshape(64, -1).norm(dim=1)
    one, other = (Draws.keyed(1, "weight", torch.empty(shape), range(64), norms=norms) for _ in range(2))
    torch.testing.assert_close(Quantize().sum_of_outer(left, right, one), Quantize().draw(g, other).sum(0))


def test_a_batch_in_parts_is_the_same_batch():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 3))
    model, batch = model.double(), (torch.randn(6, 2, 6).double(), torch.arange(6) % 3)
    backward(model, classify, batch, mechanism=Quantize(), samples_seen=30)
    whole = gradients_of(model)
    for part in (range(4), range(4, 6)):
        here = tuple(column[part.start : part.stop] for column in batch)
        backward(model, classify, here, mechanism=Quantize(), samples_seen=30, positions=part, total=6)
    for name, found in gradients_of(model).items():
        torch.testing.assert_close(found, whole[name], rtol=1e-9, atol=1e-12)


def test_rows_that_were_formed_for_their_norms_are_not_formed_again(monkeypatch):
    from variegrad.per_example.capture import Capture
    from variegrad.per_example.check import FIRST

    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    batch = torch.randn(5, 1, 6, 6), torch.arange(5) % 3
    for _ in range(FIRST):  # these are compared with the loop
        backward(model, classify, batch, mechanism=Quantize())
    asked, rows = [], Capture.rows

    def counting(self, name, *arguments):
        asked.append(name)
        return rows(self, name, *arguments)

    monkeypatch.setattr(Capture, "rows", counting)
    backward(model, classify, batch, mechanism=Quantize())
    assert sorted(asked) == ["0.bias", "0.weight", "3.bias"]


@pytest.mark.parametrize("formed", [True, False], ids=["rows", "products"])
def test_several_points_of_one_coordinate_are_one_success(formed):
    # Few coordinates, all below one half: half of the examples have a coordinate with two points or more.
    left, right = torch.ones(400, 3), torch.ones(400, 4)
    norms = torch.full((400,), 12.0).double().sqrt()
    draws = Draws.keyed(1, "weight", torch.empty(3, 4), range(400), norms=norms)
    if formed:
        found = Quantize().sum_of_rows(left.unsqueeze(2) * right.unsqueeze(1), draws)
    else:
        found = Quantize().sum_of_outer(left, right, draws)
    hits = found.double() / norms[0]
    assert float(hits.max()) < 400 / 12**0.5 + 5 * (400 * 0.29 * 0.71) ** 0.5
    assert abs(float(hits.mean()) - 400 / 12**0.5) < 5 * (400 * 0.29 * 0.71 / 12) ** 0.5


def moved_by(relative, repeats=8):
    """Share of the successes that differ if factors are rounded otherwise, and the least that any exact draws allow."""
    random = np.random.default_rng(0)
    left, right = np.abs(random.normal(size=(64, 256))), np.abs(random.normal(size=(64, 512)))
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    successes = found = least = 0.0
    for repeat in range(repeats):
        one, two = (each * (1 + relative * random.uniform(-1, 1, each.shape)) for each in (left, right))
        drawn = [
            set(
                zip(
                    *(place.tolist() for place in thinning.of_products(*factors, norms, repeat, range(64))), strict=True
                )
            )
            for factors in ((left, right), (one, two))
        ]
        successes, found = successes + len(drawn[0]), found + len(drawn[0] ^ drawn[1])
        changes = np.abs(left[:, :, None] * right[:, None] - one[:, :, None] * two[:, None]).sum((1, 2))
        least += float((changes / norms).sum())
    return found / successes, least / successes


def test_gradients_that_are_rounded_otherwise_move_few_nonzeros_but_no_exact_draw_moves_none():
    # P(η ≠ η′) ≥ |q − q′| however η and η′ are drawn, if each has its own probability.
    found, least = moved_by(2.0**-12)
    assert 0 < least < found < 200 * least
    assert moved_by(2.0**-24)[0] < 1e-4  # float32
    assert moved_by(2.0**-50)[0] == 0  # float64
