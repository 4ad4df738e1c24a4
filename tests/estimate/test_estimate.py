from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from reference import loop_gradients
from variegrad.estimators import by_group, by_layer, by_parameter, estimate, estimate_from_gram


def losses(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y, reduction="none")


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.0), nn.Linear(5, 3)).double()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20, 6, dtype=torch.float64, generator=generator)
    return x, torch.randint(3, (20,), generator=generator)


def reference(model, batch, scale=None, names=None):
    rows = loop_gradients(model, losses, batch)
    chosen = [r.flatten(1) * (scale[n].flatten() if scale else 1) for n, r in rows.items() if not names or n in names]
    flat = torch.cat(chosen, 1)
    return flat @ flat.T


def same(found, expected) -> None:
    for name in ("batch_size_bound", "low", "high", "lower_confidence_bound", "coherence", "standard_error"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-9)


@pytest.mark.parametrize("population", [None, 20, 200])
def test_estimate_is_the_estimate_of_the_loops_gram_matrix(model, batch, population) -> None:
    same(estimate(model, losses, batch, population=population),
         estimate_from_gram(reference(model, batch), population=population))  # fmt: skip


def test_parts_are_layers_parameters_or_groups_and_recombine_harmonically(model, batch) -> None:
    layers = estimate(model, losses, batch, population=20, per=by_layer)
    assert set(layers.parts) == {"0", "3"}
    same(layers.parts["3"], estimate_from_gram(reference(model, batch, names=["3.weight", "3.bias"]), population=20))
    assert set(estimate(model, losses, batch, per=by_parameter).parts) == {"0.weight", "0.bias", "3.weight", "3.bias"}

    groups = [{"params": model[0].parameters()}, {"params": [model[3].bias]}]
    found = estimate(model, losses, batch, per=by_group(model, torch.optim.SGD(groups, lr=0.1)))
    assert set(found.parts) == {"group 0", "group 1", "no group"}

    norms = {part: float(reference(model, batch, names=[f"{part}.weight", f"{part}.bias"]).trace()) for part in "03"}
    mixed = sum(norms[p] / layers.parts[p].batch_size_bound for p in "03") / sum(norms.values())
    assert 1 / layers.batch_size_bound == pytest.approx(mixed)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_adams_diversity_uses_its_lagged_bias_corrected_second_moment(model, batch, optimizer) -> None:
    adam = optimizer(model.parameters(), lr=1e-2, eps=1e-3, betas=(0.9, 0.95))
    for _ in range(3):
        adam.zero_grad()
        losses(model, batch).mean().backward()
        adam.step()
    scale = {
        name: ((adam.state[p]["exp_avg_sq"] / (1 - 0.95**3)).sqrt() + 1e-3).rsqrt()
        for name, p in model.named_parameters()
    }
    expected = estimate_from_gram(reference(model, batch, scale), population=100)
    same(estimate(model, losses, batch, population=100, preconditioner=adam), expected)


def test_a_mapping_of_second_moments_and_the_definition_of_the_preconditioned_bound(model, batch) -> None:
    moments = {p: torch.rand_like(p) for p in model.parameters()}
    rows = loop_gradients(model, losses, batch)
    numerator = denominator = 0.0
    for name, p in model.named_parameters():
        precision = 1 / (moments[p].sqrt() + 1e-8)
        numerator += float((rows[name].square() * precision).sum()) * 20
        denominator += float((rows[name].sum(0).square() * precision).sum())
    found = estimate(model, losses, batch, population=20, preconditioner=moments)
    assert found.batch_size_bound == pytest.approx(numerator / denominator)


def test_nothing_is_left_behind(model, batch) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model[0].weight.grad = torch.full_like(model[0].weight, 7.0)
    with torch.no_grad():
        estimate(model, losses, batch)
    assert all(p.equal(before[name]) for name, p in model.named_parameters())
    assert model[0].weight.grad.eq(7).all()
    assert model[3].weight.grad is None


def test_unused_and_frozen_parameters_do_not_count(model, batch) -> None:
    expected = estimate_from_gram(reference(model, batch, names=["3.weight", "3.bias"]))
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    model[0].requires_grad_(requires_grad=False)
    same(estimate(model, losses, batch), expected)


def nan_losses(model, batch):
    return losses(model, batch) * torch.where(torch.arange(20) == 7, math.nan, 1.0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda m, b: losses(m, b).mean(), r"got a scalar"),
        (lambda m, b: losses(m, b).detach(), r"without a graph"),
        (nan_losses, r"the loss of example 7 of the batch is nan"),
    ],
)
def test_bad_losses_are_refused(model, batch, bad, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate(model, bad, batch)


def test_coupled_examples_are_refused_by_the_name_of_the_module(batch) -> None:
    normed = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)).double()
    with pytest.raises(ValueError, match=r"BatchNorm1d '1' uses the statistics of the batch"):
        estimate(normed, losses, batch)
    assert not estimate(normed.eval(), losses, batch).undefined


@pytest.mark.parametrize(("count", "message"), [(0, r"has no example"), (1, r"at least 2 examples")])
def test_too_small_a_batch_is_refused(model, batch, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate(model, losses, tuple(t[:count] for t in batch))


def test_a_frozen_model_is_refused(model, batch) -> None:
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        estimate(model.requires_grad_(requires_grad=False), losses, batch)


def test_second_moments_that_do_not_fit_are_refused(model, batch) -> None:
    good = {p: torch.ones_like(p) for p in model.parameters()}
    for change, message in (
        (good | {model[3].bias: torch.ones(4)}, r"'3.bias' must have its shape \(3,\); got \(4,\)"),
        (good | {model[3].bias: -torch.ones(3)}, r"'3.bias' must be finite and not negative"),
        ({}, r"'0.weight' has no second moment"),
        (torch.optim.Adam(model.parameters()), r"'0.weight' has no second moment"),
    ):
        with pytest.raises(ValueError, match=message):
            estimate(model, losses, batch, preconditioner=change)


def test_an_optimizer_that_is_no_adam_is_refused(model, batch) -> None:
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses(model, batch).mean().backward()
    sgd.step()
    with pytest.raises(TypeError, match="SGD has none"):
        estimate(model, losses, batch, preconditioner=sgd)
