"""Hugging Face Accelerate: a Monitor whose readings are part of what the loop logs, and travel in its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

try:
    from accelerate import Accelerator
except ImportError as missing:
    raise ImportError(
        "variegrad.integrations.accelerate needs Accelerate: pip install 'variegrad[accelerate]'"
    ) from missing

from torch import Tensor, nn
from torch.optim import Optimizer

from variegrad.integrations.scalars import Unread, scalars
from variegrad.monitor import Monitor


class BatchSizeMonitor:
    """Watch in the loop, before `accelerator.backward`; the rest happens by itself.

    ```python
    monitor = BatchSizeMonitor(accelerator, model, every=16, population=len(dataset))
    ...
    monitor.watch(loss, output=logits)  # or the losses of the examples, shape (b,)
    accelerator.backward(loss)
    ```

    What the loop logs with `accelerator.log` holds the latest new reading, as `variegrad/…` with its step; the last one
    is logged by `close`. All readings are in `monitor.monitor.history`.

    Args:
        accelerator: its trackers log, its checkpoints carry the monitor.
        model: as `accelerator.prepare` returned it.
        optimizer: as `accelerator.prepare` returned it, to measure in the norm in which it descends; None for the
            Euclidean bound.
        **settings: of `variegrad.Monitor`, such as every, population and log; `accumulate` is the accelerator's own.
    """

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, optimizer: Optimizer | None = None, **settings: Any
    ) -> None:
        self.monitor = Monitor(
            model, accumulate=accelerator.gradient_accumulation_steps, optimizer=optimizer, **settings
        )
        self._accelerator, self._unread = accelerator, Unread(self.monitor)
        self._write = write = accelerator.log

        def log(values: dict[str, Any], *more: Any, **also: Any) -> None:
            reading = self._unread.take()
            write(values if reading is None else {**values, **scalars(reading)}, *more, **also)

        vars(accelerator)["log"] = self._log = log
        accelerator.register_for_checkpointing(self)

    def watch(self, loss: Tensor, *, output: Tensor | Sequence[Tensor] | None = None) -> None:
        """Tells the monitor of a step's losses, between forward and backward, as `variegrad.Monitor.watch` does.

        Args:
            loss: one loss per example, shape (b,), or the scalar.
            output: what a scalar loss was computed from, first dimension the examples; several as a tuple.

        Raises:
            TypeError: if an argument is not a floating-point tensor.
            ValueError: if shapes do not fit, there is no graph, or examples cannot be separated.
        """
        self.monitor.watch(loss, output=output)

    def state_dict(self) -> dict[str, Any]:
        """What `accelerator.save_state` keeps.

        Returns:
            Plain numbers and text.
        """
        return self._unread.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `accelerator.load_state` restores.

        Args:
            state: of `state_dict`.
        """
        self._unread.load_state_dict(state)

    def close(self) -> None:
        """Ends the monitoring: logs the last reading, if it is new, and lets go of the accelerator and the log file."""
        if (reading := self._unread.take()) is not None:
            self._write(scalars(reading))
        if vars(self._accelerator).get("log") is self._log:
            del vars(self._accelerator)["log"]
        self.monitor.close()
