"""One rank of runs that DistributedDataParallel trains, with a Monitor and without. See test_faulty_workers.py."""

import os
import pickle
import sys
import warnings
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

from one_step import gram, moments
from variegrad import Monitor
from variegrad.monitor.exchange import lockstep

rank, workers, out = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), Path(os.environ["OUT"])
dist.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=workers)
STEPS = 8
lockstep.PATIENCE = timedelta(seconds=2)
last = rank == workers - 1


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(30, 6, sparse=scenario == "sparse"), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.table(x)))


def losses(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def data(step, micro, worker):
    g = torch.Generator().manual_seed(1000 * step + 10 * micro + worker)
    count = 0 if scenario == "empty" and worker == workers - 1 and step % 2 else 6
    return torch.randint(0, 30, (count,), generator=g), torch.randint(0, 3, (count,), generator=g)


def watches(step, micro):
    """Whether this rank calls watch."""
    match scenario:
        case "rank 0 only":
            return rank == 0
        case "one step not watched":
            return not (last and step == 3)
        case "one micro-batch not watched":
            return not (last and step == 3 and micro == 0)
        case "an extra pass":
            return micro == 0
    return True


def train(monitored):
    torch.manual_seed(0)
    ddp = DistributedDataParallel(Table(), bucket_cap_mb=0.0005)
    model = ddp.module
    monitored = monitored and not (scenario == "no monitor on rank 1" and last)
    every = 2 if scenario == "other settings on rank 1" and last else 1
    monitor = Monitor(ddp, every=every, warm_up=0, examples=64, window=64, accumulate=MICRO) if monitored else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    expected = []
    more = 2 * rank if scenario.startswith("join") else 0
    with Join([ddp]) if scenario.startswith("join") else nullcontext():
        for step in range(STEPS + more):
            present = range(workers) if step < STEPS else range(1, workers)
            if monitored:
                expected.append(truth(model, step, present))
            for micro in range(MICRO):
                sync = micro == MICRO - 1 or scenario == "no no_sync"
                with nullcontext() if sync else ddp.no_sync():
                    x, y = data(step, micro, rank)
                    per_example = losses(ddp, (x, y))
                    if monitored and watches(step, micro):
                        monitor.watch(per_example)
                    if scenario == "masked" and last and step % 2:
                        per_example = per_example * 0
                    if scenario == "error" and monitored and last and step == 4:
                        monitor._loop.waiting._measured = lambda: 1 / 0  # whatever may go wrong in the measurement
                    loss = per_example.sum() / 6 if len(x) or scenario == "empty" else per_example.mean()
                    (loss / MICRO).backward()
                    if scenario == "an extra pass":
                        losses(ddp, data(step, 7, rank)).mean().backward()
            if scenario == "set to zero":
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)
            else:
                optimizer.step()
                optimizer.zero_grad()
    return monitor, [p.detach().clone() for p in model.parameters()], expected


def truth(model, step, present):
    """(Û, M̂²) over the workers that are there, by the definition."""
    if scenario == "sparse":
        model = pickle.loads(pickle.dumps(model))
        model.table.sparse = False
    parts = [data(step, micro, worker) for worker in present for micro in range(MICRO)]
    if scenario == "masked" and step % 2:
        parts = parts[:-MICRO]
    return moments(gram(model, losses, tuple(map(torch.cat, zip(*parts, strict=True)))))


found = {}
for scenario in sys.argv[1:]:
    MICRO = 2 if scenario in ("accumulate", "no no_sync", "one micro-batch not watched", "join accumulate") else 1
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        _, without, _ = train(False)
        monitor, with_it, expected = train(True)
    if monitor is None:
        found[scenario] = {"same": all(torch.equal(a, b) for a, b in zip(without, with_it, strict=True))}
        continue
    found[scenario] = {
        "same": all(torch.equal(a, b) for a, b in zip(without, with_it, strict=True)),
        "window": {int(s): (u, m) for s, _, _, u, m in monitor.state_dict()["window"]},
        "expected": {step * (1 + (scenario == "an extra pass")) + 1: pair for step, pair in enumerate(expected)},
        "missing": {r.step: r.missing for r in monitor.history},
        "sizes": {r.step: r.batch_size for r in monitor.history},
        "reasons": [tuple(r) for r in monitor.history.reasons.values()],
        "warned": [str(w.message) for w in said if issubclass(w.category, RuntimeWarning)],
    }
    monitor.close()
(out / f"{rank}.pkl").write_bytes(pickle.dumps(found))
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # the threads of a gloo group that the interpreter takes down on its way out can abort it
