"""The command `variegrad`: one file a subcommand."""

from __future__ import annotations

import os
import sys

import typer

from variegrad.cli.bound import bound
from variegrad.cli.branch import branch
from variegrad.cli.experiment import experiment
from variegrad.cli.listing import list_all
from variegrad.cli.measure import measure
from variegrad.cli.monitor import monitor
from variegrad.cli.plan import plan
from variegrad.cli.report import report
from variegrad.cli.train import train_command

app = typer.Typer(
    name="variegrad",
    help="How large may a mini-batch be before more examples are wasted, and what raises that limit? "
    "Measures gradient diversity (Yin et al., AISTATS 2018). Start with: variegrad measure digits",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("measure")(measure)
app.command("train")(train_command)
app.command("bound")(bound)
app.command("plan")(plan)
app.command("branch")(branch)
app.command("monitor")(monitor)
app.command("experiment")(experiment)
app.command("report")(report)
app.command("list")(list_all)


# What typer raises for an unknown option or a value that does not parse; it has no public name of its own there.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]
# Raised on purpose, with a message that says what to do; anything else comes from a user's code or a defect of ours.
EXPECTED = (ValueError, TypeError, OSError, RuntimeError)


def main() -> None:
    """Run the command; bad input ends in one line on standard error and exit code 2, never in a traceback.

    Set VARIEGRAD_TRACEBACK=1 to see where an error came from.
    """
    try:
        code = app(standalone_mode=False) or 0
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if os.environ.get("VARIEGRAD_TRACEBACK"):
            raise
        if line := _in_one_line(error):
            sys.stderr.write(f"variegrad: {line}\n")
        code = 2
    sys.exit(code)


def _in_one_line(error: Exception) -> str:
    if isinstance(error, UsageError):  # without any command there is no message: the help was printed instead
        message = " ".join(error.format_message().split())  # type: ignore[attr-defined]
        return message and f"{message.rstrip('.')}. Try: {error.ctx.command_path} --help"  # type: ignore[attr-defined]
    message = " ".join(str(error).split())
    if isinstance(error, EXPECTED) and message:
        return message
    return f"{type(error).__name__}: {message} (where: set VARIEGRAD_TRACEBACK=1)"
