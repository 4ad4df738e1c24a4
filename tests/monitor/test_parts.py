"""Bounds of parts of the model, from the sums of the same pass; and B_D on average over more steps."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from one_step import moments
from reference import loop_gradients
from variegrad import Monitor, Reading


def net(norm=False):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8) if norm else nn.Tanh(), nn.Linear(8, 3)).double()


def data(seed, count=12):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=draw, dtype=torch.float64), torch.randint(0, 3, (count,), generator=draw)


def losses(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def of_layer(name):
    return name.split(".")[0]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_parts_are_those_of_the_slow_loop(accumulate):
    model = net()
    monitor = Monitor(model, every=1, examples=64, accumulate=accumulate, per=of_layer)
    for step in range(9):
        batch = data(step)
        for part in zip(*(t.chunk(accumulate) for t in batch), strict=True):
            per_example = losses(model, part)
            monitor.watch(per_example)
            (per_example.mean() / accumulate).backward()
        model.zero_grad()
    rows = loop_gradients(model, losses, data(8))
    expected = []
    for layer in ("0", "2"):
        flat = torch.cat([g.flatten(1) for name, g in rows.items() if of_layer(name) == layer], 1)
        expected += moments(flat @ flat.T)
    assert monitor.state_dict()["window"][-1][5:] == pytest.approx(expected, rel=1e-9)
    assert list(monitor.latest.parts) == ["0", "2"]
    for bound, low, high, least in monitor.latest.parts.values():
        assert low <= bound <= high
        assert least <= low * (1 + 1e-9) or least >= 1
    assert Reading.from_record(monitor.latest.to_record()) == monitor.latest


def test_parts_of_a_model_whose_examples_cannot_be_separated_come_from_micro_batches():
    model = net(norm=True)
    monitor = Monitor(model, every=1, accumulate=2, per=of_layer)
    cells = []
    for k in range(2):
        part = data(k, 6)
        per_example = losses(model, part)
        monitor.watch(per_example)
        (per_example.mean() / 2).backward()
        cells.append(torch.autograd.grad(losses(model, part).sum(), model[2].weight)[0].flatten())
        cells[-1] = torch.cat([cells[-1], torch.autograd.grad(losses(model, part).sum(), model[2].bias)[0]])
    within = sum(float(c.square().sum()) for c in cells)
    product = (float(sum(cells).square().sum()) - within) / (12**2 - 2 * 6**2)
    assert monitor.state_dict()["window"][-1][-2:] == pytest.approx(
        (product, (within - (2 * 36 - 12) * product) / 12), rel=1e-9
    )


def test_the_average_says_which_steps_it_is_over():
    model = net()
    monitor = Monitor(model, every=1, examples=64)
    assert monitor.average() is None
    for step in range(20):
        per_example = losses(model, data(step))
        monitor.watch(per_example)
        per_example.mean().backward()
        model.zero_grad()
    average = monitor.average()
    assert (average.first_step, average.step, average.pooled_steps) == (1, 20, 20)
    assert (monitor.latest.first_step, monitor.latest.pooled_steps) == (13, 8)
    kept = monitor.state_dict()["window"]
    rho = sum(row[3] for row in kept) / sum(row[4] for row in kept)
    assert average.batch_size_bound == pytest.approx(1 / rho if rho > 0 else float("inf"))
