"""Problems by name: what a person types after `variegrad measure`."""

from __future__ import annotations

import os
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from variegrad.data_root import find_file, root_folder
from variegrad.problems.built_in import BUILT_IN, libsvm_problem
from variegrad.problems.problem import Problem
from variegrad.problems.subset import counted, some
from variegrad.problems.user_function import call


def names() -> dict[str, str]:
    """The problems that `load` knows by name.

    Returns:
        One line for each name.
    """
    return {name: entry.summary for name, entry in BUILT_IN.items()}


def load(name: str, *, seed: int = 0, data_root: str | Path | None = None, max_examples: int | None = None) -> Problem:
    """The problem of this name.

    Args:
        name: one of `names()`, the path of a LIBSVM file, `mine.py:function` or `package.module:function`.
        seed: of the initial weights and of the choice of examples; a user's function sets its own weights.
        data_root: where data files are; by default VARIEGRAD_DATA, or ~/.cache/variegrad.
        max_examples: keep at most this many training examples, and the same number of test examples, chosen at random.

    Returns:
        The problem.

    Raises:
        DataNotFound: if its files are missing; nothing is downloaded without being asked for (`fetch`).
        ValueError: if the name is unknown, a file is malformed, a user's function fails or `max_examples` < 1.
        TypeError: if a user's function does not return a Problem.
    """
    problem = _build(name, seed, root_folder(data_root))
    return problem if max_examples is None else _limited(problem, max_examples, seed)


def _build(name: str, seed: int, root: Path) -> Problem:
    if name in BUILT_IN:
        return BUILT_IN[name].build(seed, root)
    if name and any(path.is_file() for path in (Path(name).expanduser(), root / name)) and not name.endswith(".py"):
        path = find_file(name, root)
        return libsvm_problem(path.name, path, seed=seed)
    if ":" in name or name.endswith(".py"):
        return call(name)
    if os.sep in name or Path(name).suffix or (name and Path(name).expanduser().exists()):
        find_file(name, root)
    near = get_close_matches(name.lower(), BUILT_IN, n=1)
    raise ValueError(
        f"unknown problem {name!r}{f'; did you mean {near[0]!r}?' if near else '.'} Choose one of "
        f"{', '.join(BUILT_IN)}, the path of a LIBSVM file, or your own mine.py:function or package.module:function."
    )


def _limited(problem: Problem, max_examples: int, seed: int) -> Problem:
    train = some(problem.train, max_examples, seed=seed)
    test = None if problem.test is None else some(problem.test, max_examples, seed=seed)
    if train is problem.train and test is problem.test:
        return problem
    about = "; ".join(part for part in (problem.description, f"{counted(train, test)} used") if part)
    return replace(problem, train=train, test=test, description=about)
