"""Hugging Face Trainer: a callback that monitors B_D, logs it with the trainer, and travels in its checkpoints.

A TrainerCallback sees neither loss nor logits, so this one is given its trainer and listens to `compute_loss`: there
the very loss of the backward pass meets the outputs behind it, also with label smoothing or a loss of your own.
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

from variegrad.integrations.outputs import OutputOf, logits_of
from variegrad.integrations.scalars import Unread, scalars
from variegrad.monitor import Monitor

KEY = "variegrad.BatchSizeMonitor"


class BatchSizeMonitor(TrainerCallback):
    """`trainer.add_callback(BatchSizeMonitor(trainer, every=16, population=len(dataset)))`: no other line is needed.

    Readings go through `trainer.log` as `variegrad/…`, into log_history and to whatever the trainer reports to.

    Args:
        trainer: whose training to monitor.
        **settings: of `variegrad.Monitor`, such as every, population and log; `accumulate` is the trainer's own.

    Raises:
        ValueError: if the gradients are not where they can be read: DeepSpeed, or DataParallel in one process.
    """

    monitor: Monitor  # from the beginning of the training on

    def __init__(self, trainer: Trainer, **settings: Any) -> None:
        if trainer.is_deepspeed_enabled or trainer.args.n_gpu > 1:
            raise ValueError(
                "BatchSizeMonitor: gradients cannot be read under DeepSpeed, nor under DataParallel (several GPUs in "
                "one process). Launch one process a GPU with torchrun."
            )
        self._trainer, self._settings = trainer, settings
        self._unread: Unread | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._let_go()
        self.monitor = Monitor(
            self._trainer.model_wrapped, accumulate=args.gradient_accumulation_steps, **self._settings
        )
        self._unread = Unread(self.monitor)
        if (saved := cast("dict[str, Any]", state.stateful_callbacks).get(KEY)) is not None:
            self._unread.load_state_dict(saved)
        self._listen()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self._unread is not None
        if (reading := self._unread.take()) is not None:
            self._trainer.log(scalars(reading))
        cast("dict[str, Any]", state.stateful_callbacks)[KEY] = self._unread.state_dict()  # kept in trainer_state.json

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._let_go()

    def _listen(self) -> None:
        trainer, monitor, original = self._trainer, self.monitor, self._trainer.compute_loss
        self._head = head = OutputOf(trainer.accelerator.unwrap_model(trainer.model), children_only=True)
        # In mixed precision the outputs are converted copies: their loss was computed from those of the last layer.
        copies = trainer.accelerator.mixed_precision != "no"

        def compute_loss(model: nn.Module, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
            if not (model.training and torch.is_grad_enabled()):
                return original(model, inputs, return_outputs, **more)
            loss, outputs = original(model, inputs, return_outputs=True, **more)
            # At the end of an epoch the trainer steps with what it has: micro-batches of no whole step are not watched.
            if trainer.current_gradient_accumulation_steps == trainer.args.gradient_accumulation_steps:
                logits = logits_of(outputs[1:] if isinstance(outputs, tuple) else outputs)
                monitor.watch(loss, output=head.take() if copies or logits is None else logits)
            return (loss, outputs) if return_outputs else loss

        self._former = {"compute_loss": original} if "compute_loss" in vars(trainer) else {}
        vars(trainer)["compute_loss"] = compute_loss

    def _let_go(self) -> None:
        if self._unread is not None:
            self._unread = None
            self._head.remove()
            del vars(self._trainer)["compute_loss"]  # the class's own stands again
            vars(self._trainer).update(self._former)
            self.monitor.close()
