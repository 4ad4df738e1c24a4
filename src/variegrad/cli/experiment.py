"""`variegrad experiment NAME`: one of the paper's figures or tables, from its cells to its findings."""

from __future__ import annotations

import os
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from variegrad.cli import options
from variegrad.cli.terminal import errors, output, print_line, text_table
from variegrad.data_root import VARIABLE


def experiment(
    name: Annotated[str, typer.Argument(help="Its name; `variegrad list` shows them all.")],
    profile: Annotated[
        str, typer.Option(help="smoke: seconds. small: minutes on two cores. paper: the paper's sizes.")
    ] = "small",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of records and pictures. Default: runs/NAME.", callback=options.writable_folder),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="Cells computed at once. Default: one per processor.", callback=options.number(least=1)),
    ] = None,
    seed_offset: Annotated[
        int, typer.Option(help="The first seed: other seeds repeat the experiment.", callback=options.number(least=0))
    ] = 0,
    cluster: Annotated[str | None, typer.Option(help="'ray': spread the cells over a Ray cluster.")] = None,
    data_root: options.DataRoot = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Let this run replace another one in the folder.")
    ] = False,
) -> None:
    """Reproduce one figure or table of the paper.

    Every cell (batch size, step size, seed, …) is a record of its own in the folder: what is finished is never computed
    again, whatever ended the run before. Ctrl-C keeps what was done.

    Example: `variegrad experiment figure-2a --profile small --out runs/fig2a`
    """
    from variegrad.experiments import data  # noqa: PLC0415 - after the options
    from variegrad.experiments import experiment as experiment_named  # noqa: PLC0415
    from variegrad.experiments.run_folder import begin, finish  # noqa: PLC0415
    from variegrad.experiments.sweep import check_places, sweep  # noqa: PLC0415

    chosen = experiment_named(name)
    if profile not in chosen.profiles:
        raise ValueError(f"--profile must be one of {', '.join(chosen.profiles)}; got {profile!r}.")
    folder = Path("runs", name) if out is None else out
    if out is None:
        options.writable_folder(folder)
    workers = jobs or ((os.cpu_count() or 1) if find_spec("joblib") else 1)
    check_places(workers, cluster)
    if data_root is not None:
        os.environ[VARIABLE] = str(Path(data_root).expanduser().resolve())  # the processes that compute inherit it
    console = errors()
    settings, about = data.settled({**chosen.profiles[profile], "seed_offset": seed_offset})
    if data_root is not None and settings.get("problem", "digits") == "digits":
        about += " --data-root is not used: this profile needs no files."
    console.print(about)
    begin(
        folder, chosen, profile, settings, data=about, command=shlex.join(["variegrad", *sys.argv[1:]]),
        overwrite=overwrite,
    )  # fmt: skip
    try:
        swept = sweep(chosen, settings, folder, jobs=workers, cluster=cluster, console=console)
    except KeyboardInterrupt:
        console.print(f"variegrad: interrupted; finished cells are kept in {folder}, the same command resumes")
        raise typer.Exit(130) from None
    run = finish(folder)
    from variegrad.cli.report import write_page  # noqa: PLC0415 - matplotlib takes a second to import

    page = write_page([(folder, run)], folder)
    findings = [(found.claim, found.found, found.verdict) for found in run.findings]
    output().print(text_table(["claim", "found", "verdict"], findings, title=run.experiment.title))
    print_line(f"{swept.computed} cells computed, {swept.skipped} finished before; report: {page}")
