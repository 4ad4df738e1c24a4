"""What checkpoints cost a training run of the MNIST CNN: one every 50 updates beside none, on one worker and on two.

    python benchmarks/checkpoint.py                            # everything, and a dated report
    python benchmarks/checkpoint.py --workers 2 --repeats 2 --no-report

Whole runs are commands as a user starts them, `variegrad train mnist --out …` with `--checkpoint-every 50` and
without, in turn, in an order that changes from round to round; their time includes start-up, which is the same in
both, and the final accuracy. The steps alone are blocks of 50 updates of one run, one of each pair while a checkpoint
is written in the thread beside, again in turn. Memory is that of a process with a model of 200 MB. Ratios are of
medians; the quartiles are those of each round's own ratio. Files are written where temporary files are (TMPDIR): the
report says on which file system, since most of a save is waiting for the disk. What was measured is kept in the JSON
file and not repeated: run it again after an interruption, or for more rounds.

Two more bars: a run of two workers at a time limit of 60 s whose saves take 75 s each (9 GB at 120 MB/s; the disk is a
sleep), and 1,000 parts of the order of 10⁹ shuffled examples.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

import psutil
import torch
from overhead import machine

from variegrad import TrainConfig, train, workers
from variegrad.cli.train import default_step_size
from variegrad.files import write_whole
from variegrad.problems import load
from variegrad.training import Cadence, Epochs
from variegrad.training.checkpoint import Progress, Run, save
from variegrad.training.checkpoint.tensors import snapshot

HERE = Path(__file__).parent
EVERY = 50  # updates
UPDATES = 300
BATCH, EXAMPLES = 64, 2000
BAR = 1.03
PLAIN, KEPT = "without", "with"


def file_system():
    """What kind holds temporary files."""
    at = Path(tempfile.gettempdir()).resolve()
    holding = [p for p in psutil.disk_partitions(all=True) if at.is_relative_to(p.mountpoint)]
    return max(holding, key=lambda p: len(p.mountpoint)).fstype


def python(count):
    """How a program is started on so many workers."""
    if count == 1:
        return [sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]


def whole_run(count, kind, folder):
    """Seconds of one command from its start to its end, and of its training alone, by its own record."""
    out = Path(folder) / "run"
    command = [
        *python(count), "-m", "variegrad", "train", "mnist", "--batch-size", str(BATCH), "--evaluate-every", "1e9",
        "--max-examples", str(EXAMPLES), "--passes", str(UPDATES * BATCH / EXAMPLES), "--out", str(out),
        *(["--checkpoint-every", str(EVERY)] if kind == KEPT else []),
    ]  # fmt: skip
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    made = json.loads((out / "train.json").read_text())
    kept = len(list((out / "checkpoints").glob("step-*")))
    assert made["updates"] == UPDATES
    assert kept == (3 if kind == KEPT else 1)  # a run always keeps its last
    return {"whole": seconds, "training": made["seconds"]}


def whole_pair(count, number):
    """One round: both kinds of command, in an order that changes."""
    found = {}
    for kind in (PLAIN, KEPT) if number % 2 else (KEPT, PLAIN):
        with tempfile.TemporaryDirectory() as folder:
            found[kind] = whole_run(count, kind, folder)
    return found


def blocks(repeats, out):
    """In workers: seconds of neighbouring blocks of updates, one of each pair beside the save that began with it.

    `wait` is how long training waited for the copy, `save` how long until the checkpoint was on the disk.
    """
    problem = load("mnist", seed=0, max_examples=EXAMPLES)
    config = TrainConfig(batch_size=BATCH, passes=float("inf"), step_size=default_step_size(problem, BATCH))
    with workers() as world, tempfile.TemporaryDirectory() as folder, Run(folder, problem.model, config, world) as kept:
        run = kept.of(train(problem.model, problem.losses, problem.train, config, world))
        for _ in range(10):  # threads and buckets are set up
            next(run)
        pairs = []
        for number in range(repeats):
            pair = {}
            for kind in (PLAIN, KEPT) if number % 2 else (KEPT, PLAIN):
                world.barrier()
                began = time.perf_counter()
                if kind == KEPT:
                    kept.keep_now()
                    pair["wait"] = time.perf_counter() - began
                for _ in range(EVERY):
                    next(run)
                pair[kind] = time.perf_counter() - began
                if kind == KEPT:
                    world.barrier()
                    kept.finish()
                    pair["save"] = kept.took
            pairs.append(pair)
        if world.is_first:
            Path(out).write_text(json.dumps(pairs))


def memory(megabytes=200):
    """In a process of its own: how far memory rises above the model's while a checkpoint of it is kept, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--memory-of", str(megabytes), folder]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def memory_of(megabytes, folder):
    """Peak resident memory (VmHWM, reset just before) over what the process held."""
    model = torch.nn.ParameterList([torch.ones(10**6 * megabytes // 40) for _ in range(10)])
    held = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")
    snapshot_of_it = snapshot(dict(model.state_dict()))
    save(folder, 1, snapshot_of_it, Progress(samples_seen=1, workers=1, batch_size=1, seed=0))
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"model": megabytes, "rise": round((int(peak.split()[1]) * 1024 - held) / 1e6, 1)}))


