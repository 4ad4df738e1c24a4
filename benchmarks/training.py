"""What a plain distributed step costs beside PyTorch's own DistributedDataParallel: same model, batch and moment.

    python benchmarks/training.py                # starts its own two gloo workers; a dated report
    python benchmarks/training.py --seconds 3 --no-report

Both train in the same processes, one step of each in turn, in an order that is drawn anew for each round, so that what
else happens on the machine meets both. The ratio of medians is what counts; its interval is a bootstrap over rounds.
Stock DDP reads a batch that is ready in memory; ours draws and gathers its batch, which is part of its time.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from overhead import machine
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

import report
import variegrad as vg
from variegrad.problems.models import mlp, mnist_cnn, resnet20

MODELS = {
    "MLP 64-32-10": (lambda: mlp([64, 32, 10]), (64,)),
    "MLP 784-256-10": (lambda: mlp([784, 256, 10]), (784,)),
    "MNIST CNN": (mnist_cnn, (1, 28, 28)),
    "ResNet-20, GroupNorm": (resnet20, (3, 32, 32)),
}
# Model, B, and how many times the step of DDP a plain step may take.
CASES = [
    ("MLP 64-32-10", 64, 1.10),
    ("MLP 784-256-10", 256, None),
    ("MNIST CNN", 64, 1.01),
    ("MNIST CNN", 256, 1.01),
    ("ResNet-20, GroupNorm", 64, 1.01),
]
EXAMPLES = 1024


def losses(model, batch):
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def rounds(world, name, batch_size, seconds):
    """Seconds of each step of ours and of stock DDP, and of which part of ours."""
    make, shape = MODELS[name]
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(EXAMPLES, *shape, generator=generator), torch.randint(0, 10, (EXAMPLES,), generator=generator)
    config = vg.TrainConfig(batch_size=batch_size, step_size=1e-6, passes=float("inf"))
    ours = vg.train(make(), losses, TensorDataset(x, y), config, world)
    theirs = DistributedDataParallel(make())
    optimizer = torch.optim.SGD(theirs.parameters(), lr=1e-6 * batch_size)
    mine = slice(world.share(batch_size).start, world.share(batch_size).stop)

    def stock():
        optimizer.zero_grad()
        loss = cross_entropy(theirs(x[mine]), y[mine])
        loss.backward()
        optimizer.step()
        return loss.item()

    taken, parts = {"ours": [], "DDP": []}, []
    order = np.random.default_rng(0)  # the same on every worker
    for k in range(10_000):
        for kind in order.permutation(["ours", "DDP"]):
            world.barrier()
            start = time.perf_counter()
            if kind == "ours":
                parts.append(next(ours).seconds)
            else:
                stock()
            taken[kind].append(time.perf_counter() - start)
        if world.add_up([sum(map(sum, taken.values()))])[0] > seconds * world.size and k >= 15:
            break
    return {kind: times[5:] for kind, times in taken.items()}, parts[5:]  # the first rounds set buckets and threads up


def ratio(taken):
    """Ratio of medians with its 95 % bootstrap interval over rounds."""
    pairs, draw = np.array([taken["ours"], taken["DDP"]]), np.random.default_rng(1)
    ratios = []
    for _ in range(500):
        ours, theirs = np.median(pairs[:, draw.integers(0, pairs.shape[1], pairs.shape[1])], axis=1)
        ratios.append(ours / theirs)
    ratios.sort()
    return statistics.median(taken["ours"]) / statistics.median(taken["DDP"]), ratios[12], ratios[487]


def row(name, batch_size, bar, taken, parts):
    """What is kept of a case."""
    ours, theirs = (1e3 * statistics.median(taken[kind]) for kind in ("ours", "DDP"))
    value, low, high = ratio(taken)
    seconds = {k: 1e3 * statistics.median(getattr(each, k) for each in parts) for k in ("data", "communication")}
    return {
        "model": name, "batch_size": batch_size, "bar": bar, "ours_ms": ours, "ddp_ms": theirs, "ratio": value,
        "low": low, "high": high, "data_ms": seconds["data"], "waiting_ms": seconds["communication"],
        "rounds": len(parts),
    }  # fmt: skip


def markdown(document):
    """The report."""
    lines = [
        *report.first_lines("A plain step beside DistributedDataParallel", document),
        f"{document['workers']} gloo workers on this machine; medians over rounds, the ratio with its 95 % interval.",
        "`reading` is the part of ours that draws and gathers its batch; that of DDP lies ready in memory.",
        "",
        "| model | B | ours, ms | DDP, ms | ratio (95 %) | bar | reading, ms | waiting, ms | rounds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r['model']} | {r['batch_size']} | {r['ours_ms']:.2f} | {r['ddp_ms']:.2f} | {r['ratio']:.3f} "
        f"({r['low']:.3f}–{r['high']:.3f}) | {r['bar'] or ''} | {r['data_ms']:.2f} | {r['waiting_ms']:.2f} "
        f"| {r['rounds']} |"
        for r in document["rows"]
    ]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0, help="of measurement for each row")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--no-report", action="store_true", help="print only")
    arguments = parser.parse_args()
    if "RANK" not in os.environ:
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(arguments.workers)]
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        sys.exit(subprocess.run([sys.executable, *command, *sys.argv], env=environment, check=False).returncode)
    document = report.head("training", machine())
    with vg.workers() as world:
        rows = [
            row(name, batch_size, bar, *rounds(world, name, batch_size, arguments.seconds))
            for name, batch_size, bar in CASES
            if name in arguments.models
        ]
        if world.is_first:
            document |= {"workers": world.size, "rows": rows}
            print(markdown(document))
            if not arguments.no_report:
                report.write("training", document, markdown(document))


if __name__ == "__main__":
    main()
