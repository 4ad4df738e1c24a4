"""`variegrad monitor LOG`: what a Monitor wrote during somebody's training, as a table, a sentence and a picture."""

from __future__ import annotations

import json as json_format
import math
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from variegrad.cli.table import examples
from variegrad.estimators import Regime
from variegrad.monitor import Reading
from variegrad.monitor.log_file import Log, read_log
from variegrad.reports.history_document import SCHEMA
from variegrad.reports.history_page import write_history

SHOWN = 12


def monitor(
    log: Annotated[Path, typer.Argument(help="The file that was given to Monitor(log=...).")],
    report: Annotated[
        Path | None, typer.Option(help="Write report.html, history.png, history.svg and history.json into this folder.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    """Show the history that a Monitor wrote: the latest readings, what they mean for the batch in use, a picture.

    A log may be read while it is being written. Example: `variegrad monitor runs/a/monitor.jsonl --report runs/a`
    """
    if report is not None and not (standing := next(p for p in (report, *report.parents) if p.exists())).is_dir():
        raise ValueError(f"--report {report}: {standing} is a file; name a folder.")
    errors = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    found = _read(log, errors)
    if not found.readings:
        raise ValueError(f"log: {log} holds no reading yet; its run has only begun. Look again after a few steps.")
    if found.half_written:
        errors.print(f"variegrad: {log} ends in a half-written line, as after a crash; it is left out")
    if found.runs > 1:
        errors.print(f"variegrad: {log} holds {found.runs:,} runs; this is the last")
    made = document(log, found)
    if json:
        sys.stdout.write(json_format.dumps(made, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    else:
        # A pipe has no width of its own: keep the columns whole there.
        console = Console() if sys.stdout.isatty() else Console(width=120)
        console.print(_table(log, found))
        console.print(made["advice"], soft_wrap=True, highlight=False, markup=False)
    if report is not None:
        page = write_history(made, report)
        (errors if json else Console(markup=False, highlight=False, soft_wrap=True)).print(f"report: {page}")


def document(log: Path, found: Log) -> dict[str, Any]:
    """A log as one JSON-able document: what `--json` prints and what the report is drawn from.

    Args:
        log: the file.
        found: what it holds.

    Returns:
        The document.
    """
    last = found.readings[-1]
    return {
        "schema": SCHEMA,
        "name": log.stem,
        "log": str(log),
        "runs": found.runs,
        "count": found.count,
        "half_written": found.half_written,
        "confidence": last.confidence,
        "population": last.population,
        "command": shlex.join(["variegrad", *sys.argv[1:]]),
        "versions": {"variegrad": version("variegrad"), "python": platform.python_version()},
        "advice": advice(last),
        "readings": [reading.to_record() for reading in found.readings],
    }


def advice(reading: Reading) -> str:
    """One sentence or two that a person can act on.

    Args:
        reading: the latest.

    Returns:
        How the batch in use fares, and which batches waste at most half of their examples.
    """
    batch, level = f"the batch of {reading.batch_size:,}", f"{reading.confidence:.0%}"
    if reading.undefined:
        return f"At step {reading.step:,} every gradient was zero: any batch size is harmless."
    found = reading.advice()
    if reading.cannot_tell:
        upper = "" if math.isinf(reading.high) else f", but it is at most {examples(reading.high)} examples ({level})"
        return (
            f"Cannot tell yet: {_steps(reading.pooled_steps)} pooled so far, and B_D is not bounded from below{upper}. "
            "Let the run go on, or look at more steps (a smaller every=)."
        )
    half = math.floor(1 + reading.lower_confidence_bound)
    ends = f"{found.low:.0%} to {found.high:.0%} of its examples count"
    regime = (
        f"{batch} cannot be judged yet: {ends}"
        if found.regime is Regime.UNDECIDED
        else f"{batch} is {'' if found.certain else 'probably '}{found.regime.value}: {ends}"
    )
    return (
        f"At step {reading.step:,} {regime}. B_D is at least {examples(reading.lower_confidence_bound)} examples with "
        f"about {level} confidence, so a batch of {half:,} wastes at most half."
    )


def _read(log: Path, errors: Console) -> Log:
    size = log.stat().st_size if log.is_file() else 0
    with Progress(
        TextColumn("reading {task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        console=errors, transient=True, disable=not errors.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task(log.name, total=max(size, 1))
        return read_log(log, on_bytes=lambda done: bar.update(task, completed=done))


def _table(log: Path, found: Log) -> Table:
    shown = found.readings[-SHOWN:]
    which = f" (the latest {len(shown)} of {found.count:,} readings)" if found.count > len(shown) else ""
    result = Table(
        title=f"Batch-size bound along {escape(log.name)}{which}",
        title_justify="left", caption_justify="left", box=None, pad_edge=False,
        caption="B_D (examples): estimate, interval and lower confidence bound (at least), ? where nothing can be told "
        "yet; B: batch size; efficiency: the part of a batch that is not wasted.",
    )  # fmt: skip
    for head in ("step", "B_D", "from", "to", "at least", "B", "efficiency", "steps pooled", "skipped"):
        result.add_column(head, justify="right", no_wrap=True)
    for r in shown:
        said = r.advice()
        result.add_row(
            f"{r.step:,}", examples(r.batch_size_bound), examples(r.low), examples(r.high),
            "?" if r.cannot_tell else examples(r.lower_confidence_bound), f"{r.batch_size:,}",
            f"{said.low:.0%} – {said.high:.0%}", f"{r.pooled_steps:,}", f"{r.skipped:,}",
        )  # fmt: skip
    return result


def _steps(count: int) -> str:
    return f"{count:,} step" + ("s" if count != 1 else "")
