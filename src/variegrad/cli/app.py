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
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # tables of rich cut the names of options on a narrow terminal
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, tuple[Callable[..., None], str, list[str]]] = {
    "measure": (
        measure,
        "Measure B_D along a training run",
        [
            "variegrad measure digits --report runs/digits",
            "variegrad measure mnist --data-root data --max-examples 2000",
            "variegrad measure mine.py:problem --mechanism dropconnect:0.4",
        ],
    ),
    "train": (
        train,
        "Train a problem on one worker or several",
        [
            "variegrad train digits --target-accuracy 0.9",
            "variegrad train mnist --batch-size 512 --out runs/a --resume",
            "torchrun --nproc-per-node 2 -m variegrad train mnist --out runs/b",
        ],
    ),
    "bound": (
        bound,
        "Bound B_D from the data alone (linear models)",
        ["variegrad bound data/train.svm.gz", "variegrad bound a9a --data-root data"],
    ),
    "plan": (
        plan,
        "Recommend a batch size and a learning rate",
        ["variegrad plan digits", "variegrad plan digits --workers 4 --link 1Gbit/s"],
    ),
    "branch": (
        branch,
        "Measure the critical batch size directly",
        [
            "variegrad branch digits --batch-size 16 --learning-rate 0.1",
            "variegrad branch mine.py:problem --optimizer adamw --rule square-root --ledger branches.jsonl",
        ],
    ),
    "monitor": (
        monitor,
        "Show the log that a Monitor wrote",
        ["variegrad monitor runs/a/monitor.jsonl --report runs/a"],
    ),
    "experiment": (
        experiment,
        "Reproduce a figure or table of the paper",
        ["variegrad experiment figure-2a --profile small --out runs/figure-2a"],
    ),
    "report": (report, "Draw a page of finished experiments", ["variegrad report runs"]),
    "list": (list_all, "List problems, mechanisms and experiments", ["variegrad list"]),
}
for name, (command, short, examples) in COMMANDS.items():
    # "\b" keeps the lines of a paragraph as they are.
    shown = "\n  ".join(["\b\nExamples:" if len(examples) > 1 else "\b\nExample:", *examples])
    app.command(name, cls=Command, short_help=short, epilog=shown)(command)


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
