"""What checkpoints cost a training run of the MNIST CNN: one every 50 updates beside none, on one worker and on two.

    python benchmarks/checkpoint.py                            # everything, and a dated report
    python benchmarks/checkpoint.py --workers 2 --repeats 2 --no-report

Whole runs are commands as a user starts them, `variegrad train mnist --out …` with `--checkpoint-every 50` and without,
in turn, in an order that changes from round to round; their time includes start-up, which is the same in both, and the
final accuracy. The steps alone are blocks of 50 updates of one run, with a save at the end as the command makes it and
without, again in turn. Ratios are of medians; the quartiles are those of each round's own ratio. Files are written
where temporary files are (TMPDIR): the report says on which file system, since most of a save is waiting for the disk.
What was measured is kept in the JSON file and not repeated: run it again after an interruption, or for more rounds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
from overhead import machine

from variegrad import TrainConfig, train, workers
from variegrad.cli.train import default_step_size
from variegrad.cli.training_record import saved
from variegrad.distributed.agreement import failing_together
from variegrad.problems import load
from variegrad.training.checkpoint import lock

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
    last = sorted(path.name for path in (out / "checkpoints").glob("step-*"))[-1:]
    assert made["updates"] == UPDATES
    assert last == ([f"step-{UPDATES:09d}"] if kind == KEPT else [])
    return {"whole": seconds, "training": made["seconds"]}


def whole_pair(count, number):
    """One round: both kinds of command, in an order that changes."""
    found = {}
    for kind in (PLAIN, KEPT) if number % 2 else (KEPT, PLAIN):
        with tempfile.TemporaryDirectory() as folder:
            found[kind] = whole_run(count, kind, folder)
    return found


def blocks(repeats, out):
    """In workers: seconds of neighbouring blocks of updates, one of each pair with a save at its end."""
    with workers() as world, tempfile.TemporaryDirectory() as folder, lock(folder):
        problem = load("mnist", seed=0, max_examples=EXAMPLES)
        config = TrainConfig(batch_size=BATCH, passes=float("inf"), step_size=default_step_size(problem, BATCH))
        run = train(problem.model, problem.losses, problem.train, config, world)
        for _ in range(10):  # threads and buckets are set up
            next(run)
        pairs = []
        for number in range(repeats):
            pair = {}
            for kind in (PLAIN, KEPT) if number % 2 else (KEPT, PLAIN):
                world.barrier()
                began = time.perf_counter()
                for _ in range(EVERY):
                    step = next(run)
                made = time.perf_counter()
                if kind == KEPT:
                    with failing_together(world):
                        saved(Path(folder), step, problem, config, world)
                    pair["save"] = time.perf_counter() - made
                pair[kind] = time.perf_counter() - began
            pairs.append(pair)
        if world.is_first:
            Path(out).write_text(json.dumps(pairs))


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
        f"{host['commit']}; `{document['command']}`. MNIST CNN (1,663,370 parameters), B = {BATCH}; one worker of as "
        f"many threads as there are cores, two of one thread each; files on {document['file_system']}. Bar: {BAR}.", "",
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
    lines += ["", "| workers | a save takes, ms: median (least–most) | of 50 updates |", "|---:|---:|---:|"]
    for count, found in document["cases"].items():
        if found["blocks"]:
            took = [1e3 * pair["save"] for pair in found["blocks"]]
            share = statistics.median(took) / 1e3 / ratio(found["blocks"])[PLAIN]
            lines.append(f"| {count} | {statistics.median(took):.1f} ({min(took):.1f}–{max(took):.1f}) | {share:.2%} |")
    return "\n".join(lines) + "\n"


def write(path, text):
    """To a temporary name, then renamed."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(text)
    partial.replace(path)


def main():
    """Measure what is missing; write after every round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=6, help="rounds of whole runs; three times as many of blocks")
    parser.add_argument("--no-report", action="store_true", help="print only, and measure everything")
    parser.add_argument("--blocks", nargs=2, metavar=("REPEATS", "FILE"), help="measure blocks in this process")
    arguments = parser.parse_args()
    if arguments.blocks:
        blocks(int(arguments.blocks[0]), arguments.blocks[1])
        return
    date = datetime.now(UTC).date().isoformat()
    out = HERE / "reports" / f"checkpoint-{date}.json"
    cases = json.loads(out.read_text())["cases"] if out.exists() and not arguments.no_report else {}
    document = {
        "date": date, "machine": machine(), "file_system": file_system(), "cases": cases,
        "command": " ".join(["python benchmarks/checkpoint.py", *sys.argv[1:]]),
    }  # fmt: skip

    def keep():
        if not arguments.no_report:
            write(out, json.dumps(document, indent=1) + "\n")
            write(out.with_suffix(".md"), markdown(document))

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
