"""`variegrad report DIR`: one page of all experiments whose runs stand in a folder, redrawn from their records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from variegrad.experiments.run_folder import Run, open_run, runs_below
from variegrad.reports.results import Result, write_results


def report(
    folder: Annotated[Path, typer.Argument(help="A run of `variegrad experiment`, or a folder of several.")],
) -> None:
    """Draw the pictures and one self-contained HTML page of all results in a folder; nothing is computed again."""
    page = write_page([(place, open_run(place)) for place in runs_below(folder)], folder)
    Console(markup=False, highlight=False, soft_wrap=True).print(f"report: {page}")


def write_page(runs: Sequence[tuple[Path, Run]], folder: Path) -> Path:
    """Write the page of some runs.

    Args:
        runs: each with its folder.
        folder: where the page goes.

    Returns:
        The path of the page.
    """
    return write_results([_result(place, run) for place, run in runs], folder)


def _result(place: Path, run: Run) -> Result:
    return Result(
        name=run.experiment.name,
        title=run.experiment.title,
        claim=run.experiment.claim,
        choices=run.experiment.choices,
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
