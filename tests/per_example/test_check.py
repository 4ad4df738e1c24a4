"""When and how the engine's numbers are compared with the loop."""

import pytest
import torch
from torch import nn

from cases import energy
from variegrad.per_example.check import Reference, Schedule, prints


def test_the_schedule_checks_powers_of_two_and_then_every_sixty_fourth_batch():
    schedule = Schedule()
    assert [k for k in range(1, 300) if schedule.due(7)] == [1, 2, 3, 4, 8, 16, 32, 64, 128, 192, 256]


def test_another_example_is_checked_each_time_and_again_starts_anew():
    schedule = Schedule()
    seen = {schedule.example(1, 100) for _ in range(40) if schedule.due(1) or True}
    assert len(seen) > 20
    schedule.again(1)
    assert schedule.due(1)


def test_the_schedule_forgets_what_was_not_seen_for_long():
    schedule = Schedule(remembered=4)
    for structure in range(10):
        assert schedule.due(structure)
    assert schedule.due(0)
    assert len(schedule._batches) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_prints_do_not_depend_on_the_layout(dtype):
    gradient = torch.randn(7, 3, 110, dtype=dtype)
    turned = gradient.transpose(0, 2).contiguous().transpose(0, 2)
    assert torch.allclose(prints(turned), prints(gradient), rtol=1e-5)
    assert prints(gradient)[0] == pytest.approx(float(gradient.abs().double().square().sum()), rel=1e-6)


def test_a_sparse_gradient_has_the_prints_of_the_dense_one():
    sparse = torch.sparse_coo_tensor(torch.tensor([[3, 1, 3]]), torch.randn(3, 4), (9, 4), check_invariants=True)
    assert torch.allclose(prints(sparse), prints(sparse.to_dense()), rtol=1e-5)


def reference(model, x, examples=(0, 3)):
    parameters = dict(model.named_parameters())
    per_example = energy(model, x)
    rows = [torch.autograd.grad(loss, list(parameters.values()), retain_graph=True) for loss in per_example]
    norms = [{n: float(g.double().square().sum()) for n, g in zip(parameters, row, strict=True)} for row in rows]
    sums = {n: prints(sum(row[k] for row in rows)) for k, n in enumerate(parameters)}
    sizes = {n: sum(each[n] for each in norms) for n in parameters}
    return Reference.of(per_example, parameters, examples, x.dtype), norms, sums, sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_right_norms_and_sums_pass_and_a_small_parameter_that_is_wrong_does_not_hide_behind_a_large_one(dtype):
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype)
    with torch.no_grad():
        model[2].weight *= 3e-2  # the first layer's gradients are small
    found, norms, sums, sizes = reference(model, torch.randn(5, 4, dtype=dtype))
    for i in (0, 3):
        assert found.worst_norm(i, norms[i]) is None
        assert found.worst_norm(i, {**norms[i], "0.bias": 1.01 * norms[i]["0.bias"]})[0] == "0.bias"
        assert found.worst_norm(i, {**norms[i], "0.bias": 0.0})[0] == "0.bias"
    assert found.worst_sum(sums, sizes) is None
    flipped = {**sums, "0.weight": sums["0.weight"] * torch.tensor([1.0, -1.0], dtype=torch.float64)}
    assert found.worst_sum(flipped, sizes)[0] == "0.weight"


def test_infinite_gradients_are_not_compared():
    model = nn.Linear(4, 2)
    x = torch.full((3, 4), torch.inf)
    per_example = energy(model, torch.zeros(3, 4)) + (model.weight * x[0]).sum() * torch.tensor([0.0, 1.0, 0.0])
    assert not Reference.of(per_example, dict(model.named_parameters()), [1], torch.float32).finite
