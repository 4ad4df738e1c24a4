"""What a `Monitor` costs a training loop: time, memory, and, under two workers, messages and bytes.

    python benchmarks/monitor.py                      # everything, and a dated report
    python benchmarks/monitor.py --models mlp --no-memory --no-workers --no-report

Times are interleaved in one run: blocks of steps (forward, backward, SGD step) with and without a monitor, one of
them watched, over two copies of a model; ratios are medians over rounds of the ratio of neighbouring blocks. Blocks
of the small model have 16 steps. A step of more than 5 ms has nothing to lose between two watched ones: blocks have two
steps there, and what the watched one costs is spread over 16. The latest reading is looked at once per block and within
its time, as a log would. Under two workers, where blocks drift apart, the kinds take turns step by step, and ratios
are those of the sums over a block. Peak memory is the growth of the resident set above the built model and
batch, each in a fresh process, after the first watched step; freed tensors go back to the system at once
(MALLOC_MMAP_THRESHOLD_), so that it is what is alive, and not how the allocator happened to keep it. Parts that were
measured are kept in the JSON file and not repeated: run it again after an interruption.
"""

import argparse
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path

import psutil
import torch
from models import MODELS
from overhead import geometric_mean, losses_of_tiny, machine

from variegrad import Monitor

HERE = Path(__file__).parent
EVERY = 16


