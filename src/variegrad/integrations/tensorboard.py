"""TensorBoard: the readings of a Monitor as scalars of a `SummaryWriter`."""

from __future__ import annotations

from typing import Any

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError as missing:
    raise ImportError(
        "variegrad.integrations.tensorboard needs TensorBoard: pip install 'variegrad[tensorboard]'"
    ) from missing

from variegrad.integrations.scalars import Unread, scalars
from variegrad.monitor import Monitor


class ReadingWriter:
    """Writes each reading once, at its own step: `variegrad/batch_size_bound`, `low`, `high`, `lower_confidence_bound`.

    ```python
    readings = ReadingWriter(writer, monitor)
    ...
    readings.write()  # after every step, or as often as you log
    ```

    Args:
        writer: a `SummaryWriter`, or one that has its `add_scalar`.
        monitor: whose readings.
        prefix: stands before every tag.
    """

    def __init__(self, writer: SummaryWriter, monitor: Monitor, *, prefix: str = "variegrad/") -> None:
        self._writer: Any = writer
        self._unread, self._prefix = Unread(monitor), prefix

    def write(self) -> None:
        """Writes the latest reading if it is new.

        Infinite numbers are left out: a curve cannot show them, and `cannot_tell` says why.
        """
        if (reading := self._unread.take()) is not None:
            for tag, value in scalars(reading, self._prefix).items():
                self._writer.add_scalar(tag, value, global_step=reading.step)
