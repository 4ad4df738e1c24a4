"""Hugging Face Accelerate: a Monitor that logs with the accelerator's trackers and travels in its checkpoints."""

from __future__ import annotations

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
    monitor = BatchSizeMonitor(accelerator, model, optimizer, every=16, population=len(dataset))
    ...
    monitor.watch(loss, output=logits)  # or the losses of the examples, shape (b,)
    accelerator.backward(loss)
    ```

    Readings go to `accelerator.log` as `variegrad/…`, at their own step, as soon as the optimizer has made it.

    Args:
        accelerator: its trackers log, its checkpoints carry the monitor.
        model: as `accelerator.prepare` returned it.
        optimizer: as `accelerator.prepare` returned it.
        **settings: of `variegrad.Monitor`, such as every, population and log; `accumulate` is the accelerator's own.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, **settings: Any) -> None:
        self.monitor = Monitor(model, accumulate=accelerator.gradient_accumulation_steps, **settings)
        self._accelerator, self._unread = accelerator, Unread(self.monitor)
        # The hook belongs to the optimizer inside: the one outside is asked to step on every micro-batch.
        inside = getattr(optimizer, "optimizer", optimizer)
        self._handle = inside.register_step_post_hook(self._stepped)
        accelerator.register_for_checkpointing(self)

    def watch(self, loss: Tensor, *, output: Tensor | None = None) -> None:
        """Tells the monitor of a step's losses, between forward and backward, as `variegrad.Monitor.watch` does.

        Args:
            loss: one loss per example, shape (b,), or the scalar.
            output: what a scalar loss was computed from, first dimension the examples.

        Raises:
            TypeError: if an argument is no floating-point tensor.
            ValueError: if shapes do not fit, there is no graph, or examples cannot be told apart.
        """
        self.monitor.watch(loss, output=output)

    def _stepped(self, *_: object) -> None:
        if (reading := self._unread.take()) is not None:
            self._accelerator.log(scalars(reading), step=reading.step)

    def state_dict(self) -> dict[str, Any]:
        """What `accelerator.save_state` keeps.

        Returns:
            Plain numbers and text.
        """
        return self._unread.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `accelerator.load_state` brings back.

        Args:
            state: of `state_dict`.
        """
        self._unread.load_state_dict(state)

    def close(self) -> None:
        """Ends the monitoring; the log file is free again."""
        self._handle.remove()
        self.monitor.close()
