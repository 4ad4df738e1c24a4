"""The command `variegrad`: one file a subcommand."""

from __future__ import annotations

import os
import sys

import typer

from variegrad.cli.listing import list_all
from variegrad.cli.measure import measure

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
app.command("list")(list_all)


def main() -> None:
    """Run the command; bad input ends in one line on standard error and exit code 2, never in a traceback.

    Set VARIEGRAD_TRACEBACK=1 to see where an error came from.
    """
    try:
        app()
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        if os.environ.get("VARIEGRAD_TRACEBACK"):
            raise
        line = " ".join(str(error).split()) or type(error).__name__
        sys.stderr.write(f"variegrad: {line}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("variegrad: interrupted\n")
        sys.exit(130)
