"""What the data-only bounds cost: time beside NumPy and SciPy in the same process, memory, and growth with the file.

    python benchmarks/bounds.py                       # the full sizes: a few minutes, 4 GB of temporary files
    python benchmarks/bounds.py --rows 80000 --file-rows 20000 --tall-rows 100000

Three questions. (1) On a matrix like RCV1 (rows of log-normal length, Zipf columns with a flattened head, positive
values, rows of different norms): `sparse_bound` against one `numpy.bincount` of the column indices, `glm_bound`
against one pair X@v, X.T@u, and the memory of both beyond the matrix. (2) `conflict_degree` on that matrix and on real
text. (3) `variegrad bound` on LIBSVM files of growing length, each in a process of its own: seconds and peak memory,
and the line through them.

The report goes to benchmarks/reports/ as Markdown and JSON, dated.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from scipy.sparse import csr_matrix

from variegrad.theory import conflict_degree, glm_bound, sparse_bound

REPORTS = Path(__file__).parent / "reports"


def rcv1_like(rows: int, columns: int, nonzeros: int, seed: int = 0) -> csr_matrix:
    """Positive rows of log-normal length, `nonzeros` on average, columns by Zipf's law with a flattened head."""
    generator = np.random.default_rng(seed)
    weights = 1 / (np.arange(columns) + 30.0)
    cumulative = np.cumsum(weights / weights.sum())
    # Repeated draws of a column fall together: about a tenth of them at 73 a row.
    lengths = np.maximum(1, generator.lognormal(np.log(1.11 * nonzeros) - 0.18, 0.6, rows).astype(int))
    lengths = np.minimum(lengths, columns)
    kept, counts = [], []
    for first in range(0, rows, 50_000):
        part = lengths[first : first + 50_000]
        row = np.repeat(np.arange(len(part)), part)
        drawn = np.searchsorted(cumulative, generator.random(len(row)))
        keys = np.unique(row * columns + drawn)
        kept.append((keys % columns).astype(np.int32))
        counts.append(np.bincount(keys // columns, minlength=len(part)))
    indices = np.concatenate(kept)
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int32)
    return csr_matrix((generator.exponential(size=len(indices)) + 0.1, indices, indptr), shape=(rows, columns))


def write_libsvm(path: Path, rows: int, columns: int, nonzeros: int, seed: int = 0) -> None:
    """LIBSVM text, `nonzeros` ascending Zipf columns a row; ten thousand different rows, again and again."""
    generator = np.random.default_rng(seed)
    tokens = [f"{column + 1}:{value:.6f}" for column, value in enumerate(generator.random(columns) + 0.1)]
    cumulative = np.cumsum(1 / (np.arange(columns) + 30.0))
    cumulative /= cumulative[-1]
    lines = []
    for drawn in np.searchsorted(cumulative, generator.random((min(rows, 10_000), 2 * nonzeros))):
        chosen = np.sort(generator.permutation(np.unique(drawn))[:nonzeros])
        lines.append("1 " + " ".join([tokens[column] for column in chosen.tolist()]) + "\n")
    with path.open("w") as file:
        for first in range(0, rows, len(lines)):
            file.writelines(lines[: rows - first])


def best_of(repeats: int, call: Callable[[], Any]) -> tuple[float, Any]:
    """The shortest of several times, in seconds, and the last result."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return min(times), result


def extra_memory(call: Callable[[], Any]) -> int:
    """The most bytes that Python and NumPy held at once for a call, what was there before not counted."""
    tracemalloc.start()
    call()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def in_memory(rows: int, columns: int, nonzeros: int, repeats: int) -> dict[str, Any]:
    """Questions 1 and 2 on the synthetic matrix."""
    X = rcv1_like(rows, columns, nonzeros)
    size = X.data.nbytes + X.indices.nbytes + X.indptr.nbytes
    generator = np.random.default_rng(1)
    v, u = generator.random(columns), generator.random(rows)
    sparse_extra = extra_memory(lambda: sparse_bound(X))
    glm_extra = extra_memory(lambda: glm_bound(X))
    bincount, _ = best_of(repeats, lambda: np.bincount(X.indices, minlength=columns))
    pair, _ = best_of(repeats, lambda: (X @ v, X.T @ u))
    sparse_seconds, sparse = best_of(repeats, lambda: sparse_bound(X))
    glm_seconds, glm = best_of(repeats, lambda: glm_bound(X))
    alone_seconds, _ = best_of(repeats, lambda: glm_bound(X, paper_bound=False, centring=False))
    conflict_seconds, degree = best_of(1, lambda: conflict_degree(X))
    return {
        "shape": X.shape,
        "nonzeros": int(X.nnz),
        "matrix_bytes": size,
        "bincount_seconds": bincount,
        "pair_seconds": pair,
        "sparse_seconds": sparse_seconds,
        "sparse_over_bincount": sparse_seconds / bincount,
        "sparse_extra_over_matrix": sparse_extra / size,
        "sparse_bound": sparse.bound,
        "glm_seconds": glm_seconds,
        "glm_over_pair": glm_seconds / pair,
        "glm_alone_over_pair": alone_seconds / pair,
        "glm_extra_over_matrix": glm_extra / size,
        "glm_interval": [glm.low, glm.high],
        "glm_width": glm.high / glm.low - 1,
        "glm_certificate": glm.certificate,
        "conflict_seconds": conflict_seconds,
        "conflict_degree": degree,
    }


def real_text(folder: str | None) -> dict[str, Any] | None:
    """Question 2 on news20, where it is at hand."""
    path = Path(folder or "") / "sparse" / "news20_tfidf.svm.gz"
    if not folder or not path.is_file():
        return None
    seconds, degree = best_of(1, lambda: conflict_degree(path))
    return {"conflict_seconds": seconds, "conflict_degree": degree}


def on_disk(largest: int, tall: int, columns: int, nonzeros: int) -> dict[str, Any]:
    """Question 3: files of growing length, then one of very many short rows, each read by a fresh process."""
    shapes = [(rows, nonzeros) for rows in (largest // 8, largest // 4, largest // 2, largest)]
    series = [_one_file(rows, columns, length) for rows, length in [*shapes, (tall, max(1, nonzeros // 20))]]
    speeds = sorted(1e6 * p["seconds"] / p["nonzeros"] for p in series[:-1])
    slope, intercept = np.polyfit([p["rows"] for p in series], [p["peak_bytes"] for p in series], 1)
    fitted = [intercept + slope * p["rows"] for p in series]
    return {
        "series": series,
        "seconds_per_million_nonzeros": [speeds[0], speeds[-1]],
        "bytes_per_row": slope,
        "largest_residual": max(abs(p["peak_bytes"] / fit - 1) for p, fit in zip(series, fitted, strict=True)),
    }


def _one_file(rows: int, columns: int, nonzeros: int) -> dict[str, Any]:
    command = "import typer; from variegrad.cli.bound import bound; typer.run(bound)"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.svm"
        write_libsvm(path, rows, columns, nonzeros)
        run = subprocess.run(
            [sys.executable, "-c", command, str(path), "--json"], check=True, capture_output=True, text=True
        )
        size = path.stat().st_size
    found = json.loads(run.stdout)
    seconds, peak = found["seconds"], found["peak_memory_bytes"]
    print(f"  {rows:,} rows of {nonzeros}: {seconds:.1f} s, {peak / 1e6:.0f} MB", flush=True)
    return {
        "rows": rows,
        "file_bytes": size,
        "nonzeros": found["glm"]["nonzeros"],
        "seconds": seconds,
        "peak_bytes": peak,
    }


def as_markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    matrix, disk = report["in_memory"], report["on_disk"]
    lines = [
        f"# Data-only bounds, {report['date']}",
        "",
        f"{report['machine']}; Python {report['python']}, NumPy {report['numpy']}, SciPy {report['scipy']}; "
        f"OMP_NUM_THREADS={report['threads']}. Made by `{report['command']}`.",
        "",
        f"Synthetic matrix, {matrix['shape'][0]:,} × {matrix['shape'][1]:,}, {matrix['nonzeros']:,} non-zeros "
        f"({matrix['matrix_bytes'] / 1e6:,.0f} MB), rows of different norms. Best of {report['repeats']} runs.",
        "",
        "| | found | bar |",
        "|---|---|---|",
        f"| `numpy.bincount` of the column indices | {matrix['bincount_seconds']:.3f} s | |",
        f"| one pair `X@v`, `X.T@u` by SciPy | {matrix['pair_seconds']:.3f} s | |",
        f"| `sparse_bound` / bincount | {matrix['sparse_over_bincount']:.2f} | ≤ 2 |",
        f"| `glm_bound` / pair, with Remark 1's number and the estimate for centred columns | "
        f"{matrix['glm_over_pair']:.1f} | ≤ 25 |",
        f"| `glm_bound` / pair, the certified bound alone | {matrix['glm_alone_over_pair']:.1f} | ≤ 25 |",
        f"| width of its interval | {100 * matrix['glm_width']:.2f} % | ≤ 1 % |",
        f"| memory beyond the matrix, `sparse_bound` | {matrix['sparse_extra_over_matrix']:.3f} × matrix | ≤ 1.5 |",
        f"| memory beyond the matrix, `glm_bound` | {matrix['glm_extra_over_matrix']:.3f} × matrix | ≤ 1.5 |",
        f"| `conflict_degree`, exact ({matrix['conflict_degree']:,}) | {matrix['conflict_seconds']:.1f} s | ≤ 60 s |",
    ]
    if report["real_text"]:
        text = report["real_text"]
        lines.append(
            f"| `conflict_degree` of news20, reading included ({text['conflict_degree']:,}) | "
            f"{text['conflict_seconds']:.1f} s | ≤ 60 s |"
        )
    lines += [
        "",
        "`variegrad bound FILE` on LIBSVM text, a fresh process each:",
        "",
        "| rows | non-zeros | file | seconds | peak memory |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {p['rows']:,} | {p['nonzeros']:,} | {p['file_bytes'] / 1e6:,.0f} MB | {p['seconds']:.1f} | "
        f"{p['peak_bytes'] / 1e6:,.0f} MB |"
        for p in disk["series"]
    ]
    lines += [
        "",
        "Memory depends on the number of rows, not of non-zeros, so the last row stands for files of any row length "
        f"(bar: 2 GB): {disk['bytes_per_row']:.0f} bytes a row, all points within "
        f"{100 * disk['largest_residual']:.0f} % of the line. Time for a million non-zeros: "
        f"{disk['seconds_per_million_nonzeros'][0]:.2f} to {disk['seconds_per_million_nonzeros'][1]:.2f} s, most of it "
        "reading text once.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Answer the three questions, print the page and file it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=800_000)
    parser.add_argument("--columns", type=int, default=47_000)
    parser.add_argument("--nonzeros", type=int, default=73, help="of a row, on average")
    parser.add_argument("--file-rows", type=int, default=1_000_000, help="of the longest file")
    parser.add_argument("--tall-rows", type=int, default=10_000_000, help="of the file of many short rows")
    parser.add_argument("--file-nonzeros", type=int, default=100, help="of a row of the files")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", default=os.environ.get("VARIEGRAD_DATA"), help="folder of sparse/news20_tfidf.svm.gz")
    parser.add_argument("--out", type=Path, default=REPORTS)
    settings = parser.parse_args()
    report = {
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "command": " ".join(["python", "benchmarks/bounds.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "repeats": settings.repeats,
        "in_memory": in_memory(settings.rows, settings.columns, settings.nonzeros, settings.repeats),
        "real_text": real_text(settings.data),
        "on_disk": on_disk(settings.file_rows, settings.tall_rows, settings.columns, settings.file_nonzeros),
    }
    page = as_markdown(report)
    print(page)
    settings.out.mkdir(parents=True, exist_ok=True)
    for suffix, content in ((".json", json.dumps(report, indent=2)), (".md", page)):
        path = settings.out / f"bounds-{report['date']}{suffix}"
        draft = path.with_suffix(suffix + ".part")
        draft.write_text(content)
        draft.replace(path)


if __name__ == "__main__":
    main()
