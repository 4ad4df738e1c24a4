"""PyTorch Lightning: a callback that monitors B_D, logs it with the trainer's loggers, and travels in its checkpoints.

Lightning hands a callback the loss just before the backward pass; hooks on the module find the outputs behind it.
"""

from __future__ import annotations

import math
from typing import Any, cast

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as missing:
    raise ImportError(
        "variegrad.integrations.lightning needs PyTorch Lightning: pip install 'variegrad[lightning]'"
    ) from missing

from torch import Tensor

from variegrad.integrations.outputs import StepOutputs, examples_of
from variegrad.integrations.scalars import NAMES, Unread, scalars
from variegrad.monitor import Monitor


class BatchSizeMonitor(Callback):
    """`Trainer(callbacks=[BatchSizeMonitor(every=16, population=len(dataset))])`: no other line is needed.

    Readings are part of the trainer's own log lines, every `log_every_n_steps` steps, as `variegrad/…`: the latest one,
    with its step. All of them are in `monitor.history`.

    Args:
        output_of: name of the submodule whose output the loss is computed from, its first dimension the examples; by
            default the outputs of the module and of its children that the loss was computed from.
        in_optimizer_norm: measure in the norm in which the trainer's (first) optimizer descends.
        **settings: of `variegrad.Monitor`, such as every, population and log; `accumulate` is the trainer's own.
    """

    monitor: Monitor
    """The monitor, from the beginning of the training on."""

    def __init__(self, *, output_of: str | None = None, in_optimizer_norm: bool = False, **settings: Any) -> None:
        self._output_of, self._settings, self._in_norm = output_of, settings, in_optimizer_norm
        self._outputs: StepOutputs | None = None
        self._unread: Unread | None = None
        self._state: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not pl_module.automatic_optimization or trainer.strategy.handles_gradient_accumulation:
            raise ValueError(
                "BatchSizeMonitor: with manual optimization or DeepSpeed, it is not known which loss belongs to which "
                "step. Use variegrad.Monitor in training_step instead: monitor.watch(loss, output=logits)."
            )
        self._accumulate = trainer.accumulate_grad_batches
        optimizer = trainer.optimizers[0] if self._in_norm else None
        self.monitor = Monitor(
            trainer.model or pl_module, accumulate=self._accumulate, **{"optimizer": optimizer} | self._settings
        )
        self._unread, self._outputs = Unread(self.monitor), StepOutputs(pl_module, self._output_of)
        if self._state is not None:
            self._unread.load_state_dict(self._state)
            self._state = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.accumulate_grad_batches != self._accumulate:
            raise ValueError(
                f"BatchSizeMonitor: accumulate_grad_batches went from {self._accumulate} to "
                f"{trainer.accumulate_grad_batches} during training, which is not supported. Keep it fixed."
            )
        # At the end of an epoch the trainer steps with what it has: micro-batches of no whole step are not watched.
        self._whole = batch_idx - batch_idx % self._accumulate + self._accumulate <= trainer.num_training_batches
        self._examples = examples_of(batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._outputs is not None:
            self._outputs.watch(self.monitor, loss, self._examples, whole=self._whole)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Where the trainer writes a line of its own now, the reading is part of it.
        stepped = (batch_idx + 1) % self._accumulate == 0 or batch_idx + 1 == trainer.num_training_batches
        every: int = cast("Any", trainer).log_every_n_steps
        if self._unread is None or not stepped or trainer.global_step % every:
            return
        if (reading := self._unread.take()) is not None:
            # Lightning repeats the last value of a name that is not logged again: what is not known is NaN here.
            values = dict.fromkeys((f"variegrad/{name}" for name in NAMES), math.nan) | scalars(reading)
            pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._unread is not None and (reading := self._unread.take()) is not None:
            for logger in trainer.loggers:
                logger.log_metrics(scalars(reading), step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._unread is None else self._unread.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict or None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._outputs is not None:
            self._outputs.remove()
            self._outputs = None
            self.monitor.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")
