"""`variegrad list`: the problems, mechanisms and experiments that the other commands take."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from variegrad.cli.mechanisms import WRITTEN
from variegrad.experiments import experiment
from variegrad.experiments import names as experiments
from variegrad.problems import names


def list_all() -> None:
    """List the built-in problems, the mechanisms and the experiments."""
    console = Console()
    problems = Table("problem", "what it is", title="Problems", title_justify="left", box=None, pad_edge=False)
    for name, summary in names().items():
        problems.add_row(name, summary)
    problems.add_row("FILE", "any LIBSVM file (.svm, .txt, also .gz and .bz2): logistic regression")
    problems.add_row("package.module:function", "your own: a function that returns a variegrad.problems.Problem")
    mechanisms = Table("mechanism", "what it does", title="Mechanisms", title_justify="left", box=None, pad_edge=False)
    for written, summary in WRITTEN.items():
        mechanisms.add_row(written, summary)
    runnable = Table("experiment", "what it shows", "profiles", title="Experiments", title_justify="left", box=None,
                     pad_edge=False)  # fmt: skip
    for name in experiments():
        found = experiment(name)
        runnable.add_row(name, found.title, ", ".join(found.profiles))
    console.print(problems)
    console.print()
    console.print(mechanisms)
    console.print()
    console.print(runnable)
