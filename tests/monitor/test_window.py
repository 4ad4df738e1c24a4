"""Steps of unequal size in one window weigh as many pairs of examples as they saw."""

import pytest
import torch

from variegrad import Monitor
from variegrad.estimators import StepMoments, moments_from_norms
from variegrad.monitor.window import Window, usual_batch_size

SIZES = [64] * 14 + [5, 9]


def window_of(batches):
    window = Window(64)
    for g in batches:
        a, s = float(g.square().sum()), float(g.sum(0).square().sum())
        window.add(1, len(g), moments_from_norms(a, s, len(g)), pairs=len(g) * (len(g) - 1.0))
    return window


def test_the_pool_is_the_ratio_over_all_pairs_within_steps():
    g = torch.Generator().manual_seed(0)
    batches = [torch.randn(size, 7, generator=g, dtype=torch.float64) + 0.3 for size in SIZES]
    pairs = sum(float((b @ b.T).sum() - b.square().sum()) for b in batches)
    norms = sum((len(b) - 1) * float(b.square().sum()) for b in batches)
    assert window_of(batches).estimate(population=None, confidence=0.95).coherence == pytest.approx(pairs / norms)


def test_a_short_last_batch_does_not_spoil_the_interval():
    g = torch.Generator().manual_seed(1)
    batches = [torch.randn(64, 20, generator=g, dtype=torch.float64) + 0.3 for _ in range(20)]
    window = window_of(batches)
    alone = window.estimate(population=None, confidence=0.95)
    window.add(21, 2, StepMoments(-15.0, 21.0), pairs=2.0)  # two examples that happen to oppose each other
    both = window.estimate(population=None, confidence=0.95)
    assert both.batch_size_bound == pytest.approx(alone.batch_size_bound, rel=0.01)
    assert both.high - both.low == pytest.approx(alone.high - alone.low, rel=0.15)


def test_intervals_over_unequal_steps_cover():
    # 400 runs: one standard error of a coverage of 95 % is 1.1 %, so that 90 % is more than four below.
    g = torch.Generator().manual_seed(2)
    truth = 1 + 20 / (20 * 0.3**2)
    inside = 0
    for _ in range(400):
        batches = [torch.randn(size, 20, generator=g, dtype=torch.float64) + 0.3 for size in SIZES]
        found = window_of(batches).estimate(population=None, confidence=0.95)
        inside += found.low <= truth <= found.high
    assert inside >= 0.9 * 400


def test_a_short_batch_of_a_loss_that_may_be_a_mean_is_left_out():
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 3)
    monitor = Monitor(model, every=1)
    for size in (16, 16, 3, 16):
        output = model(torch.randn(size, 6))
        loss = torch.nn.functional.cross_entropy(output, torch.randint(0, 3, (size,)))
        monitor.watch(loss, output=output)
        loss.backward()
        model.zero_grad()
    assert [reading.batch_size for reading in monitor.history] == [16, 16, 16]


def test_the_usual_batch_is_the_median_and_the_first_step_is_that_of_the_window():
    window = Window(8)
    for step, size in enumerate([64, 64, 64, 7, 64, 64, 64, 9, 64, 5], start=1):
        window.add(step, size, StepMoments(1.0, 50.0), pairs=size * (size - 1.0))
    assert (window.latest[0].step, usual_batch_size(window.latest), len(window)) == (3, 64, 8)


def test_a_window_of_version_0_1_is_read():
    window = Window(8)
    window.load([[12.0, 1.0, 50.0]] * 3)
    assert window.estimate(population=None, confidence=0.95).batch_size_bound == pytest.approx(50)
    with pytest.raises(ValueError, match="the window must be what"):
        window.load([[1.0, 2.0]])
