"""A reading as scalars for a logger, each reading once."""

from __future__ import annotations

import math

from variegrad.monitor import Monitor, Reading


def scalars(reading: Reading, prefix: str = "variegrad/") -> dict[str, float]:
    """The numbers of a reading that a logger can draw: finite ones, and none that would say more than is known.

    Args:
        reading: the reading.
        prefix: stands before every name.

    Returns:
        `batch_size_bound`, `low`, `high`, `lower_confidence_bound` (examples) and `efficiency` of the batch in use, as
        far as they are known and finite; `cannot_tell`, 0 or 1, always.
    """
    found = {"cannot_tell": float(reading.cannot_tell)}
    if not reading.cannot_tell:
        found["batch_size_bound"] = reading.batch_size_bound
        found["low"] = reading.low
        found["lower_confidence_bound"] = reading.lower_confidence_bound
        found["efficiency"] = reading.advice().efficiency
    found["high"] = reading.high
    return {prefix + name: value for name, value in found.items() if math.isfinite(value)}


class Unread:
    """Hands on each reading of a monitor once.

    Args:
        monitor: whose readings; those that it has by now count as handed on.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._handed_on = monitor.history.appended

    def take(self) -> Reading | None:
        """The latest reading, where it is new.

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
        """Go on from a checkpoint; what was read before it has been handed on.

        Args:
            state: of `state_dict`.
        """
        self._monitor.load_state_dict(state)
        self._handed_on = self._monitor.history.appended
