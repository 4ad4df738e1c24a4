"""What mechanisms cost beside an ordinary step, in one run, and the memory they take, each in a fresh process.

    python benchmarks/mechanisms.py                       # a dated report beside the others
    python benchmarks/mechanisms.py --repeats 5 --no-report

A step is the forward pass, the backward pass with the mechanism and dropping the gradients, without an optimizer. Times
are interleaved; a ratio is the median over rounds of a round's ratio to its own plain step. Peak memory is the growth
of the resident set above the built model and batch over four steps; two first ones, in which the engine learns (its
first visit takes more: see the overhead report), come before, and what they left unused is given back.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import math
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import psutil
import torch
from models import MODELS
from overhead import losses_of_tiny, machine

import report
from variegrad import DropConnect, Langevin, MomentMatched, Quantize, backward
from variegrad.mechanisms import masks

METHODS = {
    "plain": {},
    "Langevin, per example": {"mechanism": Langevin(0.01)},
    "DropConnect, per example, exact": {"mechanism": DropConnect(0.4)},
    "DropConnect, per example, exact, numpy only": {"mechanism": DropConnect(0.4)},
    "Quantize, per example, exact": {"mechanism": Quantize()},
    "DropConnect, per worker": {"mechanism": DropConnect(0.4), "granularity": "worker"},
    "DropConnect, moment-matched (approximate)": {"mechanism": MomentMatched(DropConnect(0.4))},
}
# Above the plain step: time, and peak memory where it was set.
BARS = {
    "Langevin, per example": (1.05, None),
    "DropConnect, per example, exact": (1.5, 1.3),
    "DropConnect, per example, exact, numpy only": (2.2, 1.3),
    "Quantize, per example, exact": (1.6, 1.3),
    "DropConnect, per worker": (1.15, None),
    "DropConnect, moment-matched (approximate)": (1.8, None),
}
SIZES = (64, 128, 256)
MEASURED = ["plain", *(method for method, (_, room) in BARS.items() if room is not None)]


def load_numba():
    """Numba asks for a module `coverage`, which is not the benchmark of that name beside this file."""
    folder = sys.path.pop(0)
    with contextlib.suppress(ImportError):
        import numba  # noqa: F401
    sys.path.insert(0, folder)


def build(model_name, size=None):
    """A model, its losses and a batch, of another size on request.

    Returns:
        The three.
    """
    torch.manual_seed(0)
    model, losses, batch = MODELS[model_name]()
    if size is not None:
        batch = tuple(t[torch.arange(size) % len(t)] for t in batch)
    return model, losses, batch


def stepper(method, model, losses, batch):
    """One step of a method, a function of its number."""
    settings, fast = METHODS[method], masks.WORTH_COMPILING

    def plain(number):  # noqa: ARG001
        losses(model, batch).sum().backward()
        model.zero_grad(set_to_none=True)

    def drawn(number):
        masks.WORTH_COMPILING = math.inf if "numpy only" in method else fast
        backward(model, losses, batch, samples_seen=number * len(batch[0]), **settings)
        model.zero_grad(set_to_none=True)
        masks.WORTH_COMPILING = fast

    return drawn if settings else plain


def times(model_name, repeats):
    """Interleaved timings of one model.

    Returns:
        method → {"milliseconds", "ratio", "low", "high"}.
    """
    steps = {method: stepper(method, *build(model_name)) for method in METHODS}
    for step in steps.values():
        for number in range(2):
            step(number)
    measured = {method: [] for method in METHODS}
    for number in range(repeats):
        for method, step in steps.items():
            gc.collect(0)
            start = time.perf_counter()
            step(number)
            measured[method].append(time.perf_counter() - start)
    table = {}
    for method, seconds in measured.items():
        ratios = sorted(a / b for a, b in zip(seconds, measured["plain"], strict=True))
        table[method] = {
            "milliseconds": 1e3 * statistics.median(seconds),
            "ratio": statistics.median(ratios),
            "low": ratios[len(ratios) // 4],
            "high": ratios[-1 - len(ratios) // 4],
        }
    return table


def peak_memory(model_name, method, size):
    """The growth of the resident set above the built model and batch, in MB, in this (fresh) process."""
    tiny = stepper(method, torch.nn.Linear(8, 10), losses_of_tiny, (torch.randn(32, 8), torch.arange(32) % 10))
    for number in range(2):  # code and the libraries' working space
        tiny(number)
    x = torch.randn(512, 512, requires_grad=True)
    torch.autograd.grad((x @ x).sum(), x)
    model, losses, batch = build(model_name, size)
    before = psutil.Process().memory_info().rss
    step = stepper(method, model, losses, batch)
    for number in range(2):
        step(number)
    # What the first steps, in which the engine learns, left unused goes back to the system; then a new high-water mark.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    for number in range(4):
        step(number)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return (int(peak.split()[1]) * 1024 - before) / 1e6


def memory(model_name, method, size):
    """`peak_memory` in a fresh process.

    Returns:
        Megabytes.
    """
    command = [sys.executable, __file__, "--memory", model_name, method, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def markdown(document):
    """The report's tables."""
    lines = [*report.first_lines("Cost of mechanisms", document), f"{document['repeats']} rounds.", ""]
    for name, table in document["times"].items():
        lines += [
            f"## {name}: {table['plain']['milliseconds']:.1f} ms a plain step",
            "",
            "| | ms | ratio to the plain step (quartiles) | bar |",
            "|---|---:|---:|---:|",
        ]
        for method, entry in table.items():
            bar = f"{BARS[method][0]:.2f}" if method in BARS else ""
            ratio = f"{entry['ratio']:.2f} ({entry['low']:.2f}–{entry['high']:.2f})"
            lines.append(f"| {method} | {entry['milliseconds']:.1f} | {ratio} | {bar} |")
        lines.append("")
    for name, table in document["memory"].items():
        lines += [
            f"## {name}: peak memory above the built model, MB (ratio to the plain step)",
            "",
            "| | " + " | ".join(f"b = {size}" for size in SIZES) + " | bar at 128 |",
            "|---|" + "---:|" * (len(SIZES) + 1),
        ]
        for method, sizes in table.items():
            bar = BARS.get(method, (None, None))[1]
            cells = [f"{sizes[str(s)]:.0f} ({sizes[str(s)] / table['plain'][str(s)]:.2f})" for s in SIZES]
            lines.append(f"| {method} | " + " | ".join(cells) + f" | {bar or ''} |")
        lines.append("")
    return "\n".join(lines)


def main():
    """Run, print, and write the dated report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["mnist-cnn"], choices=list(MODELS))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--no-memory", action="store_true", help="leave the fresh processes out")
    parser.add_argument("--no-report", action="store_true", help="print only")
    parser.add_argument("--memory", nargs=3, metavar=("MODEL", "METHOD", "SIZE"), help="print one peak")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    load_numba()
    if arguments.memory:
        model_name, method, size = arguments.memory
        print(json.dumps(peak_memory(model_name, method, int(size))))
        return
    document = report.head("mechanisms", machine()) | {
        "repeats": arguments.repeats,
        "times": {name: times(name, arguments.repeats) for name in arguments.models},
        "memory": {},
    }
    if not arguments.no_memory:
        document["memory"] = {
            name: {method: {str(size): memory(name, method, size) for size in SIZES} for method in MEASURED}
            for name in arguments.models
        }
    print(markdown(document))
    if not arguments.no_report:
        report.write("mechanisms", document, markdown(document))


if __name__ == "__main__":
    main()
