"""One of two processes that train a fully sharded model, watched and not; told by the environment."""

import copy
import os
import pickle
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from variegrad import Monitor

rank, workers, out = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), Path(os.environ["OUT"])
dist.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=workers)
STEPS, SIZES = 5, (6, 6, 6, 6, 3)


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 3))


def losses(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def data(scenario, step, worker):
    g = torch.Generator().manual_seed(100 * step + worker)
    count = SIZES[step % 100] + 2 * worker * (step % 100 == STEPS - 1 and scenario == "losses")  # unequal last batches
    x = torch.randn(count, 6, generator=g)
    if scenario == "nan" and step == 1 and worker == 1:
        x[0, 0] = torch.nan
    return x, torch.randint(0, 3, (count,), generator=g)


def by_hand(whole_model, scenario, step):
    """(Û, M̂²) by the definition, from each worker's mean or sum of gradients."""
    cells, rows = [], []
    for worker in range(workers):
        parts = [data(scenario, step + 100 * micro, worker) for micro in range(1 + (scenario == "accumulate"))]
        x, y = map(torch.cat, zip(*parts, strict=True))
        whole_model.zero_grad()
        losses(whole_model, (x, y)).mean().backward()
        cells.append(torch.cat([p.grad.flatten().double() for p in whole_model.parameters()]))
        rows.append(len(x))
    c = [1.0] * workers if scenario == "scalar" else [1 / b for b in rows]  # of a scalar loss only the ratio is known
    v, w = float(sum(cells).square().sum()), float(sum(g.square().sum() for g in cells))
    weight = sum(a * b for a, b in zip(c, rows, strict=True))
    product = (v - w) / (weight**2 - sum((a * b) ** 2 for a, b in zip(c, rows, strict=True)))
    sq = sum(a**2 * b for a, b in zip(c, rows, strict=True))
    excess = sum((a * b) ** 2 for a, b in zip(c, rows, strict=True)) - sq
    return product, (w - excess * product) / sq


counted = {"calls": 0}
original = dist.all_reduce


def counting(*args, **kwargs):
    counted["calls"] += 1
    return original(*args, **kwargs)


dist.all_reduce = counting


def train(scenario, watched):
    model, twin = make(), make()
    mesh = init_device_mesh("cpu", (workers,))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    accumulate = 1 + (scenario == "accumulate")
    every = 2 if scenario == "every" else 1
    monitor = Monitor(model, every=every, warm_up=0, accumulate=accumulate) if watched else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    expected, gradients = [], []
    for step in range(STEPS):
        for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
            mine.data.copy_(theirs.full_tensor())
        if not (scenario == "nan" and step == 1) and not (scenario == "every" and step % 2):
            expected.append(by_hand(copy.deepcopy(twin), scenario, step))
        for micro in range(accumulate):
            x, y = data(scenario, step + 100 * micro, rank)
            logits = model(x)
            per_example = F.cross_entropy(logits, y, reduction="none")
            loss = per_example.mean()
            if not watched or (scenario == "one" and rank == 1):
                pass
            elif scenario == "scalar":
                monitor.watch(loss, output=logits)
            else:
                monitor.watch(per_example)
            model.set_requires_gradient_sync(micro == accumulate - 1)
            (loss / accumulate).backward()
        gradients.append([p.grad.to_local().clone() for p in model.parameters()])
        if not (scenario == "nan" and step == 1):
            optimizer.step()
        optimizer.zero_grad()
    return monitor, gradients, expected


found = {}
for scenario in ("losses", "scalar", "nan", "every", "accumulate"):
    counted["calls"] = 0
    _, without, _ = train(scenario, False)
    before = counted["calls"]
    monitor, with_it, expected = train(scenario, True)
    found[scenario] = {
        "readings": [repr(r) for r in monitor.history], "window": monitor.state_dict()["window"], "expected": expected,
        "source": monitor.latest.source, "skipped": monitor.state_dict()["skipped"],
        "collectives": counted["calls"] - 2 * before, "watched": len(expected) + int(scenario == "nan"),
        "same": all(
            torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
            for one, two in zip(without, with_it, strict=True) for a, b in zip(one, two, strict=True)
        ),
    }  # fmt: skip
refusals = {}
for name, attach in {
    "another": lambda m: Monitor(make()).attach(m),
    "plain": lambda _: (plain := make(), Monitor(plain).attach(plain)),
    "inner": lambda m: Monitor(m).attach(m, inner=print),
}.items():
    model = fully_shard(make(), mesh=init_device_mesh("cpu", (workers,)))
    try:
        attach(model)
    except ValueError as error:
        refusals[name] = str(error)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    monitor, one, _ = train("one", True)
_, without, _ = train("one", False)
assert all(torch.equal(a, b) for x, y in zip(one, without, strict=True) for a, b in zip(x, y, strict=True))
assert not monitor.history
refusals["one"] = " ".join(str(w.message) for w in said)
part = make()
fully_shard(part[0], mesh=init_device_mesh("cpu", (workers,)))
fully_shard(part, mesh=init_device_mesh("cpu", (workers,)), ignored_params={part[4].bias})
try:
    Monitor(part)
except ValueError as error:
    refusals["ignored"] = str(error)
half = fully_shard(make().double(), mesh=init_device_mesh("cpu", (workers,)))
monitor = Monitor(half, every=1)
per_example = losses(half, (torch.randn(6, 6).double(), torch.arange(6) % 3))
monitor.watch(per_example)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    per_example.mean().backward()
refusals["scaled"] = " ".join(str(w.message) for w in said)
found["refusals"] = refusals
(out / f"{rank}.pkl").write_bytes(pickle.dumps(found))
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # the threads of a gloo group that the interpreter takes down on its way out can abort it
