"""Hugging Face Trainer and those built on it (TRL): a callback that monitors B_D and travels in their checkpoints.

A TrainerCallback sees neither loss nor logits, so this one is given its trainer. It listens to `compute_loss` for the
very loss of the backward pass, also with label smoothing or a loss of your own, and to `log` for the trainer's next
line, which the reading becomes part of.
"""

from __future__ import annotations

from typing import Any, cast

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as missing:
    raise ImportError(
        "variegrad.integrations.transformers needs Transformers: pip install 'variegrad[transformers]'"
    ) from missing

import torch
from torch import nn

from variegrad.integrations.outputs import StepOutputs, examples_of
from variegrad.integrations.scalars import Unread, scalars
from variegrad.monitor import Monitor

KEY = "variegrad.BatchSizeMonitor"
LISTENED_TO = ("compute_loss", "log")


class BatchSizeMonitor(TrainerCallback):
    """`trainer.add_callback(BatchSizeMonitor(trainer, every=16, population=len(dataset)))`: no other line is needed.

    Each line of training that the trainer logs holds the latest new reading, as `variegrad/…` with its step: on the
    console, in log_history and in whatever the trainer reports to. All readings are in `monitor.history`.

    Args:
        trainer: whose training to monitor.
        in_optimizer_norm: measure in the norm in which the trainer's optimizer descends (AdamW, by default).
        **settings: of `variegrad.Monitor`, such as every, population and log; `accumulate` is the trainer's own.

    Raises:
        ValueError: if the gradients are not where they can be read: DeepSpeed, or DataParallel in one process.
    """

    monitor: Monitor  # from the beginning of the training on

    def __init__(self, trainer: Trainer, *, in_optimizer_norm: bool = False, **settings: Any) -> None:
        if trainer.is_deepspeed_enabled or trainer.args.n_gpu > 1:
            raise ValueError(
                "BatchSizeMonitor: gradients cannot be read under DeepSpeed or DataParallel (several GPUs in one "
                "process). Launch one process per GPU with torchrun."
            )
        self._trainer, self._settings, self._in_norm = trainer, settings, in_optimizer_norm
        self._unread: Unread | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._let_go()
        settings = {"optimizer": self._trainer.optimizer if self._in_norm else None} | self._settings
        self.monitor = Monitor(self._trainer.model_wrapped, accumulate=args.gradient_accumulation_steps, **settings)
        self._unread = Unread(self.monitor)
        if (saved := cast("dict[str, Any]", state.stateful_callbacks).get(KEY)) is not None:
            self._unread.load_state_dict(saved)
        self._listen()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_save:
            self.on_epoch_end(args, state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._unread is not None:  # kept in trainer_state.json
            cast("dict[str, Any]", state.stateful_callbacks)[KEY] = self._unread.state_dict()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._let_go()

    def _listen(self) -> None:
        trainer, monitor, unread = self._trainer, self.monitor, self._unread
        assert unread is not None
        compute, write = trainer.compute_loss, trainer.log
        self._outputs = outputs = StepOutputs(trainer.accelerator.unwrap_model(trainer.model))

        def compute_loss(model: nn.Module, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
            watched = model.training and torch.is_grad_enabled()
            count = examples_of(inputs) if watched else None  # before the trainer takes the labels out
            found = compute(model, inputs, return_outputs, **more)
            if watched:
                # At the end of an epoch the trainer steps with what it has: such a short step is not watched.
                whole = trainer.current_gradient_accumulation_steps == trainer.args.gradient_accumulation_steps
                loss = found[0] if isinstance(found, tuple) else found
                outputs.watch(monitor, loss, count, whole=whole)
            return found

        def log(logs: dict[str, float], *more: Any, **also: Any) -> None:
            of_training = "loss" in logs or "train_runtime" in logs
            reading = unread.take() if of_training else None
            write(logs if reading is None else {**logs, **scalars(reading)}, *more, **also)

        self._former: dict[str, Any] = {name: own for name, own in vars(trainer).items() if name in LISTENED_TO}
        vars(trainer).update(compute_loss=compute_loss, log=log)

    def _let_go(self) -> None:
        if self._unread is not None:
            self._unread = None
            self._outputs.remove()
            for name in LISTENED_TO:  # the class's own is used again
                del vars(self._trainer)[name]
            vars(self._trainer).update(self._former)
            self.monitor.close()
