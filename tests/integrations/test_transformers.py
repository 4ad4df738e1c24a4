"""Hugging Face Trainer: the callback finds what a plain loop finds, logs it, and travels in its checkpoints."""

import json

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, Trainer, TrainingArguments

import variegrad as vg
from integrations.training import assert_same
from variegrad.integrations.scalars import scalars
from variegrad.integrations.transformers import BatchSizeMonitor
from variegrad.monitor.log_file import read_log

pytestmark = pytest.mark.filterwarnings("ignore", "error::RuntimeWarning")

CONFIG = {"vocab_size": 16, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 1, "pad_token_id": 0}
STEP_SIZE = 0.1


def gpt(kind=GPT2LMHeadModel, **changes):
    torch.manual_seed(0)
    return kind(GPT2Config(**CONFIG, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **changes))


def sequences(count=40):
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 16, (count, 8), generator=draw).cumsum(1) % 15 + 1
    return [{"input_ids": row, "labels": row} for row in tokens]


class InOrder(Trainer):
    """Batches in the order of the data set, so that a plain loop can follow."""

    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainer_of(folder, model=None, kind=InOrder, dataset=None, evaluated=None, **settings):
    model = gpt() if model is None else model
    settings = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "save_strategy": "no"} | settings
    settings.setdefault("logging_strategy", "no")
    arguments = TrainingArguments(
        str(folder), use_cpu=True, report_to=[], disable_tqdm=True, max_grad_norm=0, lr_scheduler_type="constant",
        **settings,
    )  # fmt: skip
    return kind(
        model, arguments, train_dataset=sequences() if dataset is None else dataset, eval_dataset=evaluated,
        optimizers=(torch.optim.SGD(model.parameters(), lr=STEP_SIZE), None),
    )  # fmt: skip


def monitored(trainer, **settings):
    monitor = BatchSizeMonitor(trainer, **{"every": 2, "population": 40} | settings)
    trainer.add_callback(monitor)
    return monitor


