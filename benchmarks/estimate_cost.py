"""Time of `estimate` in training steps and its memory beyond one: an MLP of 3 M weights, 128 examples.

python benchmarks/estimate_cost.py
"""

import resource
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

import variegrad as vg

ROUNDS = 5


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(500, 2000), nn.ReLU(), nn.Linear(2000, 1000), nn.ReLU(), nn.Linear(1000, 10))
    return model, (torch.randn(128, 500), torch.randint(0, 10, (128,)))


def losses(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def step(model, batch):
    model.zero_grad()
    losses(model, batch).sum().backward()


def peak(what: str) -> int:
    """MB that the process grows by beyond its imports."""
    found = subprocess.run([sys.executable, __file__, what], capture_output=True, text=True, check=True)
    return int(found.stdout)


def seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    alone = peak("step")  # first: a child begins with the peak of its parent
    more, most = peak("estimate") - alone, peak("preconditioned") - alone
    print(f"memory beyond a step: {more} MB, with a preconditioner {most} MB")
    model, batch = problem()
    second = {p: torch.rand_like(p) for p in model.parameters()}
    step(model, batch)
    plain = statistics.median(seconds(lambda: step(model, batch)) for _ in range(5))
    first = seconds(lambda: vg.estimate(model, losses, batch)) / plain
    ratios = {"estimate": [], "estimate with a preconditioner": []}
    for _ in range(ROUNDS):
        plain = seconds(lambda: step(model, batch))
        ratios["estimate"].append(seconds(lambda: vg.estimate(model, losses, batch)) / plain)
        preconditioned = seconds(lambda: vg.estimate(model, losses, batch, preconditioner=second))
        ratios["estimate with a preconditioner"].append(preconditioned / plain)
    print(f"first call: {first:.1f} training steps")
    for name, values in ratios.items():
        print(f"{name}: {statistics.median(values):.1f} training steps ({min(values):.1f} to {max(values):.1f})")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
        sys.exit()
    trained, examples = problem()
    moments = {p: torch.rand_like(p) for p in trained.parameters()} if sys.argv[1] == "preconditioned" else None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.argv[1] == "step":
        step(trained, examples)
    else:
        vg.estimate(trained, losses, examples, preconditioner=moments)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
