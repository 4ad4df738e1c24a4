"""What packing a quantised gradient costs, and how small it becomes.

    python benchmarks/wire.py                      # d = 10⁴ … 10⁷, Gaussian gradients in float32

For each d: Q(v) as it travels, DropConnect(0.4)'s kept coordinates, and signs that are dense; the best of several times
in milliseconds, on one thread. Every payload is decoded and compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from variegrad.distributed import wire


def gaussian_cases(d: int, seed: int = 0) -> dict[str, tuple[Tensor, Tensor | None]]:
    """(vector, mask) of each kind."""
    random = np.random.default_rng(seed)
    v = random.normal(size=d)
    norm = np.linalg.norm(v)
    quantised = np.where(random.random(d) < np.abs(v) / norm, norm * np.sign(v), 0.0)
    mask = random.random(d) < 0.6
    signs = np.where(random.random(d) < 0.5, np.sign(v), 0.0)
    return {
        "Q(v)": (torch.from_numpy(quantised).float(), None),
        "DropConnect(0.4)": (torch.from_numpy(v * mask / 0.6).float(), torch.from_numpy(mask)),
        "dense signs": (torch.from_numpy(signs).float(), None),
    }


def best_ms(repeats: int, call: Callable[[], Any]) -> tuple[float, Any]:
    """The shortest time and the last result."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--largest", type=int, default=10**7)
    parser.add_argument("--repeats", type=int, default=10)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, numpy {np.__version__}, one thread, best of {chosen.repeats}\n")
    print(f"{'d':>10}  {'what':<17} {'kind':<6} {'bytes':>10} {'of float32':>11} {'encode ms':>10} {'decode ms':>10}")
    here: dict[str, Any] = {"step": 1, "sender": 0}
    d = 10**4
    while d <= chosen.largest:
        for name, (values, mask) in gaussian_cases(d).items():
            encode, payload = best_ms(chosen.repeats, partial(wire.encode, values, **here, mask=mask))
            awaited = {**here, "elements": d, "dtype": values.dtype, "mask": mask}
            decode, arrived = best_ms(chosen.repeats, partial(wire.decode, payload, **awaited))
            assert torch.equal(arrived, values)
            kind = wire.Kind(payload[5]).name.lower()
            share = f"1/{4 * d / len(payload):.3g}"
            print(f"{d:>10,}  {name:<17} {kind:<6} {len(payload):>10,} {share:>11} {encode:>10.2f} {decode:>10.2f}")
        d *= 10


if __name__ == "__main__":
    main()
