"""Figure 2a's grid as stacks, against the same cells one after the other: python benchmarks/stacked.py [--passes 1]

A slice of the grid: one seed, the ends of r, both batch sizes, all step sizes, with and without DropConnect. The runs
one after the other use the same code, a stack of one each. Prints seconds and the ratio. Needs CIFAR-10 under
VARIEGRAD_DATA; digits otherwise.
"""

import argparse
import time

import torch

from variegrad.experiments import data
from variegrad.experiments.figure_2a import EXPERIMENT
from variegrad.experiments.sweep import _grouped


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--passes", type=float, default=1.0)
    passes = parser.parse_args().passes
    torch.set_num_threads(1)
    whole = {**EXPERIMENT.profiles["small"], "seeds": 1, "seed_offset": 0, "replications": [1, 128], "passes": passes}
    settings, about = data.settled({**whole, "points": max(1, round(2 * passes))})
    print(about)
    groups = _grouped(EXPERIMENT, EXPERIMENT.cells(settings, {}))
    EXPERIMENT.run(groups[0][:1])  # the data are read before the clock starts
    together = alone = 0.0
    for group in groups:
        began = time.process_time()
        stacked = EXPERIMENT.run(group)
        middle = time.process_time()
        single = [EXPERIMENT.run([cell])[0] for cell in group]
        end = time.process_time()
        together, alone = together + middle - began, alone + end - middle
        # Beyond the stable step sizes a run amplifies every rounding; its loss there is above that of the start.
        worst = max(
            abs(a["losses"][-1] / b["losses"][-1] - 1)
            for a, b in zip(stacked, single, strict=True)
            if b["online_loss"] < b["losses"][0]
        )
        name = f"r = {group[0]['r']:3d}, B = {group[0]['batch_size']:3d}"
        print(
            f"{name}: {len(group)} cells, together {middle - began:6.2f} s, one after the other {end - middle:6.2f} s, "
            f"{(end - middle) / (middle - began):.1f} times; final losses differ by at most {worst:.0e}"
        )
    print(f"all: together {together:.2f} s, one after the other {alone:.2f} s: {alone / together:.1f} times faster")


if __name__ == "__main__":
    main()