def slow_disk(seconds=75.0, limit=60.0):
    """Two workers, a save of which takes longer than the time limit: whether the run lives, and what is kept of it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*python(2), __file__, "--slow-disk", str(seconds), str(limit), folder]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        kept = sorted(int(step.name.removeprefix("step-")) for step in Path(folder).glob("checkpoints/step-*"))
        return {
            "save": seconds, "limit": limit, "code": done.returncode, "kept": kept,
            "took": round(time.perf_counter() - began), "said": done.stderr.count("is alive: waiting continues"),
        }  # fmt: skip


def slow_disk_run(seconds, limit, folder):
    """In workers: ten updates; a checkpoint is due after five of them, another at the end."""
    tensors = import_module("variegrad.training.checkpoint.tensors")
    write = tensors.write

    def slow(file, arrays):
        time.sleep(seconds)
        return write(file, arrays)

    tensors.write = slow
    problem = load("digits", seed=0)
    config = TrainConfig(batch_size=BATCH, passes=float("inf"), step_size=default_step_size(problem, BATCH))
    with (
        workers(timeout=limit) as world,
        Run(folder, problem.model, config, world, every=Cadence(updates=5)) as kept,
    ):
        for update in kept.of(train(problem.model, problem.losses, problem.train, config, world)):
            if update.updates == 10:
                break


def shuffling(count=10**9, parts=1000):
    """Seconds and megabytes for parts of one pass's order, 1,000 places each."""
    Epochs().samples(0, range(1000), count)
    held, began = psutil.Process().memory_info().rss, time.perf_counter()
    for part in range(parts):
        Epochs().samples(0, range(part * (count // parts), part * (count // parts) + 1000), count)
    seconds = time.perf_counter() - began
    rise = (psutil.Process().memory_info().rss - held) / 1e6
    return {"count": count, "parts": parts, "first": seconds / parts, "all": seconds, "rise": round(max(0.0, rise), 1)}


def block_pairs(count, repeats):
    """`blocks` in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pairs.json"
        subprocess.run([*python(count), __file__, "--blocks", str(repeats), str(out)], check=True, capture_output=True)
        return json.loads(out.read_text())


def ratio(pairs, part=None):
    """Medians, their ratio, and the quartiles of the ratios of rounds."""
    seconds = {kind: [pair[kind] if part is None else pair[kind][part] for pair in pairs] for kind in (PLAIN, KEPT)}
    plain, kept = (statistics.median(seconds[kind]) for kind in (PLAIN, KEPT))
    each = sorted(b / a for a, b in zip(seconds[PLAIN], seconds[KEPT], strict=True))
    return {
        PLAIN: plain, KEPT: kept, "ratio": kept / plain, "low": each[len(each) // 4], "high": each[-1 - len(each) // 4],
        "rounds": len(pairs),
    }  # fmt: skip


def markdown(document):
    """The report's tables."""
    host = document["machine"]
    lines = [
        f"# Cost of a checkpoint every {EVERY} updates, {document['date']}", "",
        f"{host['cpu']}, {host['cores']} cores; torch {host['versions']['torch']}; Python {host['python']}; commit "
        f"{host['commit']}; load {document['load']} before; `{document['command']}`. "
        f"MNIST CNN (1,663,370 parameters), B = {BATCH}; one worker of as many threads as there are cores, two of one "
        f"thread each; files on {document['file_system']}. Bar: {BAR}.", "",
        "| workers | what is timed | without, s | with, s | ratio of medians (quartiles of rounds) | rounds |",
        "|---:|---|---:|---:|---:|---:|",
    ]  # fmt: skip
    named = {"whole": f"the whole command, {UPDATES} updates", "training": "its training, by its own record"}
    for count, found in document["cases"].items():
        rows = [(said, ratio(found["runs"], part)) for part, said in named.items() if found["runs"]]
        if found["blocks"]:
            rows.append((f"{EVERY} updates, the steps alone", ratio(found["blocks"])))
        lines += [
            f"| {count} | {said} | {row[PLAIN]:.2f} | {row[KEPT]:.2f} | "
            f"**{row['ratio']:.3f}** ({row['low']:.3f}–{row['high']:.3f}) | {row['rounds']} |"
            for said, row in rows
        ]
    lines += [
        "",
        "| workers | training waits, ms: median (least–most) | on the disk after, ms | waiting, of 50 updates |",
        "|---:|---:|---:|---:|",
    ]
    for count, found in document["cases"].items():
        if found["blocks"]:
            took = [1e3 * pair["wait"] for pair in found["blocks"]]
            disk = statistics.median(1e3 * pair["save"] for pair in found["blocks"])
            share = statistics.median(took) / 1e3 / ratio(found["blocks"])[PLAIN]
            middle = f"{statistics.median(took):.1f} ({min(took):.1f}–{max(took):.1f})"
            lines.append(f"| {count} | {middle} | {disk:.0f} | {share:.2%} |")
    if "memory" in document:
        kept = document["memory"]
        lines += [
            "",
            f"A checkpoint of a model of {kept['model']} MB raises the process's memory by {kept['rise']} MB.",
        ]
    if "slow disk" in document:
        slow = document["slow disk"]
        outcome = "the run lives" if slow["code"] == 0 else f"THE RUN ENDED with exit code {slow['code']}"
        lines += [
            "",
            f"Two workers, saves of {slow['save']:g} s each, time limit {slow['limit']:g} s: {outcome}; checkpoints of "
            f"updates {', '.join(map(str, slow['kept']))} after {slow['took']} s.",
        ]
    if "shuffling" in document:
        order = document["shuffling"]
        lines += [
            "",
            f"Shuffling {order['count']:,} examples: {1e3 * order['first']:.2f} ms per 1,000 places of the order, "
            f"{order['all']:.2f} s for {order['parts']:,} such parts; memory rises by {order['rise']} MB.",
        ]
    return "\n".join(lines) + "\n"


def main():
    """Measure what is missing; write after every round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=6, help="rounds of whole runs; three times as many of blocks")
    parser.add_argument("--no-report", action="store_true", help="print only, and measure everything")
    parser.add_argument("--blocks", nargs=2, metavar=("REPEATS", "FILE"), help="measure blocks in this process")
    parser.add_argument("--memory-of", nargs=2, metavar=("MB", "FOLDER"), help="measure memory in this process")
    parser.add_argument(
        "--slow-disk", nargs=3, metavar=("SECONDS", "LIMIT", "FOLDER"), help="a run on a slow disk in this process"
    )
    arguments = parser.parse_args()
    if arguments.slow_disk:
        slow_disk_run(float(arguments.slow_disk[0]), float(arguments.slow_disk[1]), arguments.slow_disk[2])
        return
    if arguments.memory_of:
        memory_of(int(arguments.memory_of[0]), arguments.memory_of[1])
        return
    if arguments.blocks:
        blocks(int(arguments.blocks[0]), arguments.blocks[1])
        return
    date = datetime.now(UTC).date().isoformat()
    out = HERE / "reports" / f"checkpoint-{date}.json"
    cases = json.loads(out.read_text())["cases"] if out.exists() and not arguments.no_report else {}
    document = {
        "date": date, "machine": machine(), "file_system": file_system(), "cases": cases,
        "load": round(os.getloadavg()[0], 1),
        "command": " ".join(["python benchmarks/checkpoint.py", *sys.argv[1:]]),
    }  # fmt: skip

    document |= {"memory": memory(), "shuffling": shuffling(), "slow disk": slow_disk()}

    def keep():
        if not arguments.no_report:
            write_whole(out, json.dumps(document, indent=1) + "\n")
            write_whole(out.with_suffix(".md"), markdown(document))

    for count in arguments.workers:
        found = cases.setdefault(str(count), {"blocks": [], "runs": []})
        while (missing := 3 * arguments.repeats - len(found["blocks"])) > 0:
            found["blocks"] += block_pairs(count, min(missing, 6))
            keep()
        while len(found["runs"]) < arguments.repeats:
            found["runs"].append(whole_pair(count, len(found["runs"])))
            keep()
    keep()
    print(markdown(document))


if __name__ == "__main__":
    main()
