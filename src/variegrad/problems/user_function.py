"""A problem of the user's own: `mine.py:function` or `package.module:function`, which returns a Problem."""

from __future__ import annotations

import importlib
import sys
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

from variegrad.problems.problem import Problem


def call(target: str) -> Problem:
    """The problem that a user's function returns.

    As under `python -m`, the current directory comes first among the places that modules are imported from, and stays
    there, since the function's model and losses may import more when they run.

    Args:
        target: `path/to/mine.py:function` or `package.module:function`.

    Returns:
        What the function returned.

    Raises:
        ValueError: if the module cannot be imported, has no such attribute, or the function raises.
        TypeError: if the attribute cannot be called or does not return a `Problem`.
    """
    module_name, _, name = target.rpartition(":") if ":" in target else (target, "", "")
    if module_name.endswith(".py") and not name:
        raise ValueError(f"{target}: name the function in it that returns a Problem: {module_name}:problem.")
    if not (module_name and name) or ":" in module_name:
        raise ValueError(f"{target!r}: write your own function as mine.py:function or package.module:function.")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    if module_name.endswith(".py") and not Path(module_name).expanduser().is_file():
        raise ValueError(f"{target}: no such file: {module_name} (looked in {here}).")
    try:
        if module_name.endswith(".py"):
            module = _from_file(Path(module_name).expanduser())
            module_name = module.__name__
        else:
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # any code may run, so anything may be raised, sys.exit() included
        again = module_name if module_name.endswith(".py") else f"-c 'import {module_name}'"
        raise ValueError(
            f"{target}: importing {module_name} failed with {type(error).__name__}: {error}. "
            f"Can it be imported from here ({here})? Try: python {again}"
        ) from error
    if not hasattr(module, name):
        near = get_close_matches(name, vars(module), n=1)
        raise ValueError(
            f"{target}: module {module_name} has no attribute {name!r}."
            + (f" Did you mean {near[0]!r}?" if near else " Check its spelling.")
        )
    function = getattr(module, name)
    if not callable(function):
        raise TypeError(f"{target}: must be a function that returns a Problem; found {type(function).__name__}.")
    try:
        problem = function()
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"{target}: the function raised {type(error).__name__}: {error}. It is called without arguments; "
            f"to see where, run: python -c 'import {module_name}; {module_name}.{name}()'"
        ) from error
    if not isinstance(problem, Problem):
        returned = "None" if problem is None else f"a {type(problem).__name__}"
        raise TypeError(f"{target}: the function must return a variegrad.Problem; it returned {returned}.")
    return problem


def _from_file(path: Path) -> ModuleType:
    """The module of a file; its folder comes first among the places to import from, as under `python mine.py`."""
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if (known := sys.modules.get(path.stem)) is not None and getattr(known, "__file__", None) != str(path.resolve()):
        raise ImportError(f"the name {path.stem} belongs to another module that is already loaded; rename the file")
    return importlib.import_module(path.stem)
