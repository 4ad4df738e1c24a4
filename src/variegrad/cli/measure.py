"""`variegrad measure`: train a problem by plain SGD and measure along the run how large its batch may be."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from variegrad.cli import options
from variegrad.cli.terminal import errors, output, print_json, print_line, progress_bar

if TYPE_CHECKING:
    from variegrad.along import Point
    from variegrad.mechanisms import Mechanism

RESULTS = ("measure.json", "report.html")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run was asked to do."""

    passes: float
    points: int
    batch_size: int
    step_size: float
    seed: int
    mechanisms: Sequence[Any]
    data_root: str | None
    max_examples: int | None
    weights: str | None = None


def measure(
    problem: options.Problem = "digits",
    passes: Annotated[
        float,
        typer.Option(help="Length of the run, in passes over the training set.", callback=options.number(least=0)),
    ] = 10,
    points: Annotated[
        int,
        typer.Option(
            help="Number of exact measurements along the run, denser early.",
            callback=options.number(least=1, most=100_000),
        ),
    ] = 12,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Batch size B of the run, in examples. Default: 64, or all examples if there are fewer.",
            callback=options.number(least=1),
        ),
    ] = None,
    step_size: options.StepSize = None,
    learning_rate: options.LearningRate = None,
    mechanism: Annotated[
        list[str] | None,
        typer.Option(
            help="Also show the bound with this mechanism: dropconnect:P, langevin:SIGMA or quantize. May be repeated.",
            metavar="<mechanism>",
        ),
    ] = None,
    weights: options.Weights = None,
    seed: options.Seed = 0,
    data_root: options.DataRoot = None,
    max_examples: options.MaxExamples = None,
    report: options.Report = None,
    overwrite: options.Overwrite = False,
    json_: options.AsJson = False,
) -> None:
    """Train a problem by plain mini-batch SGD and measure the batch-size bound B_D exactly along the run.

    B_D is 1 + the simple gradient noise scale. A batch of B examples has the efficiency 1/(1 + (B−1)/B_D): at B = 1 +
    B_D, half of its examples are redundant. Ctrl-C keeps the results so far.
    """
    options.refuse_used("--report", report, RESULTS, overwrite)
    options.step_size_of(step_size, learning_rate, 1)
    console = errors()
    with console.status(f"reading {problem} …"):
        # Imported after the options are checked, so that a mistake is answered at once.
        from variegrad.along import measure_along  # noqa: PLC0415
        from variegrad.cli.document import document  # noqa: PLC0415
        from variegrad.cli.mechanisms import parse_mechanism  # noqa: PLC0415

        mechanisms = [parse_mechanism(text) for text in mechanism or ["dropconnect:0.4", "dropconnect:0.5"]]
        loaded = options.loaded(problem, seed, data_root, max_examples, weights)
    batch = _batch_size(batch_size, len(loaded.train))  # type: ignore[arg-type]
    step = options.step_size_of(step_size, learning_rate, batch)
    settings = Settings(
        passes=passes, points=points, seed=seed, mechanisms=mechanisms, data_root=data_root, batch_size=batch,
        max_examples=max_examples, step_size=loaded.step_size if step is None else step,
        weights=None if weights is None else str(weights),
    )  # fmt: skip
    started, began = datetime.now(UTC), time.perf_counter()
    found: list[Point] = []
    interrupted = False
    failure: Exception | None = None
    with _bar(console) as bar:
        task = bar.add_task(f"{loaded.name}: measuring at the start", total=None)

        def show(done: int, of: int) -> None:
            bar.update(task, completed=done, total=of)

        try:
            for point in measure_along(
                loaded, passes=settings.passes, points=settings.points, batch_size=settings.batch_size,
                step_size=settings.step_size, mechanisms=mechanisms, seed=seed, on_update=show,
            ):  # fmt: skip
                found.append(point)
                said = f"{loaded.name}: B_D {point.diversity.batch_size_bound:.3g} at pass {point.passes:.3g}"
                bar.update(task, description=said)
                if not console.is_terminal:  # a log file shows no bar
                    console.print(f"{said} (measurement {len(found)} of {points})")
        except KeyboardInterrupt:
            interrupted = True
        except Exception as error:  # the user's code runs here: what was measured is kept, whatever it raises
            if not found:
                raise
            failure = error
    made = document(
        loaded, settings, found, command=shlex.join(["variegrad", *sys.argv[1:]]), started=started,
        seconds=time.perf_counter() - began, interrupted=interrupted or failure is not None,
    )  # fmt: skip
    page = None
    if report is not None and found:  # written before anything is printed: a closed pipe loses nothing
        from variegrad.reports import write_report  # noqa: PLC0415 - matplotlib takes a second to import

        page = write_report(made, report)
    _print(made, found, mechanisms, json_)
    if page is not None:
        print_line(f"report: {page}", console if json_ else output())
    if failure is not None:
        raise ValueError(f"stopped after {len(found)} of {points} measurements: {failure}") from failure
    if interrupted:
        console.print(f"variegrad: interrupted after {len(found)} of {points} measurements")
        raise typer.Exit(130)


def _batch_size(asked: int | None, count: int) -> int:
    if asked is not None and asked > count:
        raise ValueError(
            f"--batch-size must be at most the number of examples, each of which is drawn once per pass; "
            f"got {asked} for {count:,} examples."
        )
    return max(1, min(64, count)) if asked is None else asked


def _bar(console: Any) -> Any:
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    shown = TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:>3.0f} %")
    return progress_bar(*shown, TimeRemainingColumn(), console=console)


def _print(made: dict[str, Any], found: list[Point], mechanisms: Sequence[Mechanism], as_json: bool) -> None:
    if as_json:
        print_json(made)
    elif found:
        from variegrad.cli.table import print_table  # noqa: PLC0415

        print_table(made["problem"]["name"], found, mechanisms)
        print_line(made["advice"], wrap=True)
