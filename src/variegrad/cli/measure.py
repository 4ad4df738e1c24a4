"""`variegrad measure`: the main job. Train a problem plainly and say, along the run, how large its batch may be."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from variegrad.along import Point, measure_along
from variegrad.cli.document import document
from variegrad.cli.mechanisms import parse_mechanism
from variegrad.cli.table import table
from variegrad.mechanisms import Mechanism
from variegrad.problems import load
from variegrad.problems.subset import size
from variegrad.reports import write_report


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run was asked to do."""

    passes: float
    points: int
    batch_size: int
    step_size: float
    seed: int
    mechanisms: Sequence[Mechanism]
    data_root: str | None
    max_examples: int | None


def measure(
    problem: Annotated[
        str,
        typer.Argument(help="A built-in problem (variegrad list), a LIBSVM file, or package.module:function."),
    ] = "digits",
    passes: Annotated[float, typer.Option(help="How long to train, in passes over the training set.")] = 10,
    points: Annotated[int, typer.Option(help="How many exact measurements along the run, denser early.")] = 12,
    batch_size: Annotated[
        int | None, typer.Option(help="B of the training run, in examples. Default: 64, or all where there are fewer.")
    ] = None,
    step_size: Annotated[
        float | None,
        typer.Option(
            help="γ of the SUMMED gradient (learning rate of the mean, divided by B). Default: the problem's."
        ),
    ] = None,
    mechanism: Annotated[
        list[str] | None,
        typer.Option(
            help="Show the bound with this mechanism: dropconnect:P, langevin:SIGMA, quantize. May be repeated."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the starting weights and of the order of the data.")] = 0,
    data_root: Annotated[
        str | None, typer.Option(help="Where data files are. Default: VARIEGRAD_DATA, else ~/.cache/variegrad.")
    ] = None,
    max_examples: Annotated[int | None, typer.Option(help="Use so many training examples at most.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write report.html, pictures and measure.json into this folder.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    """Train a problem by plain mini-batch SGD and measure its gradient diversity exactly along the run.

    Of a batch of B examples the fraction 1/(1 + (B−1)/B_D) counts: at B = 1 + B_D half of them are wasted.
    Ctrl-C keeps what was measured.

    Examples: `variegrad measure digits --report runs/digits`,
    `variegrad measure mnist --data-root data --max-examples 2000 --mechanism dropconnect:0.4`
    """
    mechanisms = [parse_mechanism(text) for text in mechanism or ["dropconnect:0.4", "dropconnect:0.5"]]
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1 example; got {batch_size}.")
    if report is not None and not (standing := next(p for p in (report, *report.parents) if p.exists())).is_dir():
        raise ValueError(f"--report {report}: {standing} is a file; name a folder.")
    errors = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    with errors.status(escape(f"reading {problem} …")):
        loaded = load(problem, seed=seed, data_root=data_root, max_examples=max_examples)
    count = size(loaded.train)
    if batch_size is not None and batch_size > count:
        raise ValueError(
            f"--batch-size must be at most the number of examples, each of which is drawn once a pass; "
            f"got {batch_size} for {count:,} examples."
        )
    settings = Settings(
        passes=passes, points=points, seed=seed, mechanisms=mechanisms, data_root=data_root,
        batch_size=max(1, min(64, count)) if batch_size is None else batch_size,
        max_examples=max_examples, step_size=loaded.step_size if step_size is None else step_size,
    )  # fmt: skip
    started, began = datetime.now(UTC), time.perf_counter()
    found: list[Point] = []
    interrupted = False
    failure: Exception | None = None
    with Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(), console=errors, transient=True, disable=not errors.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task(f"{loaded.name}: measuring at the start", total=None)

        def show(done: int, of: int) -> None:
            bar.update(task, completed=done, total=of)

        try:
            for point in measure_along(
                loaded, passes=settings.passes, points=settings.points, batch_size=settings.batch_size,
                step_size=settings.step_size, mechanisms=mechanisms, seed=seed, on_update=show,
            ):  # fmt: skip
                found.append(point)
                said = f"{loaded.name}: B_D {point.diversity.batch_size_bound:.4g} at pass {point.passes:.3g}"
                bar.update(task, description=said)
                if not errors.is_terminal:  # a log file shows no bar
                    errors.print(f"{said} (measurement {len(found)} of {points})")
        except KeyboardInterrupt:
            interrupted = True
        except Exception as error:  # the user's code runs here: what was measured is kept, whatever it raises
            if not found:
                raise
            failure = error
    made = document(
        loaded, settings, found, command=_command(), started=started, seconds=time.perf_counter() - began,
        interrupted=interrupted or failure is not None,
    )  # fmt: skip
    _print(made, found, mechanisms, json_)
    if report is not None and found:
        page = write_report(made, report)
        (errors if json_ else Console(markup=False, highlight=False, soft_wrap=True)).print(f"report: {page}")
    if failure is not None:
        raise ValueError(f"stopped after {len(found)} of {points} measurements: {failure}") from failure
    if interrupted:
        errors.print(f"variegrad: interrupted after {len(found)} of {points} measurements")
        raise typer.Exit(130)


def _print(made: dict[str, Any], found: list[Point], mechanisms: Sequence[Mechanism], as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(made, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
        return
    if found:
        # A pipe has no width of its own: keep the columns whole there.
        console = Console() if sys.stdout.isatty() else Console(width=120)
        console.print(table(made["problem"]["name"], found, mechanisms))
        console.print(made["advice"], soft_wrap=True, highlight=False)


def _command() -> str:
    return shlex.join(["variegrad", *sys.argv[1:]])
