"""`variegrad list`: the problems, mechanisms and experiments that the other commands take."""

from __future__ import annotations

from variegrad.cli.terminal import output, text_table


def list_all() -> None:
    """List the built-in problems, the mechanisms and the experiments."""
    from variegrad.cli.mechanisms import WRITTEN  # noqa: PLC0415 - after the options
    from variegrad.experiments import experiment  # noqa: PLC0415
    from variegrad.experiments import names as experiments  # noqa: PLC0415
    from variegrad.problems import names  # noqa: PLC0415

    problems = [
        *names().items(),
        ("FILE", "a LIBSVM file (.svm, .txt; also .gz, .bz2, .xz, .zst, .zip): logistic regression"),
        ("mine.py:FUNCTION", "your own: a function in a file or module that returns a variegrad.Problem"),
    ]
    console = output()
    console.print(text_table(["problem", "description"], problems, title="Problems"))
    console.print()
    console.print(text_table(["mechanism", "effect"], list(WRITTEN.items()), title="Mechanisms"))
    console.print()
    runnable = [(name, experiment(name).title, ", ".join(experiment(name).profiles)) for name in experiments()]
    console.print(text_table(["experiment", "subject", "profiles"], runnable, title="Experiments"))
