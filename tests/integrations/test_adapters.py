"""Any logger with `log(values, step)`: each reading once, at its step; and the summary at the end of a run."""

import json
import sys
import types

import pytest
import torch
from torch.nn.functional import cross_entropy

import variegrad as vg
from integrations.training import model
from variegrad.integrations.scalars import scalars, to_log


def trained(**settings):
    net = model()
    monitor = vg.Monitor(net, every=1, **settings)
    for step in range(12):
        draw = torch.Generator().manual_seed(step)
        x = torch.randn(16, 8, generator=draw)
        losses = cross_entropy(net(x), torch.arange(16) % 3, reduction="none")
        monitor.watch(losses)
        losses.mean().backward()
        net.zero_grad()
    return monitor


class Run:
    """As a run of Weights & Biases, and as the modules mlflow and trackio."""

    def __init__(self):
        self.logged = []

    def log(self, data, step=None, commit=None):
        self.logged.append((step, data))

    def log_metrics(self, metrics, step=None, synchronous=None):
        self.logged.append((step, metrics))


@pytest.mark.parametrize("method", ["log", "log_metrics"])
def test_each_reading_is_logged_once_at_its_step(method):
    run = Run()
    monitor = trained(on_reading=to_log(getattr(run, method)))
    assert run.logged == [(reading.step, scalars(reading)) for reading in monitor.history]
    assert len(run.logged) == 12
    json.dumps(run.logged, allow_nan=False)


def test_a_logger_that_fails_ends_nothing():
    def log(values, step):
        raise ConnectionError("no network")

    with pytest.warns(RuntimeWarning, match="no network"):
        monitor = trained(on_reading=to_log(log))
    assert len(monitor.history) == 12


def test_the_summary_says_what_the_readings_come_to():
    monitor = trained()
    found = monitor.summary()
    told = [r for r in monitor.history if not r.cannot_tell]
    assert (found.readings, found.told, found.last_step) == (12, len(told), 12)
    assert found.usual_batch_size == 16
    if told:
        assert found.least == min(r.lower_confidence_bound for r in told)
        assert str(found).startswith("12 readings over steps 1–12: B_D about ")
    json.dumps(found.to_dict(), allow_nan=False)
    assert str(vg.Monitor(model()).summary()).startswith("no readings")


@pytest.mark.parametrize("name", ["with_wandb", "with_mlflow", "with_trackio"])
def test_the_examples_run_against_stubs(name, monkeypatch, tmp_path):
    import runpy
    from contextlib import nullcontext
    from pathlib import Path

    run = Run()
    stub = types.ModuleType(name.removeprefix("with_"))
    stub.init = lambda **_: run
    stub.log, stub.log_metrics = run.log, run.log_metrics
    stub.start_run = lambda **_: nullcontext(run)
    stub.finish = run.finish = lambda: None
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    monkeypatch.setattr(sys, "argv", [name, str(tmp_path)])
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / f"{name}.py"), run_name="__main__")
    ours = [(step, values) for step, values in run.logged if "variegrad/cannot_tell" in values]
    assert ours
    assert all(step == values["variegrad/step"] for step, values in ours)
