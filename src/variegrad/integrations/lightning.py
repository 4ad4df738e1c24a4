"""PyTorch Lightning: a callback that monitors B_D, logs it with the trainer's loggers, and travels in its checkpoints.

Lightning hands a callback the loss just before the backward pass; hooks on the module find the output behind it.
"""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as missing:
    raise ImportError(
        "variegrad.integrations.lightning needs PyTorch Lightning: pip install 'variegrad[lightning]'"
    ) from missing

from torch import Tensor

from variegrad.integrations.outputs import OutputOf
from variegrad.integrations.scalars import Unread, scalars
from variegrad.monitor import Monitor


class BatchSizeMonitor(Callback):
    """`Trainer(callbacks=[BatchSizeMonitor(every=16, population=len(dataset))])`: no other line is needed.

    Readings go to `trainer.loggers` as `variegrad/…`, at the trainer's global step, and stand in `monitor.history`.

    Args:
        output_of: name of the submodule whose output the loss is computed from, its first dimension the examples; by
            default what was called last, the module itself or one of its children.
        **settings: of `variegrad.Monitor`, such as every, population and log; `accumulate` is the trainer's own.
    """

    monitor: Monitor
    """The monitor, from the beginning of the training on."""

    def __init__(self, *, output_of: str | None = None, **settings: Any) -> None:
        self._output_of, self._settings = output_of, settings
        self._output: OutputOf | None = None
        self._unread: Unread | None = None
        self._state: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not pl_module.automatic_optimization or trainer.strategy.handles_gradient_accumulation:
            raise ValueError(
                "BatchSizeMonitor: which loss belongs to which step is not known under manual optimisation or "
                "DeepSpeed. Watch in training_step instead, with variegrad.Monitor: monitor.watch(loss, output=logits)."
            )
        self._accumulate = trainer.accumulate_grad_batches
        self.monitor = Monitor(trainer.model or pl_module, accumulate=self._accumulate, **self._settings)
        self._unread, self._output = Unread(self.monitor), OutputOf(pl_module, self._output_of)
        if self._state is not None:
            self._unread.load_state_dict(self._state)
            self._state = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.accumulate_grad_batches != self._accumulate:
            raise ValueError(
                f"BatchSizeMonitor: accumulate_grad_batches went from {self._accumulate} to "
                f"{trainer.accumulate_grad_batches} during the training, which a reading cannot follow. Keep it fixed."
            )
        # At the end of an epoch the trainer steps with what it has: micro-batches of no whole step are not watched.
        self._whole = batch_idx - batch_idx % self._accumulate + self._accumulate <= trainer.num_training_batches

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._output is not None and self._whole:
            self.monitor.watch(loss, output=self._output.take())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._unread is not None and (reading := self._unread.take()) is not None:
            for logger in trainer.loggers:
                logger.log_metrics(scalars(reading), step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._unread is None else self._unread.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict or None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._output is not None:
            self._output.remove()
            self._output = None
            self.monitor.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")
