"""`variegrad monitor LOG`: what a Monitor wrote during training, as a table, a sentence and a picture."""

from __future__ import annotations

import math
import platform
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from variegrad.cli import options, terminal
from variegrad.cli.table import examples, two_digits
from variegrad.cli.terminal import Column, print_columns, print_json, print_line
from variegrad.versions import version

if TYPE_CHECKING:
    from rich.console import Console

    from variegrad.monitor import Reading
    from variegrad.monitor.log_file import Log

SHOWN = 12


def monitor(
    log: Annotated[
        Path, typer.Argument(help="The file that was passed to Monitor(log=...).", callback=options.existing)
    ],
    report: options.Report = None,
    json: options.AsJson = False,
) -> None:
    """Show the log of a Monitor: the latest estimates of B_D and what they mean for your batch size.

    With --report it also draws the history. A log may be read while it is being written.
    """
    errors = terminal.errors()
    found = _read(log, errors)
    if not found.readings:
        raise ValueError(f"log: {log} has no reading yet: its run has just started. Try again after a few steps.")
    if found.half_written:
        errors.print(f"variegrad: {log} ends in an incomplete line, as after a crash; that line is ignored")
    if found.runs > 1:
        errors.print(f"variegrad: {log} holds {found.runs:,} runs; this is the last")
    made = document(log, found)
    if json:
        print_json(made)
    else:
        _print_table(log, found)
        print_line(made["advice"], wrap=True)
    if report is not None:
        from variegrad.reports.history_page import write_history  # noqa: PLC0415 - matplotlib takes a second to import

        print_line(f"report: {write_history(made, report)}", errors if json else None)


def document(log: Path, found: Log) -> dict[str, Any]:
    """A log as one JSON-able document: what `--json` prints and what the report is drawn from.

    Args:
        log: the file.
        found: what it holds.

    Returns:
        The document.
    """
    from variegrad.reports.history_document import SCHEMA  # noqa: PLC0415

    last = found.readings[-1]
    return {
        "schema": SCHEMA,
        "name": log.stem if log.stem != "monitor" else log.absolute().parent.name or log.stem,
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
        What B_D is at least, and how efficient the usual batch is.
    """
    from variegrad.estimators import Regime  # noqa: PLC0415

    over, level, unit = _over(reading), f"{reading.confidence:.0%}", reading.unit
    if reading.undefined:
        return f"Over {over} every gradient was zero, so the batch size does not matter."
    if reading.cannot_tell:
        upper = ""
        if math.isfinite(reading.high):
            upper = f"; it is at most {two_digits(reading.high)} {unit} ({level} confidence)"
        return (
            f"Not enough readings yet ({reading.pooled_steps:,}): there is no lower bound of B_D{upper}. "
            "Let the run continue, or measure more of its steps (a smaller every=)."
        )
    found = reading.advice()
    regime = (
        "undecided whether below or beyond the limit"
        if found.regime is Regime.UNDECIDED
        else f"{'' if found.certain else 'probably '}{found.regime.value}"
    )
    least = two_digits(reading.lower_confidence_bound, down=True)
    return (
        f"Over {over} B_D was at least {least} {unit} ({level} confidence). "
        f"A batch of {found.batch_size:,} was {found.low:.0%} to {found.high:.0%} efficient: {regime}."
        f"{_on_average(reading)}"
    )


def _on_average(reading: Reading) -> str:
    if len(reading.average) < 4 or reading.average[0] >= reading.first_step:
        return ""
    first, bound, low, high = reading.average
    least = two_digits(low, down=True)
    said = f"{two_digits(bound)} ({least} to {two_digits(high)})" if math.isfinite(high) else f"at least {least}"
    return f" On average over steps {int(first):,}–{reading.step:,} it was {said}."


def _over(reading: Reading) -> str:
    first = reading.first_step
    return f"steps {first:,}–{reading.step:,}" if 0 < first < reading.step else f"the steps up to {reading.step:,}"


def _read(log: Path, errors: Console) -> Log:
    from rich.progress import BarColumn, TextColumn  # noqa: PLC0415

    from variegrad.monitor.log_file import read_log  # noqa: PLC0415 - after the options

    size = log.stat().st_size if log.is_file() else 0
    shown = TextColumn("reading {task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:>3.0f} %")
    with terminal.progress_bar(*shown, console=errors) as bar:
        task = bar.add_task(log.name, total=max(size, 1))
        return read_log(log, on_bytes=lambda done: bar.update(task, completed=done))


def _print_table(log: Path, found: Log) -> None:
    shown = found.readings[-SHOWN:]
    which = f" (the latest {len(shown)} of {found.count:,} readings)" if found.count > len(shown) else ""
    said = [reading.advice() for reading in shown]
    columns = {
        "step": [f"{r.step:,}" for r in shown],
        "B_D": [examples(r.batch_size_bound) for r in shown],
        "from": [examples(r.low) for r in shown],
        "to": [examples(r.high) for r in shown],
        "at least": ["?" if r.cannot_tell else examples(r.lower_confidence_bound) for r in shown],
        "B": [f"{r.batch_size:,}" for r in shown],
        "efficiency": [f"{one.low:.0%} – {one.high:.0%}" for one in said],
        "steps pooled": [f"{r.pooled_steps:,}" for r in shown],
        "skipped": [f"{r.skipped:,}" for r in shown],
    }
    print_columns(
        f"Batch-size bound along {log.name}{which}",
        [Column(head=head, cells=cells) for head, cells in columns.items()],
        caption="B_D (examples): estimate, interval and lower confidence bound (at least), ? if there are "
        "not enough readings yet; "
        "B: batch size; efficiency: share of the batch that is not redundant.",
    )


def _steps(count: int) -> str:
    return f"{count:,} step" + ("s" if count != 1 else "")
