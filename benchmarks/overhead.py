"""What per-example gradient norms cost beside an ordinary step, and beside public libraries, in one run.

    make bench                                   # everything: its own environment, a dated report
    python benchmarks/overhead.py --models mlp --repeats 5 --no-report

Times are interleaved (plain, ours, peer, peer, plain, …) so that a drift of the machine's speed touches all alike;
ratios are medians over repeats of each round's ratio to that round's plain step. A step is the forward pass, the
backward pass and dropping the gradients, without an optimizer. Peak memory is the growth of the resident set above the
built model and batch, each in a fresh process; the first step, in which the
engine learns, is given apart. Norms of peers are checked against the loop: a fast wrong number is marked wrong.
"""

import argparse
import gc
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch
from models import MODELS

from variegrad.keys import balanced_signs
from variegrad.per_example import fallback
from variegrad.per_example.engine import Engine
from variegrad.per_example.evaluate import evaluate, trained_parameters
from variegrad.per_example.norms import batch_norms

HERE = Path(__file__).parent
SUBSET = range(16)


def plain(model, losses, batch):
    """The ordinary step."""

    def step():
        losses(model, batch).sum().backward()
        model.zero_grad(set_to_none=True)

    return step


def ours(model, losses, batch):
    """Exact norms of all examples, and the summed gradient."""
    engine = Engine()

    def step():
        return sum(batch_norms(model, losses, batch, engine=engine).sq_norms.values())

    return step


def ours_subset(model, losses, batch):
    """Exact norms of 16 examples, and the summed gradient of all."""
    engine = Engine()

    def step():
        return sum(batch_norms(model, losses, batch, engine=engine, examples=SUBSET).sq_norms.values())

    return step


def ours_sign_probe(model, losses, batch):
    """One balanced sign probe beside the summed gradient."""
    parameters = list(trained_parameters(model).values())

    def step():
        per_example = evaluate(model, losses, batch)
        signs = balanced_signs(len(per_example), 0).to(per_example)
        probed = torch.autograd.grad([per_example], parameters, [signs], retain_graph=True)
        whole = torch.autograd.grad([per_example], parameters, [torch.ones_like(per_example)])
        return sum(float(g.square().sum()) for g in probed) + sum(float(g.square().sum()) for g in whole)

    return step


def torch_func(model, losses, batch):
    """vmap(grad) over all parameters, gradients formed."""
    parameters = trained_parameters(model)

    def step():
        ((rows, _),) = fallback.vectorized(model, losses, batch, parameters, chunk=10**9)
        total = {name: r.sum(0) for name, r in rows.items()}
        return sum(r.flatten(1).square().sum(1) for r in rows.values()) if total else None

    return step


def opacus_hooks(model, losses, batch):
    """Opacus' module hooks, gradients formed."""
    from opacus.grad_sample import GradSampleModule

    wrapped = GradSampleModule(model, loss_reduction="sum")

    def step():
        losses(wrapped, batch).sum().backward()
        norms = sum(p.grad_sample.flatten(1).square().sum(1) for p in wrapped.parameters())
        for p in wrapped.parameters():
            p.grad = p.grad_sample = None
        return norms

    return step


def opacus_ghost(model, losses, batch):
    """Opacus' ghost norms."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    wrapped = GradSampleModuleFastGradientClipping(
        model, loss_reduction="sum", max_grad_norm=1.0, use_ghost_clipping=True
    )

    def step():
        losses(wrapped, batch).sum().backward()
        norms = wrapped.get_norm_sample().square()
        for p in wrapped.parameters():
            p.grad = None
        return norms

    return step


def backpack(model, losses, batch):
    """BackPACK's BatchL2Grad."""
    from backpack import backpack as extensions
    from backpack import extend
    from backpack.extensions import BatchL2Grad

    extend(model, use_converter=False)

    def step():
        total = losses(model, batch).sum()
        with extensions(BatchL2Grad()):
            total.backward()
        norms = sum(p.batch_l2 for p in model.parameters())
        for p in model.parameters():
            p.grad = None
            del p.batch_l2
        return norms

    return step


METHODS = {
    "plain": plain,
    "variegrad exact": ours,
    "variegrad subset of 16": ours_subset,
    "variegrad sign probe": ours_sign_probe,
    "torch.func": torch_func,
    "Opacus hooks": opacus_hooks,
    "Opacus ghost": opacus_ghost,
    "BackPACK BatchL2Grad": backpack,
}
EXACT = [name for name in METHODS if name not in ("plain", "variegrad subset of 16", "variegrad sign probe")]


