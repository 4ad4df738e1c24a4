"""Steps of unequal size in one window weigh as many pairs of examples as they saw; readings are made on demand."""

import tracemalloc

import pytest
import torch

from variegrad import Monitor
from variegrad.estimators import StepMoments, moments_from_norms
from variegrad.monitor import History
from variegrad.monitor.log_file import read_log
from variegrad.monitor.pending import Pending
from variegrad.monitor.pool import Window, estimate_over

SIZES = [64] * 14 + [5, 9]


def window_of(batches):
    window = Window(64)
    for g in batches:
        a, s = float(g.square().sum()), float(g.sum(0).square().sum())
        window.add(moments_from_norms(a, s, len(g)), pairs=len(g) * (len(g) - 1.0))
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
    window.add(StepMoments(-15.0, 21.0), pairs=2.0)  # two examples that happen to oppose each other
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


def pending(history_of, steps):
    """A window that slides over steps which all differ, one pending reading each."""
    window = Window(64)
    for k in range(steps):
        window.add(StepMoments(1.0 + 0.01 * (k % 7), 50.0 + k), pairs=12.0 + k % 3)
        history_of.append(
            Pending(
                moments=window.snapshot(), step=k + 1, examples=16, batch_size=32, source="16 of 32", skipped=0,
                population=None, confidence=0.95,
            )
        )  # fmt: skip
    return history_of


def test_a_reading_is_the_same_whenever_it_is_looked_at(monkeypatch):
    estimates = []
    monkeypatch.setattr(
        "variegrad.monitor.pending.estimate_over", lambda *a, **k: estimates.append(1) or estimate_over(*a, **k)
    )
    later = pending(History(), 80)
    assert not estimates  # nobody has looked
    at_once = History()
    for reading in (pending(History(), k)[-1] for k in range(1, 81)):
        at_once.append(reading)
    assert len(estimates) == 80
    assert repr(list(later)) == repr(list(at_once))
    assert repr(later[-1]) == repr(list(later)[-1])
    assert len(estimates) == 160  # each was worked out once


def test_pending_readings_are_the_same_in_the_file_and_after_a_resume(tmp_path):
    log = tmp_path / "log.jsonl"
    streamed, kept = pending(History(log), 12), pending(History(), 12)
    streamed.close()
    assert repr(read_log(log).readings) == repr(list(kept))
    resumed = History()
    resumed.load_state_dict(kept.state_dict())
    assert repr(resumed[-1]) == repr(kept[-1])


def test_readings_that_nobody_looks_at_stay_within_a_few_megabytes():
    list(pending(History(), 20))  # whatever is allocated once
    tracemalloc.start()
    history = pending(History(max_readings=128), 3_000)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(history) <= 128
    # A thirty-second of the usual room; 64 windows that share no step would take more than twice as much.
    assert kept < 2**18, f"{kept} bytes"
