"""`variegrad bound FILE`: the data-only bounds on B_D of a data file, with intervals, time and memory."""

from __future__ import annotations

import json as json_format
import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich import progress as bars
from rich.console import Console

from variegrad.theory import GLMBound, SparseBound, glm_bound, sparse_bound
from variegrad.theory.files import opened
from variegrad.theory.rows import Progress


def bound(
    file: Annotated[
        Path, typer.Argument(help="A LIBSVM, npy or npz file, one example a row; .gz and .bz2 are undone.")
    ],
    tolerance: Annotated[float, typer.Option(help="Relative width of the certified interval of σ²_max.")] = 0.01,
    passes: Annotated[int, typer.Option(help="At most so many passes to search the conflict degree of Remark 2.")] = 16,
    scratch: Annotated[
        Path | None, typer.Option(help="Folder for temporary files, 12 bytes for each non-zero of a text file.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Bound the useful batch size from the data alone, for every weight vector of a linear model.

    Rows are examples. The GLM bound n/σ²_max (Remark 1, sharpened) and the sparse bound n over the largest column count
    (Remark 2, sharpened) are printed with the interval that contains the exact value and with the paper's own numbers.
    """
    start = time.perf_counter()
    with _bar() as progress, opened(file, progress=progress, scratch=scratch) as rows:
        sparse = sparse_bound(rows, paper=True, passes=passes)
        glm = glm_bound(rows, tolerance=tolerance)
    seconds = time.perf_counter() - start
    typer.echo(_as_json(file, glm, sparse, seconds) if json else _in_words(file, glm, sparse, seconds))


@contextmanager
def _bar() -> Iterator[Progress | None]:
    """A progress bar on standard error, where somebody can see it."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TaskProgressColumn(),
        bars.TimeElapsedColumn(),
    )
    with bars.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def follow(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        yield follow


def _peak_bytes() -> int:
    """The largest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux: getrusage would count what the parent process held when it started this one
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1])  # type: ignore[index]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _as_json(file: Path, glm: GLMBound, sparse: SparseBound, seconds: float) -> str:
    return json_format.dumps(
        {
            "file": str(file),
            "bound": max(glm.bound, sparse.bound),
            "glm": asdict(glm),
            "sparse": asdict(sparse),
            "seconds": seconds,
            "peak_memory_bytes": _peak_bytes(),
        },
        indent=2,
    )


def _in_words(file: Path, glm: GLMBound, sparse: SparseBound, seconds: float) -> str:
    return "\n".join(
        [
            f"{file}: {glm.rows:,} examples, {glm.columns:,} columns, {glm.nonzeros:,} non-zeros",
            "",
            f"GLM bound     {glm}",
            "",
            f"Sparse bound  {sparse}",
            "",
            f"{seconds:.1f} s, {glm.passes} passes for the GLM bound, peak memory {_peak_bytes() / 1e6:,.0f} MB",
        ]
    )