def plain_loop(*, accumulate=1, smoothing=0.0, epochs=2, per=8):
    """One loss a sequence, by hand. The trainer divides by all 8 labels, although the first has nothing before it."""
    model, dataset = gpt(), sequences()
    monitor = vg.Monitor(model, every=2, population=40, accumulate=accumulate)
    optimizer = torch.optim.SGD(model.parameters(), lr=STEP_SIZE)
    for _ in range(epochs):
        for k in range(0, 40, 4):
            tokens = torch.stack([row["input_ids"] for row in dataset[k : k + 4]])
            logits = model(tokens).logits[:, :-1]
            losses = (
                cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none", label_smoothing=smoothing).sum(1)
                / per
            )
            monitor.watch(losses)
            (losses.mean() / accumulate).backward()
            if (k // 4 + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
    return list(monitor.history)


@pytest.mark.parametrize("accumulate", [1, 5])
def test_the_callback_finds_what_a_plain_loop_finds(accumulate, tmp_path):
    trainer = trainer_of(tmp_path, gradient_accumulation_steps=accumulate)
    monitor = monitored(trainer)
    trainer.train()
    assert_same(monitor.monitor.history, plain_loop(accumulate=accumulate))


def test_label_smoothing_is_part_of_what_is_watched(tmp_path):
    trainer = trainer_of(tmp_path, label_smoothing_factor=0.3)
    monitor = monitored(trainer)
    trainer.train()
    assert_same(monitor.monitor.history, plain_loop(smoothing=0.3))


class OwnLoss(InOrder):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = cross_entropy(outputs.logits[:, :-1].transpose(1, 2), labels[:, 1:], label_smoothing=0.3)
        return (loss, outputs) if return_outputs else loss


def test_a_loss_of_your_own_is_watched(tmp_path):
    trainer = trainer_of(tmp_path, kind=OwnLoss)
    monitor = monitored(trainer)
    trainer.train()
    assert_same(monitor.monitor.history, plain_loop(smoothing=0.3, per=7))


def test_the_short_step_at_the_end_of_an_epoch_is_left_out(tmp_path):
    trainer = trainer_of(tmp_path, gradient_accumulation_steps=4)  # 10 batches: 4, 4 and 2
    monitor = monitored(trainer, every=1)
    trainer.train()
    assert trainer.state.global_step == 6
    assert [reading.batch_size for reading in monitor.monitor.history] == [16] * 4


@pytest.mark.parametrize("log_every", [1, 3, 7])
def test_readings_are_part_of_the_trainer_s_own_log_lines(log_every, tmp_path):
    trainer = trainer_of(
        tmp_path, logging_strategy="steps", logging_steps=log_every, eval_strategy="steps", eval_steps=3,
        evaluated=sequences(8),
    )  # fmt: skip
    monitor = monitored(trainer)
    trainer.train()
    lines = trainer.state.log_history
    assert len(lines) == 20 // log_every + 7 + 1  # training, evaluation and the summary: none of our own
    history = {reading.step: reading for reading in monitor.monitor.history}
    logged = [entry for entry in lines if "variegrad/cannot_tell" in entry]
    for entry in logged:
        assert "loss" in entry or "train_runtime" in entry
        assert 0 <= entry["step"] - entry["variegrad/step"] < max(2, log_every)
        assert {k: v for k, v in entry.items() if k.startswith("variegrad/")} == scalars(
            history[entry["variegrad/step"]]
        )
    assert logged[-1]["variegrad/step"] == 20
    json.dumps(logged, allow_nan=False)


def test_a_checkpoint_carries_the_readings_on(tmp_path):
    log = tmp_path / "monitor.jsonl"
    steps = {"save_strategy": "steps", "save_steps": 7}
    first = trainer_of(tmp_path, **steps)
    monitored(first, log=log)
    first.train()  # goes on to step 20: what it read beyond step 14 is superseded
    second = trainer_of(tmp_path, **steps)
    monitor = monitored(second, log=log)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-14"))
    whole = plain_loop()
    assert_same(read_log(log).readings, whole)
    assert_same(monitor.monitor.history, whole)
    assert monitor.monitor.latest.pooled_steps == whole[-1].pooled_steps


def test_evaluation_is_not_watched_and_compute_loss_is_given_back(tmp_path):
    trainer = trainer_of(tmp_path, eval_strategy="steps", eval_steps=3, evaluated=sequences(8))
    monitor = monitored(trainer)
    trainer.train()
    assert_same(monitor.monitor.history, plain_loop())
    assert not {"compute_loss", "log"} & vars(trainer).keys()
    assert all(not part._forward_hooks for part in trainer.model.modules())


def test_a_failed_training_can_be_begun_again(tmp_path):
    trainer = trainer_of(tmp_path, dataset=[*sequences(8), {"input_ids": torch.tensor([99] * 8)}])
    monitor = monitored(trainer, log=tmp_path / "monitor.jsonl")
    with pytest.raises((IndexError, ValueError)):
        trainer.train()
    trainer.train_dataset = sequences()
    trainer.train()
    assert monitor.monitor.latest is not None
    assert "compute_loss" not in vars(trainer)


def test_in_mixed_precision_the_loss_s_own_logits_are_found(tmp_path):
    trainer = trainer_of(tmp_path, bf16=True)
    monitor = monitored(trainer)
    trainer.train()
    assert len(monitor.monitor.history) == len(plain_loop())


def test_readings_are_in_the_norm_of_the_trainer_s_optimizer(tmp_path):
    trainer = trainer_of(tmp_path, gradient_accumulation_steps=2)
    trainer.optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-3)
    monitor = monitored(trainer, in_optimizer_norm=True)
    trainer.train()
    assert {(r.geometry, r.source) for r in monitor.monitor.history} == {("adamw", "2 micro-batches")}


def test_a_classifier_is_monitored(tmp_path):
    dataset = [row | {"labels": row["input_ids"][0] % 3} for row in sequences()]
    trainer = trainer_of(tmp_path, gpt(GPT2ForSequenceClassification, num_labels=3), dataset=dataset)
    monitor = monitored(trainer)
    trainer.train()
    assert monitor.monitor.latest.batch_size == 4


@pytest.mark.parametrize("which", ["deepspeed", "dataparallel"])
def test_what_hides_gradients_is_refused(which, tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.is_deepspeed_enabled = which == "deepspeed"
    trainer.args._n_gpu = 2 if which == "dataparallel" else 0
    with pytest.raises(ValueError, match="gradients cannot be read under DeepSpeed or DataParallel"):
        BatchSizeMonitor(trainer)
