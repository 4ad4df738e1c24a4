"""`variegrad report DIR`: one page of all experiments whose runs are in a folder, redrawn from their records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from variegrad.cli import options
from variegrad.cli.terminal import print_line

if TYPE_CHECKING:
    from variegrad.experiments.run_folder import Run
    from variegrad.reports.results import Result


EARLIER = (
    "These records, findings and this picture are of an earlier version of the experiment, which ran in another way. "
    "Run it again to replace them."
)


def report(
    folder: Annotated[
        Path,
        typer.Argument(
            help="A folder written by `variegrad experiment`, or one that contains several.",
            callback=options.existing_folder,
        ),
    ],
) -> None:
    """Draw the figures and one HTML page of all results in a folder; nothing is computed again."""
    from variegrad.experiments.run_folder import open_run, runs_below  # noqa: PLC0415 - after the options

    page = write_page([(place, open_run(place)) for place in runs_below(folder)], folder)
    print_line(f"report: {page}")


def write_page(runs: Sequence[tuple[Path, Run]], folder: Path) -> Path:
    """Write the page of some runs.

    Args:
        runs: each with its folder.
        folder: where the page goes.

    Returns:
        The path of the page.
    """
    from variegrad.reports.results import write_results  # noqa: PLC0415 - matplotlib takes a second to import

    return write_results([_result(place, run) for place, run in runs], folder)


def _result(place: Path, run: Run) -> Result:
    from variegrad.reports.results import Result  # noqa: PLC0415

    return Result(
        name=run.name,
        title=run.experiment.title,
        claim=run.experiment.claim,
        choices=EARLIER if run.outdated else run.experiment.choices,
        data=run.data,
        findings=[(finding.claim, finding.found, finding.verdict) for finding in run.findings],
        facts={
            "profile": run.profile,
            "command": run.command,
            "computing time": f"{run.seconds / 60:.1f} minutes, the sum over {len(run.records):,} cells",
            **run.settings,
        },
        figure=run.figure,
        folder=place,
    )
