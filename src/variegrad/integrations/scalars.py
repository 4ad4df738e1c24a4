"""A reading as scalars for a logger, each reading once.

Any logger with `log(values, step)` takes readings by `to_log`: Weights & Biases, MLflow, trackio, your own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from variegrad.monitor import Monitor, Reading

NAMES = (
    "step", "cannot_tell", "batch_size_bound", "low", "high", "lower_confidence_bound", "efficiency",
)  # fmt: skip


def scalars(reading: Reading, prefix: str = "variegrad/") -> dict[str, float]:
    """The numbers of a reading that a logger can draw: finite ones, and none that would say more than is known.

    Args:
        reading: the reading.
        prefix: stands before every name.

    Returns:
        `batch_size_bound`, `low`, `high`, `lower_confidence_bound` (examples) and `efficiency` of the batch in use, as
        far as they are known and finite; `step`, the reading's own, and `cannot_tell`, 0 or 1, always.
    """
    known = ("step", "cannot_tell", "high") if reading.cannot_tell else NAMES
    values = {name: reading.advice().efficiency if name == "efficiency" else getattr(reading, name) for name in known}
    return {prefix + name: float(value) for name, value in values.items() if math.isfinite(value)}


def to_log(log: Callable[[dict[str, float], int], object], prefix: str = "variegrad/") -> Callable[[Reading], None]:
    """A logger as what `Monitor(on_reading=)` takes.

    ```python
    vg.Monitor(model, on_reading=to_log(wandb.init().log))  # or mlflow.log_metrics, or trackio.log
    ```

    Args:
        log: `log(values, step)`, with the values by name and the optimizer step.
        prefix: stands before every name.

    Returns:
        A function of a reading.
    """

    def on_reading(reading: Reading) -> None:
        log(scalars(reading, prefix), reading.step)

    return on_reading


class Unread:
    """Passes on each reading of a monitor once.

    Args:
        monitor: whose readings; those that it has by now count as handed on.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._handed_on = monitor.history.appended

    def take(self) -> Reading | None:
        """The latest reading, if it is new.

        Returns:
            The reading, or None.
        """
        if self._monitor.history.appended == self._handed_on:
            return None
        self._handed_on = self._monitor.history.appended
        return self._monitor.latest

    def state_dict(self) -> dict[str, object]:
        """That of the monitor, for a checkpoint.

        Returns:
            Plain numbers and text.
        """
        return self._monitor.state_dict()

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from a checkpoint; earlier readings have been written.

        Args:
            state: of `state_dict`.
        """
        self._monitor.load_state_dict(state)
        self._handed_on = self._monitor.history.appended
