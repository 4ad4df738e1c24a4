"""`variegrad experiment NAME`: one of the paper's figures or tables, from its cells to its findings."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from variegrad.cli import options
from variegrad.cli.terminal import errors, output, print_line, text_table
from variegrad.data_root import VARIABLE

if TYPE_CHECKING:
    import torch

    from variegrad.experiments.experiment import Experiment, Settings

CELLS = {"all": None, "untimed": False, "timed": True}


def experiment(
    name: Annotated[str, typer.Argument(help="The experiment's name; `variegrad list` shows them all.")],
    profile: Annotated[
        str, typer.Option(help="smoke: seconds. small: minutes on two cores. paper: the paper's sizes.")
    ] = "small",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for records and figures. Default: runs/NAME.", callback=options.writable_folder),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Number of cells to run in parallel. Default: one per core.",
            callback=options.number(least=1, most=1024),
        ),
    ] = None,
    seed_offset: Annotated[
        int,
        typer.Option(
            help="First seed; a different one repeats the experiment with new draws.",
            callback=options.number(least=0, most=2**31),
        ),
    ] = 100,
    cells: Annotated[
        str,
        typer.Option(
            help="all; untimed: only cells that can share the machine; timed: only cells that measure time and "
            "need an otherwise idle machine."
        ),
    ] = "all",
    cluster: Annotated[str | None, typer.Option(help="Set to 'ray' to run the cells on a Ray cluster.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Device to train on: cpu, cuda, cuda:1 or mps. Default: cpu.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the number of runs, operations and hours, after timing a few "
            "updates, without running anything.",
        ),
    ] = False,
    data_root: options.DataRoot = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a different run in the folder.")] = False,
) -> None:
    """Reproduce one figure or table of the paper.

    Every cell (a combination of batch size, step size, seed, …) is stored as one record in the folder. Finished cells
    are never computed again: after Ctrl-C or a crash, the same command resumes.
    """
    from variegrad.experiments import experiment as experiment_named  # noqa: PLC0415
    from variegrad.experiments.run_folder import begin, finish  # noqa: PLC0415
    from variegrad.experiments.sweep import check_places, runner, sweep  # noqa: PLC0415

    chosen = experiment_named(name)
    if profile not in chosen.profiles:
        raise ValueError(f"--profile must be one of {', '.join(chosen.profiles)}; got {profile!r}.")
    if cells not in CELLS:
        raise ValueError(f"--cells must be one of {', '.join(CELLS)}; got {cells!r}.")
    folder = Path("runs", name) if out is None else out
    place = _place(device)
    if out is None and not dry_run:
        options.writable_folder(folder)
    alone = find_spec("joblib") is None or place.type != "cpu"  # on a device, runs share it in stacks
    workers = jobs or (1 if alone else os.cpu_count() or 1)
    check_places(workers, cluster)
    runner(chosen, place)
    if data_root is not None:
        os.environ[VARIABLE] = str(Path(data_root).expanduser().resolve())  # the processes that compute inherit it
    console = errors()
    settings, about = chosen.settled(
        {**chosen.profiles[profile], "seed_offset": seed_offset}, required=data_root is not None
    )
    if data_root is not None and settings.get("problem", "digits") == "digits":
        about += " --data-root is ignored: this profile needs no files."
    if dry_run:
        console.print(about)
        _print_cost(chosen, settings, place)
        return
    begin(
        folder, chosen, profile, settings, data=about, command=shlex.join(["variegrad", *sys.argv[1:]]),
        overwrite=overwrite,
    )  # fmt: skip
    console.print(about)
    try:
        with _ended_by_sigterm():
            swept = sweep(
                chosen, settings, folder, jobs=workers, cluster=cluster, timed=CELLS[cells], device=place,
                console=console,
            )  # fmt: skip
    except KeyboardInterrupt as interrupt:
        console.print(f"variegrad: interrupted; finished cells are kept in {folder}, the same command resumes")
        raise typer.Exit(143 if isinstance(interrupt, _Terminated) else 130) from None
    if swept.left:
        counts = f"{swept.computed} cells computed, {swept.skipped} finished before, {swept.left} or more left"
        print_line(f"{counts}: the same command with --cells all computes them and writes the report")
        return
    run = finish(folder)
    from variegrad.cli.report import write_page  # noqa: PLC0415 - matplotlib takes a second to import

    page = write_page([(folder, run)], folder)
    findings = [(found.claim, found.found, found.verdict) for found in run.findings]
    output().print(text_table(["claim", "found", "verdict"], findings, title=run.experiment.title))
    print_line(f"{swept.computed} cells computed, {swept.skipped} finished before; report: {page}")


def _place(device: str | None) -> torch.device:
    import torch  # noqa: PLC0415 - after the options

    try:
        return torch.device(device or "cpu")
    except RuntimeError as error:
        raise ValueError(f"--device must be cpu, cuda, cuda:N or mps; got {device!r}.") from error


def _print_cost(chosen: Experiment, settings: Settings, device: torch.device) -> None:
    """A row per configuration as it is timed, and the sum."""
    from variegrad.experiments.cost import GPU_FLOPS, rows, totals  # noqa: PLC0415

    with errors().status("timing updates of each configuration"):
        found = list(rows(chosen, settings, device))
    shown = [_cost_row(row.name, row.runs, row.updates, row.flops, row.seconds, row.gpu_seconds) for row in found]
    sums = totals(found)
    total = _cost_row("all", sums["runs"], None, sums["flops"], sums["seconds"], sums["gpu_seconds"])
    heads = ["configuration", "runs", "updates", "FLOPs", "here", "GPU"]
    output().print(text_table(heads, [*shown, total], title=f"{chosen.name}: cost"))
    if sums["gpu_seconds"] is None:
        print_line("Here: from one group of runs of each row, computed now and not kept. It does not use a GPU.")
        return
    affordable = "affordable" if sums["gpu_seconds"] <= 3600 else "not affordable"
    print_line(
        f"{affordable} on one GPU in an hour. Here: one thread of {device}, from timed updates, longest runs, grids as "
        f"they begin, measuring left out. GPU: assumed {GPU_FLOPS / 1e12:g} TFLOP/s, eight runs at once, not measured."
    )


def _cost_row(
    name: str, runs: float | None, updates: int | None, flops: float | None, here: float | None, gpu: float | None
) -> tuple[str, ...]:
    count, each = (f"{n:,.0f}" if n is not None else "–" for n in (runs, updates))
    return name, count, each if name != "all" else "", f"{flops:.2g}" if flops else "–", _hours(here), _hours(gpu)


def _hours(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.2g} s"
    return f"{seconds / 3600:,.3g} h" if seconds >= 3600 else f"{seconds / 60:.3g} min"


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as from `timeout` or a scheduler: the processes that compute are ended in order, as after Ctrl-C."""


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    def end(_signal: int, _frame: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
