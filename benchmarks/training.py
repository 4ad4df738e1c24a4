"""What a plain distributed step costs beside PyTorch's own DistributedDataParallel: same model, batch and moment.

    python benchmarks/training.py                # starts its own two gloo workers; prints a table

Both train in the same processes, one step of each in turn, in an order that is drawn anew for each round, so that what
else happens on the machine meets both. The ratio of medians is what counts; its interval is a bootstrap over rounds.
Stock DDP reads a batch that is ready in memory; ours draws and gathers its batch, which is part of its time.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

import variegrad as vg
from variegrad.problems.models import mlp, mnist_cnn, resnet20

MODELS = {
    "MNIST CNN": (mnist_cnn, (1, 28, 28)),
    "ResNet-20, GroupNorm": (resnet20, (3, 32, 32)),
    "MLP 784-256-10": (lambda: mlp([784, 256, 10]), (784,)),
}
CASES = [("MNIST CNN", 64), ("MNIST CNN", 256), ("ResNet-20, GroupNorm", 64), ("MLP 784-256-10", 256)]
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="of measurement for each row")
    arguments = parser.parse_args()
    if "RANK" not in os.environ:
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(arguments.workers)]
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        sys.exit(subprocess.run([sys.executable, *command, *sys.argv], env=environment, check=False).returncode)
    with vg.workers() as world:
        rows = []
        for name, batch_size in [
            ("MNIST CNN", 64),
            ("MNIST CNN", 256),
            ("ResNet-20, GroupNorm", 64),
            ("MLP 784-256-10", 256),
        ]:
            taken, parts = rounds(world, name, batch_size, arguments.seconds)
            rows.append((name, batch_size, taken, parts))
        if world.is_first:
            print(
                f"torch {torch.__version__}, {platform.platform()}, {os.cpu_count()} cores, {world.size} gloo workers\n"
            )
            print("| model | B | ours, ms | DDP, ms | ratio (95 %) | waiting, ms | rounds |")
            print("|---|---|---|---|---|---|---|")
            for name, batch_size, taken, parts in rows:
                ours, theirs = (1e3 * statistics.median(taken[kind]) for kind in ("ours", "DDP"))
                waiting = 1e3 * statistics.median(part.communication for part in parts)
                value, low, high = ratio(taken)
                print(f"| {name} | {batch_size} | {ours:.2f} | {theirs:.2f} | {value:.3f} ({low:.3f} – {high:.3f}) "
                      f"| {waiting:.2f} | {len(parts)} |")  # fmt: skip


if __name__ == "__main__":
    main()
