"""What several workers do together, played by 2, 3 and 4 of them; each writes down what came out.

Run as `python scenarios.py FOLDER`: FOLDER/SIZE-RANK.json and FOLDER/SIZE-RANK.npz.
"""

import json
import multiprocessing
import os
import socket
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import variegrad as vg
from variegrad.distributed.world import World
from variegrad.training import Ball, Cadence, Epochs, Evaluation, Phases, Position, Skip, TrainConfig, train


def losses(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def right(model, batch):
    return (model(batch[0]).argmax(1) == batch[1]).double()


class Net(nn.Module):
    """Tied weights, a parameter that is used in some batches only and one that never is."""

    def __init__(self, seed=3):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight
        self.seldom = nn.Parameter(torch.ones(()))
        self.never = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.double()

    def forward(self, x):
        h = torch.tanh(self.second(torch.tanh(self.first(x))))
        if (large := x[:, :1] > 0.8).any():  # in some shares nobody reaches it
            h = torch.where(large, h * self.seldom, h)
        return self.last(h)


class Plain(nn.Sequential):
    def __init__(self, seed=3):
        torch.manual_seed(seed)
        super().__init__(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        self.double()


def examples(n=23):
    generator = torch.Generator().manual_seed(4)
    return TensorDataset(torch.randn(n, 4, generator=generator).double(), torch.arange(n) % 3)


class Augmented(Dataset):
    """Each reading adds noise of torch's default generator."""

    def __len__(self):
        return 23

    def __getitem__(self, i):
        x, y = examples()[i]
        return x + 0.1 * torch.randn(4).double(), y


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()


def run(world, config, model=None, data=None, loss=losses, **options):
    model = Plain() if model is None else model
    records = list(train(model, loss, examples() if data is None else data, config, world, **options))
    return {
        "weights": weights(model), "loss": [r.mean_loss for r in records], "examples": [r.examples for r in records],
        "accuracy": [float("nan") if r.accuracy is None else r.accuracy for r in records],
        "bound": [float("nan") if r.bound is None else r.bound.batch_size_bound for r in records],
        "skipped": [r.left_out for r in records],
    }  # fmt: skip


def config(**changes):
    return TrainConfig(**{"batch_size": 5, "step_size": 0.05, "passes": 2, "seed": 1, **changes})


def watch(**options):
    return Evaluation(accuracy=right, **options)


# --- the same on any number of workers ---

DROP = vg.DropConnect(0.4)

INVARIANT = {
    "with replacement": lambda w: run(w, config()),
    "epochs whose last batch leaves workers idle": lambda w: run(w, config(sampling=Epochs()), data=examples(11)),
    "data smaller than a batch": lambda w: run(w, config(batch_size=8), data=examples(3)),
    "a batch of all examples, epochs": lambda w: run(w, config(sampling=Epochs()), data=examples(5)),
    "tied, seldom used, unused and frozen parameters": lambda w: run(w, config(), model=Net()),
    "projection": lambda w: run(w, config(projection=Ball(1.5))),
    "augmented data": lambda w: run(w, config(), data=Augmented()),
    "continued": lambda w: run(w, config(), start=20),
    "B changes on the way": lambda w: run(w, Phases({0: config(mechanism=DROP), 20: config(batch_size=9)})),
    "B and the noise change, epochs": lambda w: run(w, changing(sampling=Epochs()), data=examples(11)),
    "resumed across a change of B": lambda w: run(w, changing(), start=Position(examples=15, updates=3)),
    "evaluated": lambda w: run(w, config(), evaluation=watch(data=examples(7), every=Cadence(updates=3))),
    "stopped at a target": lambda w: run(w, config(passes=50), evaluation=watch(data=examples(), target=0.5)),
    "estimated": lambda w: run(w, config(batch_size=12), bound_every=Cadence(updates=2)),
    "skipped": lambda w: run(w, config(when_not_finite=Skip()), data=with_a_hole()),
    "DropConnect": lambda w: run(w, config(mechanism=vg.DropConnect(0.4))),
    "DropConnect, epochs": lambda w: run(w, config(mechanism=DROP, sampling=Epochs()), data=examples(11)),
    "Langevin": lambda w: run(w, config(mechanism=vg.Langevin(0.1))),
    "Quantize": lambda w: run(w, config(mechanism=vg.Quantize())),
}  # fmt: skip


def changing(**settings):
    first = config(mechanism=vg.Quantize(), **settings)
    return Phases({0: first, 10: replace(first, batch_size=7, mechanism=vg.Langevin(0.1)), 17: first})


def turned():
    x, y = examples().tensors
    return TensorDataset(-x, y)


def with_a_hole():
    data = examples()
    data.tensors[0][7] = float("nan")
    return data


# --- what all workers refuse, or end, together ---


def on_one(world, odd, even):
    return odd if world.rank == 1 else even


def failing(world, exception):
    calls = 0

    def loss(model, batch):
        nonlocal calls
        calls += 1
        if world.rank == 1 and calls == 3:
            raise exception
        return losses(model, batch)

    return loss


def with_statistics():
    """Statistics of each worker's own share, which are no part of the gradient."""
    torch.manual_seed(3)
    norm = nn.InstanceNorm1d(4, track_running_stats=True)
    return nn.Sequential(norm, nn.Flatten(), nn.Linear(8, 3)).double()


def pictures():
    generator = torch.Generator().manual_seed(5)
    return TensorDataset(torch.randn(23, 4, 2, generator=generator).double(), torch.arange(23) % 3)


def holed_gradient(world):
    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g * (float("inf") if world.rank == 1 else 1)

    return lambda model, batch: Bad.apply(losses(model, batch))


def asked_to_stop(world):
    seen = 0
    for step in train(Plain(), losses, examples(), config(passes=50), world):
        seen = step.updates
        if world.rank == 1 and seen == 4:
            world.request_stop()
    world.stop_requested = False
    raise ValueError(f"ended after {seen}")


TOGETHER = {
    "settings": lambda w: run(w, config(step_size=on_one(w, 0.1, 0.05))),
    "mechanism": lambda w: run(w, config(mechanism=on_one(w, vg.DropConnect(0.5), None))),
    "starting weights": lambda w: run(w, config(), model=Plain(on_one(w, 5, 3))),
    "shapes": lambda w: run(w, config(), model=on_one(w, nn.Linear(4, 3).double(), Plain())),
    "type": lambda w: run(w, config(), model=on_one(w, Plain().float(), Plain())),
    "length of the data": lambda w: run(w, config(), data=on_one(w, examples(22), examples())),
    "numbers of the data": lambda w: run(w, config(), data=on_one(w, turned(), examples())),
    "start": lambda w: run(w, config(), start=on_one(w, 5, 0)),
    "batch smaller than the workers": lambda w: run(w, config(batch_size=1)),
    "batch normalisation": lambda w: run(w, config(), model=nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()),
    "running statistics": lambda w: run(w, config(), model=with_statistics(), data=pictures()),
    "loss that is not finite": lambda w: run(w, config(), data=with_a_hole()),
    "gradient that is not finite": lambda w: run(w, config(), loss=holed_gradient(w)),
    "error on one": lambda w: run(w, config(), loss=failing(w, KeyError("nothing"))),
    "wrong shape on one": lambda w: run(w, config(), loss=lambda m, b: losses(m, b)[: None if w.rank else 1]),
    "asked to stop": asked_to_stop,
}  # fmt: skip


def play(folder, rank, size, port):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(size)}  # fmt: skip
    said, arrays = {}, {}
    with vg.workers() as world:
        torch.manual_seed(world.rank)
        for name, scenario in INVARIANT.items():
            arrays |= {f"{name}/{key}": np.asarray(value) for key, value in scenario(world).items()}
        for name, scenario in TOGETHER.items():
            try:
                scenario(world)
                said[name] = "nothing"
            except (ValueError, RuntimeError, TypeError) as error:
                said[name] = f"{type(error).__name__}: {error}"
        # After everything that was refused, the workers still work together.
        said["afterwards"] = str(world.add_up([1.0]))
        first = next(islice(train(Plain(), losses, examples(), config(), world), 1))
        said["seconds"] = str(min(first.seconds.data, first.seconds.compute, first.seconds.communication) >= 0)
    (folder / f"{size}-{rank}.json").write_text(json.dumps(said))
    np.savez(folder / f"{size}-{rank}.npz", **arrays)


def alone():
    """The same by this process alone."""
    return {f"{name}/{key}": np.asarray(value) for name, scenario in INVARIANT.items()
            for key, value in scenario(World()).items()}  # fmt: skip


SIZES = (2, 3, 4)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


if __name__ == "__main__":
    forked = multiprocessing.get_context("fork")  # everything is imported once, and nothing has run yet
    for size in SIZES:
        port = free_port()
        workers = [forked.Process(target=play, args=(Path(sys.argv[1]), rank, size, port)) for rank in range(size)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
