"""Cells → records: in parallel on one machine or a Ray cluster, resumable, wall-clock cells alone and last.

The process that sweeps writes each record as soon as its cell is done. Whatever ends it (Ctrl-C, kill, a failing cell),
what is finished stays finished and is never computed again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from variegrad.experiments.data import CPU
from variegrad.experiments.experiment import Experiment, Settings
from variegrad.experiments.records import Cell, Record, pack, read_records, write_record

TOGETHER = 16  # cells of a stack, at most
Run = Callable[[Sequence[Cell]], Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What a sweep leaves.

    Attributes:
        records: those that the settings need, by key.
        computed: how many of them were computed now.
        skipped: how many stood finished before.
        left: how many are not finished, because they were not asked for.
    """

    records: Mapping[str, Record]
    computed: int
    skipped: int
    left: int = 0


def sweep(
    experiment: Experiment,
    settings: Settings,
    folder: Path,
    *,
    jobs: int = 1,
    cluster: str | None = None,
    device: torch.device = CPU,
    timed: bool | None = None,
    console: Console | None = None,
) -> Swept:
    """Compute every cell that the settings need and that is not finished.

    Args:
        experiment: what to compute.
        settings: of one profile.
        folder: where records stand and are written.
        jobs: groups of cells computed at once, one thread each.
        cluster: "ray" for the Ray cluster that RAY_ADDRESS names or that runs here, begun if there is none; None for
            processes on this machine.
        device: where cells are computed, if the experiment can be moved.
        timed: only the cells that need the machine for themselves (True), or only the others (False).
        console: where progress is shown.

    Returns:
        The records needed.

    Raises:
        ValueError: if `jobs` is below one, the cluster is unknown or not installed, or the experiment cannot be moved
            to the device.
        RuntimeError: if a cell fails; the records finished before are kept.
    """
    check_places(jobs, cluster)
    run = runner(experiment, device)
    told = console or Console(stderr=True, quiet=True)
    found = read_records(folder)
    for sentence in found.damaged:
        told.print(f"damaged record, computed again if it is needed: {sentence}", markup=False, highlight=False)
    done = found.records
    known, computed = set(done), 0
    bar = Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=told, transient=True, disable=not told.is_terminal,
    )  # fmt: skip
    with bar if told.is_terminal else nullcontext():  # rich before 14.1 ends with an empty line elsewhere
        task = bar.add_task(experiment.name, total=None)

        def asked_for(cell: Cell) -> bool:
            return cell.key not in done and timed in (None, experiment.alone(cell))

        while wanted := {cell.key: cell for cell in experiment.cells(settings, done) if asked_for(cell)}:
            groups = grouped(experiment, list(wanted.values()), device)
            bar.update(task, total=computed + len(wanted))
            if not told.is_terminal:
                told.print(f"{experiment.name}: {len(wanted)} cells in {len(groups)} groups", highlight=False)
            for records in _computed(experiment, run, groups, jobs, cluster):
                for record in records:
                    write_record(folder, record)
                    done[record.cell.key] = record
                computed += len(records)
                bar.update(task, completed=computed)
    pack(folder)
    keys = {cell.key for cell in experiment.cells(settings, done)}
    needed = {key: done[key] for key in keys & done.keys()}
    left = len(keys) - len(needed)
    return Swept(records=needed, computed=computed, skipped=len(known & needed.keys()), left=left)


