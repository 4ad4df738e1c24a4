"""Accelerate: the monitor finds what a plain loop finds, logs with the trackers, and travels in the checkpoints."""

import pytest
import torch

pytest.importorskip("accelerate")

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.tracking import GeneralTracker
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from integrations.training import STEP_SIZE, assert_same, data, model, plain_loop
from variegrad.integrations.accelerate import BatchSizeMonitor
from variegrad.integrations.scalars import scalars
from variegrad.monitor.log_file import read_log

pytestmark = pytest.mark.filterwarnings("ignore", "error::RuntimeWarning")


class Remembering(GeneralTracker):
    name = "remembering"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.logged = []

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None, **_):
        self.logged.append((step, values))


@pytest.fixture(autouse=True)
def _one_accelerator_a_test():
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def train(accelerator, epochs, *, scalar=True, resume=None, save=None, **settings):
    trained = model()
    trained, optimizer, loader = accelerator.prepare(
        trained, torch.optim.SGD(trained.parameters(), lr=STEP_SIZE), DataLoader(data(), batch_size=8)
    )
    monitor = BatchSizeMonitor(accelerator, trained, optimizer, **{"every": 2, "population": 96} | settings)
    if resume is not None:
        accelerator.load_state(str(resume))
    calls = 0
    for _ in range(epochs):
        for x, y in loader:
            calls += 1
            with accelerator.accumulate(trained):
                logits = trained(x)
                losses = cross_entropy(logits, y, reduction="none")
                loss = losses.mean()
                if scalar:
                    monitor.watch(loss, output=logits)
                else:
                    monitor.watch(losses)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            if calls % 10 == 0:
                accelerator.log({"loss": 1.0}, step=calls)
    if save is not None:
        accelerator.save_state(str(save))
    monitor.close()
    return monitor


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("scalar", [True, False])
def test_the_monitor_finds_what_a_plain_loop_finds(accumulate, scalar):
    tracker = Remembering()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate, log_with=[tracker])
    accelerator.init_trackers("test")
    monitor = train(accelerator, 2, scalar=scalar)
    expected = plain_loop(data(), batch_size=8, epochs=2, accumulate=accumulate, every=2, population=96)
    assert_same(monitor.monitor.history, expected)
    assert "log" not in vars(accelerator)
    history = list(monitor.monitor.history)
    own = [values for _, values in tracker.logged[:-1]]
    assert [step for step, _ in tracker.logged[:-1]] == [10, 20]  # no line of its own but at the end
    assert tracker.logged[-1][1] == scalars(history[-1])
    for values in own:
        assert values.pop("loss") == 1.0
        assert values == scalars(next(r for r in history if r.step == values["variegrad/step"]))


def test_a_checkpoint_carries_the_readings_on(tmp_path):
    log = tmp_path / "monitor.jsonl"
    train(Accelerator(cpu=True), 1, log=log, save=tmp_path / "state")
    monitor = train(Accelerator(cpu=True), 1, log=log, resume=tmp_path / "state")
    whole = plain_loop(data(), batch_size=8, epochs=2, every=2, population=96)
    assert_same(monitor.monitor.history, whole)
    assert_same(read_log(log).readings, whole)


def test_after_close_nothing_is_logged():
    tracker = Remembering()
    accelerator = Accelerator(cpu=True, log_with=[tracker])
    accelerator.init_trackers("test")
    trained = model()
    optimizer = accelerator.prepare(torch.optim.SGD(trained.parameters(), lr=STEP_SIZE))
    monitor = BatchSizeMonitor(accelerator, trained, optimizer)
    monitor.close()
    losses = cross_entropy(trained(torch.zeros(4, 8)), torch.zeros(4, dtype=torch.long), reduction="none")
    monitor.watch(losses)
    accelerator.backward(losses.mean())
    optimizer.step()
    assert tracker.logged == []
