"""The report of a measured run: one self-contained page and its pictures, drawn from a plain JSON document alone.

Names are imported when they are first used: matplotlib takes a second.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from variegrad.reports.figures import bound_along_run, efficiency, layers, mechanisms
    from variegrad.reports.page import write_report
    from variegrad.reports.single import report

__all__ = ["bound_along_run", "efficiency", "layers", "mechanisms", "report", "write_report"]
_ELSEWHERE = {"report": "single", "write_report": "page"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'variegrad.reports' has no attribute {name!r}")
    return getattr(import_module(f"variegrad.reports.{_ELSEWHERE.get(name, 'figures')}"), name)
