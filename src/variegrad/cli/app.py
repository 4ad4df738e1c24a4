"""The subcommands of `variegrad`, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from variegrad import __version__
from variegrad.cli.bound import bound
from variegrad.cli.branch import branch
from variegrad.cli.experiment import experiment
from variegrad.cli.listing import list_all
from variegrad.cli.measure import measure
from variegrad.cli.monitor import monitor
from variegrad.cli.options import Command
from variegrad.cli.plan import plan
from variegrad.cli.report import report
from variegrad.cli.train_options import train

app = typer.Typer(
    name="variegrad",
    help="How large can a mini-batch get before extra examples stop helping, and what raises that limit? "
    "Measures gradient diversity (Yin et al., AISTATS 2018). Start with: variegrad measure digits",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, Callable[..., None]] = {
    "measure": measure,
    "train": train,
    "bound": bound,
    "plan": plan,
    "branch": branch,
    "monitor": monitor,
    "experiment": experiment,
    "report": report,
    "list": list_all,
}
for name, command in COMMANDS.items():
    app.command(name, cls=Command)(command)


def _show_version(asked: bool | None) -> None:
    if asked:
        typer.echo(f"variegrad {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool | None,
        typer.Option("--version", "-V", help="Print the version.", is_eager=True, callback=_show_version),
    ] = None,
) -> None:
    """Options before the subcommand."""
