"""`variegrad experiment NAME`: one of the paper's figures or tables, from its cells to its findings."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from variegrad.cli.report import write_page
from variegrad.experiments import data, names
from variegrad.experiments import experiment as experiment_named
from variegrad.experiments.run_folder import Run, begin, finish
from variegrad.experiments.sweep import sweep
from variegrad.problems.data_root import VARIABLE


def experiment(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(names())}.")],
    profile: Annotated[
        str, typer.Option(help="smoke: seconds. small: minutes on two cores. paper: the paper's sizes.")
    ] = "small",
    out: Annotated[Path | None, typer.Option(help="Folder of records and pictures. Default: runs/NAME.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Cells computed at once. Default: one a processor.")] = None,
    seed_offset: Annotated[int, typer.Option(help="The first seed: other repeats of the same experiment.")] = 0,
    cluster: Annotated[str | None, typer.Option(help="'ray': spread the cells over a Ray cluster.")] = None,
    data_root: Annotated[
        str | None, typer.Option(help=f"Where data files are. Default: {VARIABLE}, else ~/.cache/variegrad.")
    ] = None,
) -> None:
    """Reproduce one figure or table of the paper.

    Every cell (batch size, step size, seed, …) is a record of its own in the folder: what is finished is never computed
    again, whatever ended the run before. Ctrl-C keeps what was done.

    Example: `variegrad experiment figure-2a --profile small --out runs/fig2a`
    """
    chosen = experiment_named(name)
    if profile not in chosen.profiles:
        raise ValueError(f"--profile must be one of {', '.join(chosen.profiles)}; got {profile!r}.")
    if seed_offset < 0:
        raise ValueError(f"--seed-offset must not be negative; got {seed_offset}.")
    if data_root is not None:
        os.environ[VARIABLE] = str(Path(data_root).expanduser().resolve())  # the processes that compute inherit it
    errors = Console(stderr=True, soft_wrap=True)
    folder = Path("runs", name) if out is None else out
    settings, about = data.settled({**chosen.profiles[profile], "seed_offset": seed_offset})
    errors.print(about, markup=False, highlight=False)
    begin(folder, chosen, profile, settings, data=about, command=shlex.join(["variegrad", *sys.argv[1:]]))
    workers = jobs if jobs is not None else os.cpu_count() or 1
    try:
        swept = sweep(chosen, settings, folder, jobs=workers, cluster=cluster, console=errors)
    except KeyboardInterrupt:
        errors.print(
            f"variegrad: interrupted; finished cells are kept in {folder}, the same command goes on from there"
        )
        raise typer.Exit(130) from None
    run = finish(folder)
    page = write_page([(folder, run)], folder)
    said = Console() if sys.stdout.isatty() else Console(width=120)
    said.print(_table(run))
    said.print(f"{swept.computed} cells computed, {swept.skipped} finished before; report: {page}", soft_wrap=True)


def _table(run: Run) -> Table:
    table = Table(
        "claim", "found", "verdict", title=run.experiment.title, title_justify="left", box=None, pad_edge=False
    )
    for finding in run.findings:
        table.add_row(escape(finding.claim), escape(finding.found), finding.verdict)  # an interval is no markup
    return table