def build(model_name, method):
    """A method's step on its own copy of a model, tried once.

    Returns:
        The step, and None or why it cannot be had.
    """
    torch.manual_seed(0)
    model, losses, batch = MODELS[model_name]()
    try:
        step = METHODS[method](model, losses, batch)
        found = step()
    except Exception as error:  # a peer may fail in any way: say so and go on
        return None, f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    if method in EXACT:
        torch.manual_seed(0)
        model, losses, batch = MODELS[model_name]()
        parameters = trained_parameters(model)
        gradient = fallback.one_gradient(losses(model, batch), 3, parameters)
        truth = sum(float(g.double().square().sum()) for g in gradient.values())
        if abs(float(found[3]) - truth) > 1e-3 * truth:
            return step, f"WRONG: {float(found[3]):.4g} where the loop has {truth:.4g}"
    return step, None


def times(model_name, methods, repeats):
    """Interleaved timings of one model.

    Returns:
        method → {"milliseconds", "ratio", "low", "high", "note"}.
    """
    steps, notes = {}, {}
    for method in methods:
        step, notes[method] = build(model_name, method)
        if step is not None:
            steps[method] = step
    for step in steps.values():
        for _ in range(2):
            step()
    measured = {method: [] for method in steps}
    inner = 1
    start = time.perf_counter()
    steps["plain"]()
    if time.perf_counter() - start < 0.005:
        inner = 20  # a step below the clock's and the scheduler's grain
    for _ in range(repeats):
        for method, step in steps.items():
            gc.collect(0)
            start = time.perf_counter()
            for _ in range(inner):
                step()
            measured[method].append((time.perf_counter() - start) / inner)
    table = {}
    for method in methods:
        if method not in measured:
            table[method] = {"note": notes[method]}
            continue
        ratios = sorted(a / b for a, b in zip(measured[method], measured["plain"], strict=True))
        table[method] = {
            "milliseconds": 1e3 * statistics.median(measured[method]),
            "ratio": statistics.median(ratios),
            "low": ratios[len(ratios) // 4],
            "high": ratios[-1 - len(ratios) // 4],
            "note": notes[method],
        }
    return table


def peak_memory(model_name, method):
    """The growth of the resident set above the built model and batch, in MB, in this (fresh) process.

    Returns:
        That of the first step, with all that is learnt in it, and that of the steps after it.
    """
    torch.manual_seed(0)
    model, losses, batch = MODELS[model_name]()
    # Code and the libraries' working space are loaded first, on a model of no size.
    tiny = METHODS[method](torch.nn.Linear(8, 10), losses_of_tiny, (torch.randn(32, 8), torch.arange(32) % 10))
    for _ in range(2):
        tiny()
    x = torch.randn(512, 512)
    torch.autograd.grad((x.requires_grad_() @ x).sum(), x)
    process = psutil.Process()
    before = process.memory_info().rss
    step = METHODS[method](model, losses, batch)
    grown = []
    for rounds in (1, 4):
        Path("/proc/self/clear_refs").write_text("5")  # reset the high-water mark
        for _ in range(rounds):
            step()
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        grown.append((int(peak.split()[1]) * 1024 - before) / 1e6)
    return grown


def losses_of_tiny(model, batch):
    """Cross entropy, one value for each example."""
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def memory(model_name, method):
    """`peak_memory` in a fresh process.

    Returns:
        Megabytes of the first step and of later ones, or None where the method fails.
    """
    command = [sys.executable, __file__, "--memory", model_name, method]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 and done.stdout.strip() else None


def whole_pass(repeats):
    """`measure` over a data set beside a forward and backward pass over it, each at its best batch size.

    Returns:
        model → {"ratio", "measure", "plain"} (seconds).
    """
    from torch.utils.data import TensorDataset

    from variegrad import measure

    results = {}
    for model_name in ("mnist-cnn", "mlp"):
        torch.manual_seed(0)
        model, losses, (x, y) = MODELS[model_name]()
        data = TensorDataset(x.repeat(8, *(1,) * (x.dim() - 1)), y.repeat(8))

        def plainly(size, model=model, losses=losses, data=data):
            for start in range(0, len(data), size):
                losses(model, tuple(c[start : start + size] for c in data.tensors)).sum().backward()
                model.zero_grad(set_to_none=True)

        def measured(size, model=model, losses=losses, data=data):
            measure(model, losses, data, batch_size=size)

        best = {}
        for name, way in (("plain", plainly), ("measure", measured)):
            seconds = {}
            for size in (64, 128, 256):
                way(size)
                rounds = []
                for _ in range(max(2, repeats // 4)):
                    start = time.perf_counter()
                    way(size)
                    rounds.append(time.perf_counter() - start)
                seconds[size] = statistics.median(rounds)
            best[name] = min(seconds.values())
        results[model_name] = {**best, "ratio": best["measure"] / best["plain"]}
    return results


def machine():
    """What the numbers were made on."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    versions = {}
    for package in ("variegrad", "torch", "opacus", "backpack-for-pytorch"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=HERE
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit.stdout.strip(),
    }


def geometric_mean(values):
    """Exp of the mean logarithm."""
    return math.exp(statistics.fmean(math.log(v) for v in values))


def markdown(document):
    """The report's tables."""
    methods = [m for m in METHODS if m != "plain"]
    found, room = document["times"], document["memory"]
    lines = [
        f"# Cost of per-example gradient norms, {document['date']}",
        "",
        f"{document['machine']['cpu']}, {document['machine']['cores']} cores, {document['machine']['threads']} threads; "  # noqa: E501
        + ", ".join(f"{k} {v}" for k, v in document["machine"]["versions"].items())
        + f"; Python {document['machine']['python']}; commit {document['machine']['commit']}; "
        f"`{document['command']}`; {document['repeats']} interleaved repeats.",
        "",
        "## Time: median ratio to the plain step (quartiles)",
        "",
        "| model | plain, ms | " + " | ".join(methods) + " |",
        "|---|---:|" + "---:|" * len(methods),
    ]
    for name, table in found.items():
        cells = [f"{table['plain']['milliseconds']:.3g}"]
        for method in methods:
            entry = table.get(method, {})
            if "ratio" not in entry:
                cells.append(f"no: {entry.get('note', 'not run')}".replace("|", "/"))
            else:
                text = f"{entry['ratio']:.2f} ({entry['low']:.2f}–{entry['high']:.2f})"
                cells.append(text + (f" {entry['note']}" if entry["note"] else ""))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    slow = [n for n, t in found.items() if t["plain"]["milliseconds"] > 5]
    for method in ("variegrad exact", "variegrad subset of 16"):
        if slow and all("ratio" in found[n].get(method, {}) for n in slow):
            mean = geometric_mean([found[n][method]["ratio"] for n in slow])
            lines += [
                "",
                f"{method}: geometric mean over the {len(slow)} models whose step is above 5 ms: **{mean:.3f}**.",
            ]
    for name, table in found.items():
        if name not in slow and "milliseconds" in table.get("variegrad exact", {}):
            more = table["variegrad exact"]["milliseconds"] - table["plain"]["milliseconds"]
            lines += ["", f"{name} (a step below 5 ms): exact norms take **{more:.2f} ms more** than the plain step."]
    if room:
        lines += [
            "",
            "## Peak memory above the built model, MB (ratio to the plain step; and that of the first step alone)",
            "",
        ]
        lines += ["| model | plain | " + " | ".join(methods) + " |", "|---|---:|" + "---:|" * len(methods)]
        for name, table in room.items():
            first, later = table["plain"]
            cells = [f"{later:.0f}"]
            for m in methods:
                if not table.get(m) or later < 1:
                    cells.append(f"{table[m][1]:.1f}" if table.get(m) else "–")
                else:
                    cells.append(f"{table[m][1]:.0f} ({table[m][1] / later:.2f}); first {table[m][0] / first:.2f}")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if document["whole_pass"]:
        lines += [
            "",
            "## A whole exact pass (`measure`) beside a forward and backward pass, each at its best batch size",
            "",
        ]
        lines += ["| model | plain, s | measure, s | ratio |", "|---|---:|---:|---:|"]
        for name, entry in document["whole_pass"].items():
            lines.append(f"| {name} | {entry['plain']:.2f} | {entry['measure']:.2f} | {entry['ratio']:.2f} |")
    return "\n".join(lines) + "\n"


def main():
    """Run, print, and write the dated report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--no-memory", action="store_true", help="leave the fresh processes out")
    parser.add_argument("--no-report", action="store_true", help="print only")
    parser.add_argument("--memory", nargs=2, metavar=("MODEL", "METHOD"), help="print the peak memory of one method")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if arguments.memory:
        print(json.dumps(peak_memory(*arguments.memory)))
        return
    methods = ["plain", *(m for m in arguments.methods if m != "plain")]
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": "python benchmarks/overhead.py " + " ".join(sys.argv[1:]),
        "repeats": arguments.repeats,
        "machine": machine(),
        "times": {},
        "memory": {},
        "whole_pass": {},
    }
    for name in arguments.models:
        document["times"][name] = times(name, methods, arguments.repeats)
        print(name, {m: round(e.get("ratio", math.nan), 3) for m, e in document["times"][name].items()}, flush=True)
        if not arguments.no_memory:
            document["memory"][name] = {m: memory(name, m) for m in methods}
            print(
                "  MB", {m: v and [round(part) for part in v] for m, v in document["memory"][name].items()}, flush=True
            )
    document["whole_pass"] = whole_pass(arguments.repeats)
    print(markdown(document))
    if not arguments.no_report:
        stem = HERE / "reports" / f"overhead-{document['date']}"
        for suffix, text in ((".json", json.dumps(document, indent=1) + "\n"), (".md", markdown(document))):
            partial = stem.with_suffix(suffix + ".partial")
            partial.write_text(text)
            partial.replace(stem.with_suffix(suffix))
        print(f"report: {stem}.md")


if __name__ == "__main__":
    main()