def grouped(experiment: Experiment, cells: Sequence[Cell], device: torch.device) -> list[list[Cell]]:
    """Cells that are computed together, those that need the machine for themselves last.

    Args:
        experiment: of the cells.
        cells: what is to be computed.
        device: where to.

    Returns:
        The groups.
    """
    stack = experiment.stack if device.type != "cpu" else None
    groups: dict[tuple[bool, object], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((experiment.alone(cell), (stack or experiment.group)(cell)), []).append(cell)
    ordered = [groups[key] for key in sorted(groups, key=lambda key: key[0])]
    if stack is None:
        return ordered
    return [group[k : k + TOGETHER] for group in ordered for k in range(0, len(group), TOGETHER)]


def runner(experiment: Experiment, device: torch.device) -> Run:
    """The experiment's `run` on a device.

    Args:
        experiment: which.
        device: where to.

    Returns:
        cells of one group → their values.

    Raises:
        ValueError: if the experiment cannot be moved there, or there is no such device.
    """
    if device.type == "cpu":
        return experiment.run
    if not experiment.on_device:
        raise ValueError(f"--device {device}: {experiment.name} is computed by processes on the CPU; leave it out.")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {device}: it cannot be used here ({str(error).splitlines()[0]}).") from error
    return partial(experiment.run, device=device)


def _computed(
    experiment: Experiment, run: Run, groups: Sequence[list[Cell]], jobs: int, cluster: str | None
) -> Iterator[list[Record]]:
    """The records of each group as it is done, in any order."""
    together = [group for group in groups if not experiment.alone(group[0])]
    if cluster is not None:
        yield from _on_ray(run, together)
    elif jobs > 1 and len(together) > 1:
        import joblib  # type: ignore[import-untyped]  # noqa: PLC0415 - an extra

        with joblib.parallel_config(backend="loky", n_jobs=jobs, inner_max_num_threads=1):
            calls = (joblib.delayed(_compute)(run, group, sweeper=os.getpid()) for group in together)
            yield from joblib.Parallel(return_as="generator_unordered", pre_dispatch="2*n_jobs")(calls)
    else:
        yield from (_compute(run, group) for group in together)
    for group in groups:
        if experiment.alone(group[0]):
            yield _compute(run, group, alone=True)


def _on_ray(run: Run, groups: Sequence[list[Cell]]) -> Iterator[list[Record]]:
    """As many at once as the cluster has processors. joblib's Ray backend returns nothing before all is done."""
    import ray  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415 - an extra, slow to load

    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    remote = ray.remote(num_cpus=1)(_compute)
    pending = [remote.remote(run, group) for group in groups]
    try:
        while pending:
            finished, pending = ray.wait(pending)
            yield from ray.get(finished)
    except ray.exceptions.RayTaskError as error:
        raise RuntimeError(f"{error.cause}") from error
    finally:  # interrupted, or a cell failed: cells that are not needed any more are not computed
        for task in pending:
            ray.cancel(task)


def _compute(
    run: Run,
    cells: list[Cell],
    *,
    alone: bool = False,
    sweeper: int | None = None,
) -> list[Record]:
    if sweeper is not None:
        _end_with(sweeper)
    threads, clock = torch.get_num_threads(), time.perf_counter if alone else time.process_time
    if not alone:  # one thread for each cell: results and times then do not depend on how many run at once
        torch.set_num_threads(1)
    began = clock()
    try:
        values = run(cells)
    except Exception as error:
        raise RuntimeError(f"a cell failed ({cells[0]}): {type(error).__name__}: {error}") from error
    finally:
        torch.set_num_threads(threads)
    assert len(values) == len(cells)
    share = (clock() - began) / len(cells)
    return [Record(cell=cell, values=value, seconds=share) for cell, value in zip(cells, values, strict=True)]


@cache
def _end_with(sweeper: int) -> None:
    """Let this process end within a second of the one that sweeps, which may have been killed."""

    def watch() -> None:
        while os.getppid() == sweeper:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def check_places(jobs: int, cluster: str | None) -> None:
    """Refuse a sweep whose cells have nowhere to be computed, before anything is written.

    Args:
        jobs: groups of cells computed at once.
        cluster: "ray", or None for this machine.

    Raises:
        ValueError: if `jobs` is below one, the cluster is unknown, or a package is missing.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1; got {jobs}.")
    if cluster is None:
        if jobs > 1 and find_spec("joblib") is None:
            raise ValueError(
                f"--jobs {jobs} needs joblib, which is missing: pip install 'variegrad[experiments]', or use --jobs 1."
            )
        return
    if cluster != "ray":
        raise ValueError(f"--cluster must be 'ray'; got {cluster!r}. Leave it out to compute on this machine.")
    if find_spec("ray") is None:
        raise ValueError(
            "--cluster ray needs Ray, which is not installed: pip install 'variegrad[cluster]' and start a cluster "
            "(ray start --head), or leave the option out to compute on this machine with --jobs."
        )
