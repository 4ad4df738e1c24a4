"""What P workers say to each other, counted on worker 0 of a group that only pretends to be there; no time is measured.

    python benchmarks/scale.py            # the tables of docs/developers/scale.md

torch's fake process group takes every collective and answers at once, so that the calls and bytes of one worker of
1,024 can be counted on one processor. What the network then takes is a model: a message costs α, a byte 1/β.
"""

import contextlib
import math
import tempfile

import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import TensorDataset

from variegrad import Quantize, TrainConfig, train
from variegrad.distributed import payloads, wire
from variegrad.distributed.world import World
from variegrad.mechanisms.one_draw import WorkerKey, drawn
from variegrad.training import Cadence, Evaluation
from variegrad.training.checkpoint import Run

SIZES = (1, 2, 8, 64, 1024)
PACKED = (10**4, 10**6, 10**7)
MODELLED = (8, 64, 1024, 10**4, 10**5)
ALPHA, BETA = 5e-6, 10e9 / 8  # seconds per message, bytes per second: a data centre's 10 Gbit/s


def losses(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def right(model, batch):
    return (model(batch[0]).argmax(1) == batch[1]).float()


@contextlib.contextmanager
def counted():
    """Every call of this worker: (what, bytes of the tensor that it sends)."""
    calls = []
    originals = {name: getattr(dist, name) for name in ("all_reduce", "broadcast", "batch_isend_irecv")}

    def noting(name):
        def wrapped(first, *arguments, **named):
            sends = [move.tensor for move in first if move.op is dist.isend] if isinstance(first, list) else [first]
            calls.extend((name, tensor.nbytes) for tensor in sends)
            return originals[name](first, *arguments, **named)

        return wrapped

    for name in originals:
        setattr(dist, name, noting(name))
    try:
        yield calls
    finally:
        for name, function in originals.items():
            setattr(dist, name, function)


def counts(size):
    """Calls and bytes of worker 0 at the start, per update, per evaluation and per checkpoint."""
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(4 * size, 64, generator=generator), torch.arange(4 * size) % 10)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    config = TrainConfig(batch_size=2 * size, step_size=1e-4, passes=math.inf)
    world, found = World(rank=0, size=size), {}
    with tempfile.TemporaryDirectory() as folder, counted() as calls, Run(folder, model, config, world) as kept:

        def take(what):
            found[what] = (len(calls), sum(each for _, each in calls))
            calls.clear()

        run = kept.of(train(model, losses, data, config, world, evaluation=None))
        take("resuming")
        next(run)
        next(run)
        calls.clear()
        next(run)
        take("update")
        kept.keep_now()
        take("checkpoint")
        run.close()
        watch = Evaluation(accuracy=right, data=data, every=Cadence(updates=2))
        run = train(model, losses, data, config, world, evaluation=watch)
        take("start")
        next(run)
        first = len(calls), sum(each for _, each in calls)
        calls.clear()
        next(run)
        found["evaluation"] = (len(calls) - found["update"][0], sum(each for _, each in calls) - found["update"][1])
        found["first update"] = (first[0] - found["update"][0], first[1] - found["update"][1])
    return found, sum(p.numel() for p in model.parameters())


def packed(size, parameters):
    """Messages and bytes of worker 0's packed sum of Q(v); None where the sum is dense."""
    gradient = torch.randn(parameters, generator=torch.Generator().manual_seed(0))
    payload = wire.encode(drawn({"v": gradient}, Quantize(), WorkerKey(0, 0, 0)), step=0, sender=0)
    world = World(rank=0, size=size)
    with counted() as calls:
        said = payloads.announce(len(payload), world)
        if not payloads.pays(size, said.longest, 4 * parameters):
            return None
        payloads.exchange(payload, said.longest, limit=4 * parameters, world=world)
        return len(calls) - 1, sum(each for _, each in calls)


def fake(size):
    """A group of so many workers, of which there is one."""
    if size > 1:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)


def seconds(size, parameters):
    """The model of one plain update's communication: a ring or a tree for the gradient and the votes behind it."""
    ring = 2 * (size - 1) * ALPHA + 2 * 4 * parameters * (size - 1) / size / BETA
    tree = 2 * math.ceil(math.log2(size)) * ALPHA + 2 * 4 * parameters / BETA
    return min(ring, tree)


def main():
    rows, sums, parameters = {}, {}, 0
    for size in SIZES:
        fake(size)
        try:
            rows[size], parameters = counts(size)
            sums[size] = [packed(size, d) for d in PACKED] if size > 1 else []
        finally:
            if size > 1:
                dist.destroy_process_group()
    names = list(rows[SIZES[-1]])
    print(
        f"Calls of worker 0 and bytes of their tensors, MLP of {parameters:,} parameters (4d = {4 * parameters:,} B):\n"
    )
    print("| P |", " | ".join(names), "|\n|---:|" + "---:|" * len(names))
    for size, row in rows.items():
        print(
            f"| {size:,} |",
            " | ".join(f"{row[name][0]} call{'s' * (row[name][0] != 1)}, {row[name][1]:,} B" for name in names),
            "|",
        )
    print(
        "\nThe packed sum of Quantize per worker: messages and bytes of worker 0, and their share of the dense sum's:\n"
    )
    print("| P |", " | ".join(f"d = {d:,}" for d in PACKED), "|\n|---:|" + "---:|" * len(PACKED))
    for size, row in sums.items():
        cells = [
            "dense" if found is None else f"{found[0]}, {found[1]:,} B, {found[1] / (8 * d * (size - 1) / size):.1%}"
            for d, found in zip(PACKED, row, strict=False)
        ]
        if cells:
            print(f"| {size:,} |", " | ".join(cells), "|")
    print(f"\nModel: α = {ALPHA * 1e6:g} µs, β = {BETA / 1e9:g} GB/s; communication of a plain update, ms:\n")
    sizes = (10**6, 10**8, 10**9)
    print("| P |", " | ".join(f"d = {d:,}" for d in sizes), "|\n|---:|" + "---:|" * len(sizes))
    for size in MODELLED:
        print(f"| {size:,} |", " | ".join(f"{1e3 * seconds(size, d):,.2f}" for d in sizes), "|")


if __name__ == "__main__":
    main()