def loop(model, losses, batch, monitor):
    """One step of a loop."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step():
        per_example = losses(model, batch)
        if monitor is not None:
            monitor.watch(per_example)
        per_example.mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def build(model_name, *, watched, every=EVERY):
    """A step on a fresh model, and its monitor."""
    torch.manual_seed(0)
    model, losses, batch = MODELS[model_name]()
    monitor = Monitor(model, every=every, warm_up=0) if watched else None
    return loop(model, losses, batch, monitor), monitor


def block_of(model_name):
    """Steps of a block: 16 of the small model, otherwise two."""
    return EVERY if model_name == "logistic" else 2


def spread(ratio, steps):
    """The ratio of 16 steps, one of them watched, from that of a block."""
    return 1 + (ratio - 1) * steps / EVERY


def times(model_name, seconds):
    """Ratio of a monitored block of 16 steps to the one beside it without."""
    steps = block_of(model_name)
    plain, _ = build(model_name, watched=False)
    watched, monitor = build(model_name, watched=True, every=steps)

    def block(step, look):
        gc.collect(0)
        start = time.perf_counter()
        for _ in range(steps):
            step()
        between = time.perf_counter()
        assert not look or monitor.latest.batch_size_bound
        return between - start, time.perf_counter() - start

    for _ in range(3):
        block(watched, True), block(plain, False)  # learns
    ratios, unseen, plain_seconds, begun = [], [], [], time.perf_counter()
    while time.perf_counter() - begun < seconds or len(ratios) < 4:
        if len(ratios) % 2:
            b, a = block(watched, True), block(plain, False)
        else:
            a, b = block(plain, False), block(watched, True)
        ratios.append(spread(b[1] / a[1], steps))
        unseen.append(spread(b[0] / a[0], steps))
        plain_seconds.append(a[1] / steps)
    ratios.sort()
    return {
        "milliseconds": 1e3 * statistics.median(plain_seconds), "ratio": statistics.median(ratios),
        "low": ratios[len(ratios) // 4], "high": ratios[-1 - len(ratios) // 4], "blocks": len(ratios),
        "not_looked_at": statistics.median(unseen),
        "source": monitor.latest.source,
    }  # fmt: skip


def peak_memory(model_name, watched):
    """MB above the built model and batch, in this process: of the first two readings, and of later ones."""
    tiny = torch.nn.Linear(8, 10)
    monitor = Monitor(tiny, every=1) if watched else None
    step = loop(tiny, losses_of_tiny, (torch.randn(32, 8), torch.arange(32) % 10), monitor)
    for _ in range(3):
        step()
    torch.manual_seed(0)
    model, losses, batch = MODELS[model_name]()
    before = psutil.Process().memory_info().rss
    step = loop(model, losses, batch, Monitor(model, every=2, warm_up=0) if watched else None)
    grown = []
    for rounds in (3, 8):
        Path("/proc/self/clear_refs").write_text("5")  # reset the high-water mark
        for _ in range(rounds):
            step()
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        grown.append((int(peak.split()[1]) * 1024 - before) / 1e6)
    return grown


def memory(model_name):
    """Ratios of peak memory, from fresh processes."""
    found = {}
    for kind in ("plain", "watched"):
        command = [sys.executable, __file__, "--memory-of", model_name, kind]
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        found[kind] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "ratio": found["watched"][1] / found["plain"][1], "first": found["watched"][0] / found["plain"][0]}


def worker(model_name, seconds):
    """One of two ranks: steps with and without take turns; messages and bytes counted."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=os.environ["MEET"], rank=rank, world_size=2)
    sent = {"messages": 0, "bytes": 0}
    original = dist.all_reduce

    def counting(tensor, *args, **kwargs):
        sent["messages"] += 1
        sent["bytes"] += tensor.numel() * tensor.element_size()
        return original(tensor, *args, **kwargs)

    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    dist.all_reduce = default_hooks.dist.all_reduce = counting
    steps, counts, every = {}, {}, block_of(model_name)
    for kind in ("stock", "counted", "watched"):
        torch.manual_seed(0)
        model, losses, batch = MODELS[model_name]()
        ddp = DistributedDataParallel(model)
        monitor = None
        if kind == "counted":  # the same average, through a hook that can be counted
            ddp.register_comm_hook(None, default_hooks.allreduce_hook)
        if kind == "watched":
            monitor = Monitor(ddp, every=every, warm_up=0)
        steps[kind] = loop(ddp, losses, batch, monitor)

    def rounds():
        seconds_of = dict.fromkeys(steps, 0.0)
        counts.update((kind, {"messages": 0, "bytes": 0}) for kind in steps)
        for number in range(every):
            kinds = list(steps)
            for kind in kinds[number % 3 :] + kinds[: number % 3]:
                dist.barrier()
                sent.update(messages=0, bytes=0)
                start = time.perf_counter()
                steps[kind]()
                dist.barrier()
                seconds_of[kind] += time.perf_counter() - start
                counts[kind] = {what: counts[kind][what] + sent[what] for what in sent}
        return seconds_of["stock"], seconds_of["counted"], seconds_of["watched"]

    for _ in range(3):
        rounds()  # learns
    ratios, against_hook, begun = [], [], time.perf_counter()
    go_on = torch.ones(1)
    while go_on.item():
        a, c, b = rounds()
        ratios.append(spread(b / a, every))
        against_hook.append(spread(b / c, every))
        go_on[0] = float(time.perf_counter() - begun < seconds or len(ratios) < 4)
        dist.broadcast(go_on, 0)
    ratios.sort()
    if rank == 0:
        print(
            json.dumps(
                {
                    "ratio": statistics.median(ratios),
                    "low": ratios[len(ratios) // 4],
                    "high": ratios[-1 - len(ratios) // 4],
                    "against_a_hook": statistics.median(against_hook),
                    "blocks": len(ratios),
                    "messages": counts["watched"]["messages"] - counts["counted"]["messages"],
                    "bytes_per_step": (counts["watched"]["bytes"] - counts["counted"]["bytes"]) / EVERY,
                    "messages_per_step": counts["counted"]["messages"] / every,
                }
            )
        )
    dist.barrier()
    dist.destroy_process_group()


def two_workers(model_name, seconds):
    """Both ranks of `worker`."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MEET": f"file://{folder}/meet"}
        command = [sys.executable, __file__, "--worker-of", model_name, str(seconds)]
        ranks = [
            subprocess.Popen(command, env={**environment, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
            for rank in range(2)
        ]
        said = [rank.communicate()[0] for rank in ranks]
    return json.loads(said[0].splitlines()[-1])


def markdown(document):
    """The report."""
    about = document["machine"]
    lines = [
        f"# Cost of a Monitor with every={EVERY}, {document['date']}", "",
        f"{about['cores']} CPU cores, {about['threads']} threads; variegrad {about['versions']['variegrad']}, "
        f"torch {about['versions']['torch']}; Python {about['python']}; commit {about['commit']}; "
        f"`{document['command']}`.", "",
        "## Time: median ratio of 16 steps, one of them watched, to 16 without (quartiles)", "",
        "| model | plain step, ms | ratio | blocks | not looked at | source |", "|---|---:|---:|---:|---:|---|",
    ]  # fmt: skip
    for name, e in document["times"].items():
        lines.append(
            f"| {name} | {e['milliseconds']:.3g} | {e['ratio']:.4f} ({e['low']:.4f}–{e['high']:.4f}) | {e['blocks']} | "
            f"{e.get('not_looked_at', math.nan):.4f} | {e['source']} |"
        )
    ratios = [e["ratio"] for e in document["times"].values()]
    if ratios:
        lines += [
            "",
            f"Geometric mean over {len(ratios)} models: **{geometric_mean(ratios):.4f}**, largest {max(ratios):.4f}.",
        ]
    lines += [
        "",
        "## Peak memory above the built model, MB",
        "",
        "| model | plain | watched | ratio | of the first readings |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, e in document["memory"].items():
        lines.append(f"| {name} | {e['plain'][1]:.1f} | {e['watched'][1]:.1f} | {e['ratio']:.3f} | {e['first']:.3f} |")
    lines += [
        "",
        "## Two workers (gloo, one thread each)",
        "",
        "| model | time against stock | against an all-reduce hook | messages more | bytes more per step |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, e in document["workers"].items():
        lines.append(
            f"| {name} | {e['ratio']:.4f} ({e['low']:.4f}–{e['high']:.4f}) | {e['against_a_hook']:.4f} | "
            f"{e['messages']} | {e['bytes_per_step']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def write(path, text):
    """To a temporary name, then renamed."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(text)
    partial.replace(path)


def main():
    """Measure what is missing, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--seconds", type=float, default=8, help="for each model and part")
    parser.add_argument("--no-times", action="store_true")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--no-workers", action="store_true")
    parser.add_argument("--no-report", action="store_true")
    parser.add_argument("--again", action="store_true", help="measure again what today's report has already")
    parser.add_argument("--memory-of", nargs=2, metavar=("MODEL", "KIND"))
    parser.add_argument("--worker-of", nargs=2, metavar=("MODEL", "SECONDS"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if arguments.memory_of:
        print(json.dumps(peak_memory(arguments.memory_of[0], arguments.memory_of[1] == "watched")))
        return
    if arguments.worker_of:
        worker(arguments.worker_of[0], float(arguments.worker_of[1]))
        return
    date = datetime.now(UTC).date().isoformat()
    path = HERE / "reports" / f"monitor-{date}.json"
    document = {
        "date": date, "machine": machine(), "command": " ".join(["python benchmarks/monitor.py", *sys.argv[1:]]),
        "times": {}, "memory": {}, "workers": {},
    }  # fmt: skip
    if path.exists() and not arguments.no_report:
        document |= {part: json.loads(path.read_text())[part] for part in ("times", "memory", "workers")}
    for name in arguments.models:
        for part, way, skip in (
            ("times", lambda n: times(n, arguments.seconds), arguments.no_times),
            ("memory", memory, arguments.no_memory),
            ("workers", lambda n: two_workers(n, arguments.seconds), arguments.no_workers),
        ):
            if skip or (name in document[part] and not arguments.again):
                continue
            document[part][name] = way(name)
            shown = {
                k: round(v, 4) for k, v in document[part][name].items() if isinstance(v, float) and math.isfinite(v)
            }
            print(name, part, shown, flush=True)
            if not arguments.no_report:
                write(path, json.dumps(document, indent=1) + "\n")
                write(path.with_suffix(".md"), markdown(document))
    print(markdown(document))


if __name__ == "__main__":
    main()
