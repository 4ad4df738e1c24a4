"""B_D during training: readings with an interval, and their history."""

from variegrad.monitor.history import History
from variegrad.monitor.monitor import Monitor
from variegrad.monitor.reading import Reading

__all__ = ["History", "Monitor", "Reading"]
