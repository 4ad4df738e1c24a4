"""Lightning: the callback finds what a plain loop finds, logs it, survives checkpoints, refuses what it cannot see."""

import csv

import pytest
import torch

pytest.importorskip("lightning")

import lightning as L
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loggers import CSVLogger
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from integrations.training import STEP_SIZE, assert_same, data, model, plain_loop
from variegrad.integrations.lightning import BatchSizeMonitor
from variegrad.integrations.scalars import scalars
from variegrad.monitor.log_file import read_log

# Lightning has much to say about a small run; the monitor's own warnings are errors.
pytestmark = pytest.mark.filterwarnings("ignore", "error::RuntimeWarning")


class Small(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = model()
        self.criterion = torch.nn.CrossEntropyLoss()

    def training_step(self, batch, _):
        return self.criterion(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=STEP_SIZE)


class ByForward(Small):
    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, _):
        return {"loss": self.criterion(self(batch[0]), batch[1]), "other": 1}


class TwoParts(Small):
    def __init__(self):
        super().__init__()
        whole = self.model
        self.model = None
        self.encoder, self.head = whole[:2], whole[2:]

    def training_step(self, batch, _):
        return self.criterion(self.head(self.encoder(batch[0])), batch[1])


def fit(module, callback, folder, *, batch_size=8, epochs=2, ckpt_path=None, callbacks=(), **settings):
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[callback, *callbacks], logger=CSVLogger(folder, version=0),
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, **settings,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data(), batch_size=batch_size), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("module", [Small, ByForward, TwoParts])
def test_the_callback_finds_what_a_plain_loop_finds(module, tmp_path):
    callback = BatchSizeMonitor(every=2, population=96)
    fit(module(), callback, tmp_path)
    assert_same(callback.monitor.history, plain_loop(data(), batch_size=8, epochs=2, every=2, population=96))


def test_micro_batches_are_counted_as_one_step(tmp_path):
    callback = BatchSizeMonitor(every=2, population=96)
    fit(Small(), callback, tmp_path, accumulate_grad_batches=3)
    expected = plain_loop(data(), batch_size=8, epochs=2, accumulate=3, every=2, population=96)
    assert {reading.batch_size for reading in callback.monitor.history} == {24}
    assert_same(callback.monitor.history, expected)


def test_the_short_step_at_the_end_of_an_epoch_is_left_out(tmp_path):
    callback = BatchSizeMonitor(every=1, population=96)
    trainer = fit(Small(), callback, tmp_path, accumulate_grad_batches=5)  # 12 batches: 5, 5 and 2
    assert trainer.global_step == 6
    assert [reading.batch_size for reading in callback.monitor.history] == [40] * 4


class WithMetric(Small):
    def training_step(self, batch, index):
        with torch.no_grad():
            self.log("accuracy", (self.model(batch[0]).argmax(1) == batch[1]).float().mean())
        loss = super().training_step(batch, index)
        self.model(batch[0] * 0.5)  # a later output that is not the loss's
        self.log("loss", loss)
        return loss


@pytest.mark.parametrize(("accumulate", "log_every"), [(1, 5), (1, 1), (3, 2), (5, 2), (1, 1000)])
def test_readings_are_part_of_the_trainer_s_own_log_lines(accumulate, log_every, tmp_path):
    callback = BatchSizeMonitor(every=2, population=96)
    trainer = fit(
        WithMetric(), callback, tmp_path, log_every_n_steps=log_every, accumulate_grad_batches=accumulate, epochs=3
    )
    trainer.logger.save()
    with (tmp_path / "lightning_logs/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    history = {reading.step: reading for reading in callback.monitor.history}
    read = [row for row in rows if row.get("variegrad/cannot_tell")]
    assert len(rows) == trainer.global_step // log_every + (not read[-1].get("loss"))  # of our own: one, at the end
    for row in read:
        assert 0 <= int(row["step"]) + 1 - int(float(row["variegrad/step"])) <= log_every + 1
        logged = {
            name: float(row[name]) for name in row if name.startswith("variegrad/") and row[name] not in ("", "nan")
        }
        assert logged == pytest.approx(scalars(history[int(logged["variegrad/step"])]))
    assert int(float(read[-1]["variegrad/step"])) == max(history)


def test_a_checkpoint_carries_the_readings_on(tmp_path):
    log = tmp_path / "monitor.jsonl"
    trainer = fit(Small(), BatchSizeMonitor(every=2, population=96, log=log), tmp_path / "a", epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    callback = BatchSizeMonitor(every=2, population=96, log=log)
    fit(Small(), callback, tmp_path / "b", epochs=2, ckpt_path=tmp_path / "one.ckpt")
    whole = plain_loop(data(), batch_size=8, epochs=2, every=2, population=96)
    assert_same(read_log(log).readings, whole)
    assert_same(callback.monitor.history, whole)


def test_nothing_is_left_on_the_module(tmp_path):
    module = Small()
    callback = BatchSizeMonitor()
    fit(module, callback, tmp_path)
    assert all(not part._forward_hooks for part in module.modules())
    with pytest.raises(ZeroDivisionError):
        fit(Failing(), callback, tmp_path / "b")
    fit(module, callback, tmp_path / "c")


class Failing(Small):
    def on_train_epoch_end(self):
        raise ZeroDivisionError


class Manual(Small):
    automatic_optimization = False

    def training_step(self, batch, index):
        self.manual_backward(super().training_step(batch, index))
        self.optimizers().step()


class Contrastive(Small):
    def training_step(self, batch, _):
        out = torch.nn.functional.normalize(self.model(batch[0]))
        return cross_entropy(out @ out.T, torch.arange(len(out)))


class Nothing(Small):
    def training_step(self, batch, _):
        return sum(p.square().sum() for p in self.parameters())


@pytest.mark.parametrize(
    ("module", "settings", "message"),
    [
        (Manual, {}, "with manual optimization or DeepSpeed"),
        (
            Small,
            {"output_of": "head"},
            "output_of='head' is not a submodule of Small; its children are 'model'",
        ),
        (Small, {"every": 0}, "every must be at least 1"),
    ],
)
def test_what_cannot_be_monitored_is_refused(module, settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fit(module(), BatchSizeMonitor(**settings), tmp_path)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Contrastive, "compares examples with each other"),
        (Nothing, "no output with examples in its first dimension leads to it"),
    ],
)
def test_a_loss_that_cannot_be_read_is_warned_of_and_training_continues(module, message, tmp_path):
    callback = BatchSizeMonitor(every=1)
    with pytest.warns(RuntimeWarning, match=message):
        trainer = fit(module(), callback, tmp_path)
    assert trainer.global_step == 24
    assert callback.monitor.latest is None
    assert any(message in reason.text for reason in callback.monitor.history.reasons.values())


class ByAdam(Small):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=STEP_SIZE, eps=1e-3)


def test_readings_are_in_the_norm_of_the_trainer_s_optimizer(tmp_path):
    callback = BatchSizeMonitor(every=1, in_optimizer_norm=True)
    fit(ByAdam(), callback, tmp_path, accumulate_grad_batches=3)
    assert {(r.geometry, r.source) for r in callback.monitor.history} == {("adam", "3 micro-batches")}
    assert [r.step for r in callback.monitor.history] == list(range(2, 9))  # before its first step there is no norm


def test_a_changing_accumulation_is_refused(tmp_path):
    with pytest.raises(ValueError, match="accumulate_grad_batches went from 1 to 2 during training"):
        fit(Small(), BatchSizeMonitor(), tmp_path, callbacks=[GradientAccumulationScheduler({0: 1, 1: 2})])
