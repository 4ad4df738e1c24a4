"""One rank of a run: a monitored loop beside the same loop without, and what it should read. See test_workers.py."""

import os
import pickle
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from one_step import gram, moments
from variegrad import DropConnect, MechanismHook, Monitor, Quantize
from variegrad.monitor.exchange.sums import StepSums, cell_sums, of_worker

rank, workers = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
out = Path(os.environ["OUT"])
dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=workers)
STEPS = 4
HOOKS = {"fp16": default_hooks.fp16_compress_hook}
MECHANISMS = {"mechanism": Quantize(), "mechanism_composed": DropConnect(0.5)}


class WithUnused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        return self.used(x)


def make():
    torch.manual_seed(0)
    if scenario == "unused":
        return WithUnused()
    norm = nn.BatchNorm1d(40) if scenario == "batch_norm" else nn.Identity()
    return nn.Sequential(nn.Linear(6, 40), norm, nn.Tanh(), nn.Linear(40, 3))


def losses(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def size_of(step, worker):
    unequal = scenario in ("unequal", "scalar_unequal") and step == STEPS - 1
    return 3 + 2 * worker if unequal else 6


def data(step, micro, worker):
    g = torch.Generator().manual_seed(1000 * step + 10 * micro + worker)
    count = size_of(step, worker)
    x = torch.randn(count, 6, generator=g)
    if scenario == "nan" and step == 1 and worker == 1:
        x[0, 0] = torch.nan
    return x, torch.randint(0, 3, (count,), generator=g)


counted = {"calls": 0, "numbers": 0}
original = dist.all_reduce


def counting(tensor, *args, **kwargs):
    counted["calls"] += 1
    counted["numbers"] += tensor.numel() * tensor.element_size()
    return original(tensor, *args, **kwargs)


dist.all_reduce = counting
default_hooks.dist.all_reduce = counting


def train(watched):
    counted.update(calls=0, numbers=0)
    model = make()
    # Small buckets: the last one is not the only one.
    ddp = DistributedDataParallel(
        model, bucket_cap_mb=0.0005, find_unused_parameters=scenario == "unused", static_graph=scenario == "static"
    )
    resumed = {"every": 2, "warm_up": 8} if scenario == "resumed" else {"every": 1}
    monitor = Monitor(model, examples=64, accumulate=MICRO, **resumed)
    inner = HOOKS.get(scenario)
    if scenario in MECHANISMS:
        hook = MechanismHook(MECHANISMS[scenario], seed=1)
        if not watched:
            hook.register(ddp)
        elif scenario == "mechanism":
            monitor.attach(ddp, inner=hook)
        else:
            hook.register(ddp, wrapper=monitor.compose)
    elif watched:
        monitor.attach(ddp, inner=inner)
    elif inner is not None:
        ddp.register_comm_hook(None, inner)
    else:
        ddp.register_comm_hook(None, default_hooks.allreduce_hook)
    if scenario == "resumed":  # past the warm-up, which is not repeated
        monitor.load_state_dict(monitor.state_dict() | {"calls": 8})
    gradients, expected = [], []
    for step in range(STEPS):
        if watched:
            expected += truth(model, step)
        for micro in range(MICRO):
            with nullcontext() if micro == MICRO - 1 else ddp.no_sync():
                x, y = data(step, micro, rank)
                if scenario.startswith("scalar"):
                    logits = ddp(x)
                    loss = F.cross_entropy(logits, y)
                    if watched:
                        monitor.watch(loss, output=logits)
                else:
                    per_example = losses(ddp, (x, y))
                    if watched:
                        monitor.watch(per_example)
                    loss = per_example.mean()
                (loss / MICRO).backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
        ddp.zero_grad()
    return monitor, gradients, dict(counted), expected


def truth(model, step):
    """(Û, M̂²) over all workers and micro-batches, from the examples' Gram matrix or the cells' sums."""
    if scenario == "nan" and step == 1:
        return []
    if scenario == "resumed" and step % 2:
        return []
    if scenario == "static" and step == 0:  # the wrapper's own first pass comes before any other
        return []
    if scenario == "scalar_unequal" and step == STEPS - 1:
        return []
    model = pickle.loads(pickle.dumps(model))
    parts = [data(step, micro, worker) for worker in range(workers) for micro in range(MICRO)]
    if scenario == "batch_norm":  # no norms of examples there: from the sums of the cells
        cells, total = [], 0
        for x, y in parts:
            model.zero_grad()
            losses(model, (x, y)).sum().backward()
            flat = torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])
            cells, total = [*cells, cell_sums(torch.ones(len(x)), flat.square().sum())], total + flat
        return [StepSums(*of_worker(cells).tolist()).moments(float(total.square().sum()))]
    if scenario != "unequal":
        found = moments(gram(model, losses, tuple(map(torch.cat, zip(*parts, strict=True)))))
        scale = 1 / 6**2 if scenario.startswith("scalar") else 1
        return [(found[0] * scale, found[1] * scale)]
    # Each worker's mean: pairs enter with weights 1/b_j.
    whole = tuple(map(torch.cat, zip(*parts, strict=True)))
    k = gram(model, losses, whole)
    c = torch.cat([torch.full((len(x),), 1 / len(x), dtype=torch.float64) for x, _ in parts])
    a = k.diagonal()
    product = (c @ k @ c - (c.square() * a).sum()) / (c.sum() ** 2 - c.square().sum())
    return [(float(product), float((c.square() * a).sum() / c.square().sum()))]


found = {}
for scenario in sys.argv[1:]:
    MICRO = 2 if scenario == "accumulate" else 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*unequal size.*")
        warnings.filterwarnings("ignore", message=".*find_unused_parameters.*")
        _, without, plain, _ = train(False)
        monitor, with_it, counts, expected = train(True)
    # Of two numbers the sum has no order; of three, it may change with the length of the bucket.
    rounding = 0.0 if workers == 2 else 2e-3 if scenario == "fp16" else 1e-6
    same = all(
        (a is None and b is None) or torch.allclose(a, b, rtol=rounding, atol=rounding, equal_nan=True)
        for one, other in zip(without, with_it, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    found[scenario] = {
        "readings": [str(r) + repr(r) for r in monitor.history], "window": monitor.state_dict()["window"],
        "expected": expected, "skipped": monitor.state_dict()["skipped"],
        "skips_expected": int(scenario in ("nan", "scalar_unequal")),
        "collectives": counts["calls"], "collectives_without": plain["calls"],
        "steps": 2 if scenario == "resumed" else STEPS, "numbers": [reading.step for reading in monitor.history],
        "beside": 0 if scenario not in MECHANISMS else (
            STEPS * sum(4 * p.numel() for p in make().parameters())),
        "more_bytes": counts["numbers"] - plain["numbers"], "gradients_as_without": same,
    }  # fmt: skip
    monitor.close()
(out / f"{rank}.pkl").write_bytes(pickle.dumps(found))
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # the threads of a gloo group that the interpreter takes down on its way out can abort it
