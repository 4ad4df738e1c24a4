"""`variegrad bound FILE`: the data-only bounds on B_D of a data file, with intervals, time and memory."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from variegrad.cli import options
from variegrad.cli.terminal import errors, print_json, print_line

if TYPE_CHECKING:
    from variegrad.theory import GLMBound, SparseBound
    from variegrad.theory.rows import Progress


def bound(
    file: Annotated[
        str,
        typer.Argument(
            help="A LIBSVM, npy or npz file, one example per row, also compressed (.gz, .bz2, .xz, .zst, .zip); or "
            "a9a or news20."
        ),
    ],
    tolerance: Annotated[
        float,
        typer.Option(
            help="Relative width of the certified interval for σ²_max.",
            callback=options.number(above=0, below=1),
        ),
    ] = 0.01,
    passes: Annotated[
        int,
        typer.Option(
            help="Search the conflict degree of Remark 2 for at most this many passes.",
            callback=options.number(least=0),
        ),
    ] = 16,
    scratch: Annotated[
        Path | None,
        typer.Option(
            help="Folder for temporary files (12 bytes per non-zero entry of a text file).",
            callback=options.scratch_folder,
        ),
    ] = None,
    data_root: options.DataRoot = None,
    json: options.AsJson = False,
) -> None:
    """Compute a lower bound of B_D from the data alone; it holds for a linear model at any weights.

    Rows are examples. Two bounds are printed, each with an interval that contains its exact value and with the value of
    the paper's own formula: the GLM bound n/σ²_max (Remark 1, sharpened) and the sparse bound, n divided by the largest
    column count (Remark 2, sharpened).
    """
    from variegrad.data_root import SPARSE, find_file, find_sparse, root_folder  # noqa: PLC0415 - after the options
    from variegrad.theory import glm_bound, sparse_bound  # noqa: PLC0415
    from variegrad.theory.files import opened  # noqa: PLC0415

    root = root_folder(data_root)
    path = find_sparse(file, root) if file in SPARSE and not Path(file).exists() else find_file(file, root)
    start = time.perf_counter()
    with _bar() as progress, opened(path, progress=progress, scratch=scratch) as rows:
        sparse = sparse_bound(rows, paper_bound=True, passes=passes)
        glm = glm_bound(rows, tolerance=tolerance)
    seconds = time.perf_counter() - start
    if json:
        print_json(_document(path, glm, sparse, seconds))
    else:
        print_line(_in_words(path, glm, sparse, seconds), wrap=True)


@contextmanager
def _bar() -> Iterator[Progress | None]:
    """A progress bar on standard error, if it is a terminal."""
    console = errors()
    if not console.is_terminal:
        yield None
        return
    from rich import progress as bars  # noqa: PLC0415 - only on a terminal

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


def _peak_bytes() -> int | None:
    """The largest resident memory of this process so far; None if the system does not report it."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux: getrusage would count what the parent process held when it started this one
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1])  # type: ignore[index]
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _document(file: Path, glm: GLMBound, sparse: SparseBound, seconds: float) -> dict[str, Any]:
    return {
        "file": str(file),
        "bound": max(glm.bound, sparse.bound),
        "glm": asdict(glm),
        "sparse": asdict(sparse),
        "seconds": seconds,
        "peak_memory_bytes": _peak_bytes(),
    }


def _in_words(file: Path, glm: GLMBound, sparse: SparseBound, seconds: float) -> str:
    peak = _peak_bytes()
    memory = "" if peak is None else f", peak memory {peak / 1e6:,.0f} MB"
    return "\n".join(
        [
            f"{file}: {glm.rows:,} examples, {glm.columns:,} columns, {glm.nonzeros:,} non-zeros",
            "",
            f"GLM bound     {glm}",
            "",
            f"Sparse bound  {sparse}",
            "",
            f"{seconds:.1f} s, {glm.passes} passes for the GLM bound{memory}",
        ]
    )
