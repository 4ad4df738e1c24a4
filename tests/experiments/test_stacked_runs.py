"""Stacked runs are the runs one by one."""

import math

import pytest
import torch

from variegrad.experiments import data, experiment, training_run
from variegrad.experiments.records import Cell
from variegrad.experiments.stacked_runs import run, run_stack, stack
from variegrad.experiments.sweep import TOGETHER, grouped
from variegrad.experiments.training_run import aligned, run_once

VALUES = {
    "problem": "digits", "max_examples": 64, "network": "mlp:16:relu", "batch_size": 8, "at": aligned(8, 4, 64, 8),
}  # fmt: skip


def cells(*pairs, **values):
    return [Cell(experiment="any", version=1, values={**VALUES, **values, "seed": seed, "step_size": step})
            for seed, step in pairs]  # fmt: skip


def assert_alike(one, other):
    assert one.keys() == other.keys()
    for name, expected in other.items():
        if isinstance(expected, list):
            assert one[name] == pytest.approx(expected, rel=2e-3, abs=1e-4, nan_ok=True), name
        else:
            assert one[name] == pytest.approx(expected, rel=2e-3, abs=1e-4, nan_ok=True), name


PAIRS = ((0, 0.01), (0, 0.05), (1, 0.05))


@pytest.mark.parametrize(
    "values",
    [
        {"bounds_every": 2, "test": True},
        {"r": 4},
        {"batch_size": 32, "at": aligned(8, 4, 64, 32)},
        {"problem": "digits", "network": "mlp:8x8:tanh"},
        {"target": 0.5},
    ],
)
def test_a_stack_is_its_runs_one_by_one(values, monkeypatch):
    monkeypatch.setattr(training_run, "NEAR", math.inf)
    chosen = cells(*PAIRS, **values)
    for one, cell in zip(run_stack(chosen, data.CPU), chosen, strict=True):
        assert_alike(one, run_once(cell))


def test_convolutions_stack():
    images = cells((0, 0.01), (1, 0.02), problem="mnist-like", network="convnet:2")
    x, y = torch.randn(16, 3, 8, 8), torch.arange(16) % 4
    from variegrad.experiments.networks import network
    from variegrad.experiments.stacked_runs import _total
    from variegrad.problems.classification import softmax_losses

    models = [network("convnet:2", (3, 8, 8), 4, seed=cell["seed"]) for cell in images]
    state, _ = torch.func.stack_module_state(models)
    weights = {f"model.{name}": value.detach() for name, value in state.items()}
    batch = (torch.stack([x, x]), torch.stack([y, y]))
    gradients, sums = torch.func.vmap(torch.func.grad_and_value(_total(models[0], softmax_losses)))(weights, batch)
    for place, model in enumerate(models):
        loss = softmax_losses(model, (x, y)).sum()
        loss.backward()
        torch.testing.assert_close(sums[place], loss.detach())
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[f"model.{name}"][place], parameter.grad, rtol=1e-4, atol=1e-5)


def test_a_run_that_diverges_leaves_its_neighbours_alone():
    chosen = cells((0, 0.05), (0, 1e30))
    calm, wild = run_stack(chosen, data.CPU)
    assert wild["diverged"]
    assert wild["losses"][-1] == wild["online_loss"] == math.inf
    assert_alike(calm, run_once(chosen[0]))


def test_cells_with_a_mechanism_or_an_optimizer_are_alone_and_stacks_are_small():
    assert len({stack(cell) for cell in cells(*PAIRS, optimizer="Adam")}) == len(PAIRS)
    plain, masked = cells(*((seed, 0.05) for seed in range(40))), cells(*PAIRS, drop=0.5)
    assert len({stack(cell) for cell in plain}) == 1
    assert len({stack(cell) for cell in masked}) == len(masked)
    groups = grouped(experiment("figure-2b"), [*plain, *masked], torch.device("cuda"))
    assert sorted(map(len, groups)) == [1, 1, 1, 8, TOGETHER, TOGETHER]
    assert all(len(group) == 1 for group in grouped(experiment("figure-2b"), [*plain, *masked], data.CPU))
    assert len(run(masked[:1])) == 1
