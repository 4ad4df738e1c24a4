"""Modules that were renamed because a function has their name: the old name works for one version, with a warning.

`variegrad.estimate`, `variegrad.measure` and `variegrad.report` are functions; the modules of these names are now
`variegrad.estimators`, `variegrad.measurement` and `variegrad.reports`.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from types import ModuleType
from typing import Any

RENAMED = {"estimate": "estimators", "measure": "measurement", "report": "reports"}


class Renamed(ModuleType):
    """Takes a module's former name and imports from the new one, so that `from OLD import name` works."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks for these
            raise AttributeError(name)
        new = f"variegrad.{RENAMED[self.__name__.removeprefix('variegrad.')]}"
        warnings.warn(f"{self.__name__} is now {new}; import {name} from there.", DeprecationWarning, stacklevel=2)
        return getattr(import_module(new), name)


def keep() -> None:
    """Let the former names be imported."""
    # Entered here, not found as files: importing a file would replace the function of the same name in the package.
    for old in RENAMED:
        sys.modules.setdefault(f"variegrad.{old}", Renamed(f"variegrad.{old}"))
