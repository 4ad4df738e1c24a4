"""A run in a stack is the run it would be alone: against a slow loop and against `train`; masks are DropConnect's."""

import pytest
import torch
from torch.nn.functional import softplus
from torch.utils.data import TensorDataset

from reference import loop_gradients
from variegrad.experiments.stacked_logistic import masked, run_stack
from variegrad.moments import GradientMoments
from variegrad.problems import logistic_regression
from variegrad.problems.classification import logistic_losses
from variegrad.training import TrainConfig, WithReplacement, train

RUNS = [(0.02, 0.0), (0.05, 0.5), (0.1, 0.0), (0.02, 0.5), (0.03, 0.3)]  # (γ, p), mechanisms mixed


def problem(n=30, d=7):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, d, generator=generator).double()
    return x, torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0).double(), torch.zeros(d).double() + 0.1


def stacked(runs, positions=None, at=(3, 8), batch_size=5):
    x, signs, w = problem()
    positions = torch.arange(len(x)) if positions is None else positions
    return run_stack(
        x, signs, w, positions, batch_size=batch_size, step_sizes=[g for g, _ in runs], drops=[p for _, p in runs],
        at=list(at), seed=4,
    )  # fmt: skip


def one_by_one(gamma, p, positions, at, batch_size=5):
    """One example after the other, in float64: losses, bounds and mean batch loss of a single run."""
    x, signs, w = problem()
    every, kept = len(positions), []

    def loss(w, i):
        return softplus(-signs[i] * (x[i] @ w))

    def measured(w):
        gradients = torch.stack([torch.func.grad(loss)(w, i) for i in positions])
        bound = GradientMoments.from_gradients(gradients).diversity.batch_size_bound
        return float(torch.stack([loss(w, i) for i in positions]).mean()), bound

    kept.append(measured(w))
    online = 0.0
    for update in range(max(at)):
        drawn = positions[WithReplacement().batch(4, update * batch_size, batch_size, every)]
        rows = x[drawn]
        masks = masked(torch.ones_like(rows), p, 4, update) if p else torch.ones_like(rows)
        online += float(torch.stack([loss(w, i) for i in drawn]).mean())
        total = sum(mask * torch.func.grad(loss)(w, i) for i, mask in zip(drawn, masks, strict=True))
        w = w - gamma * total
        if update + 1 in at:
            kept.append(measured(w))
    losses, bounds = zip(*kept, strict=True)
    return losses, bounds, online / max(at)


@pytest.mark.parametrize("copies", [1, 3])
def test_a_stack_is_its_runs_one_by_one(copies):
    positions = torch.arange(30) if copies == 1 else torch.arange(10).repeat(3)
    for (gamma, p), curve in zip(RUNS, stacked(RUNS, positions), strict=True):
        losses, bounds, online = one_by_one(gamma, p, positions, (3, 8))
        assert curve.losses == pytest.approx(losses, rel=1e-12)
        assert curve.bounds == pytest.approx(bounds, rel=1e-11)
        assert curve.online_loss == pytest.approx(online, rel=1e-12)


def test_a_run_does_not_depend_on_its_stack():
    for run, curve in zip(RUNS, stacked(RUNS), strict=True):
        (alone,) = stacked([run])
        assert curve.losses == pytest.approx(alone.losses, rel=1e-13)
        assert curve.bounds == pytest.approx(alone.bounds, rel=1e-12)


def test_without_a_mechanism_a_run_is_what_train_makes_of_it():
    x, signs, _ = problem()
    model = logistic_regression(7, seed=0).double()
    weights = torch.cat([model[1].weight.detach().ravel(), model[1].bias.detach()])
    data = TensorDataset(x, (signs > 0).long())
    features = torch.cat([x, torch.ones(30, 1).double()], 1)
    (curve,) = run_stack(
        features, signs, weights, torch.arange(30), batch_size=5, step_sizes=[0.05], drops=[0.0], at=[12], seed=3
    )
    steps = list(train(model, logistic_losses, data, TrainConfig(batch_size=5, step_size=0.05, passes=2.0, seed=3)))
    assert len(steps) == 12
    assert curve.losses[-1] == pytest.approx(float(logistic_losses(model, data.tensors).detach().mean()), rel=1e-12)
    assert curve.online_loss == pytest.approx(sum(step.mean_loss for step in steps) / 12, rel=1e-12)
    rows = loop_gradients(model, logistic_losses, data.tensors)
    gradients = torch.cat([part.flatten(1) for part in rows.values()], 1)
    bound = GradientMoments.from_gradients(gradients).diversity.batch_size_bound
    assert curve.bounds[-1] == pytest.approx(bound, rel=1e-10)


@pytest.mark.parametrize("p", [0.5, 0.3])
def test_masks_are_dropconnect_s(p):
    ones = torch.ones(64, 500)
    first, again, other = masked(ones, p, 0, 7), masked(ones, p, 0, 7), masked(ones, p, 0, 8)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])
    kept = (first > 0).float()
    # 32,000 coordinates: four standard errors of a Bernoulli mean; rows agree no more often than by chance.
    assert float(kept.mean()) == pytest.approx(1 - p, abs=4 * (p * (1 - p) / 32_000) ** 0.5)
    agreement = float((kept[:-1] == kept[1:]).float().mean())
    assert agreement == pytest.approx(p**2 + (1 - p) ** 2, abs=4 * 0.5 / 31_500**0.5)


def test_divergence_is_a_result():
    (curve,) = stacked([(1e300, 0.0)], at=(1, 4))
    assert not all(map(torch.isfinite, torch.tensor(curve.losses)))


def test_step_sizes_and_mechanisms_are_as_many():
    x, signs, w = problem()
    with pytest.raises(ValueError, match="one drop probability a step size is needed; got 1 and 2"):
        run_stack(x, signs, w, torch.arange(30), batch_size=5, step_sizes=[0.1, 0.2], drops=[0.0], at=[1], seed=0)
