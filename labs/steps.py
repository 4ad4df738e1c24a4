"""What one worker of the network lab does: DDP steps with a communication hook, timed, and their bytes counted.

The model is a network of about 10⁶ weights; the batches are in memory. All methods run in the same processes, one after
the other, on the same link.
"""

import json
import socket
import statistics
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from variegrad import DropConnect, Quantize
from variegrad.distributed import MechanismHook

FREE_MEGABYTES = 200  # for the rate of the cable without a limit
ROUNDS = 6  # without and with the limit
FEWEST, MOST = 3, 40  # steps of a round
WARM_UP = 6  # DDP makes its buckets anew after the first; PowerSGD begins after the second
WAIT = timedelta(seconds=120)


def nothing(_state, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def vanilla(ddp):
    """DDP's own all-reduce."""


def fp16(ddp):
    ddp.register_comm_hook(None, fp16_compress_hook)


def power_sgd(ddp):
    ddp.register_comm_hook(PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2), powerSGD_hook)


def drop_connect(ddp):
    MechanismHook(DropConnect(0.4)).register(ddp)


def quantize(ddp):
    MechanismHook(Quantize()).register(ddp)


def no_communication(ddp):
    ddp.register_comm_hook(None, nothing)


# What a step sends one after the other: an all-reduce of two is a reduce-scatter and a gather for each of the two
# buckets; PowerSGD reduces P, Q and what it does not compress; ours are the lengths and the payloads.
METHODS = {
    "vanilla": (vanilla, 4),
    "fp16": (fp16, 4),
    "PowerSGD, rank 1": (power_sgd, 6),
    "DropConnect(0.4) per worker": (drop_connect, 2),
    "Quantize per worker": (quantize, 2),
    "no communication": (no_communication, 0),
}


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 190), nn.ReLU(), nn.Linear(190, 10))


def dimension():
    return sum(p.numel() for p in model().parameters())


def steps(method, batch, rank, length, shape, speed, sent):
    """Seconds of each step with and without the limit, by turns, and the bytes that this worker sent under it."""
    ddp = DistributedDataParallel(model())
    METHODS[method][0](ddp)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(rank)
    x, y = torch.randn(batch, 784, generator=generator), torch.randint(0, 10, (batch,), generator=generator)

    def seconds():
        start = time.perf_counter()
        optimizer.zero_grad()
        cross_entropy(ddp(x), y).backward()
        optimizer.step()
        return time.perf_counter() - start

    for _ in range(WARM_UP):
        seconds()
    shape(speed)
    seconds()
    slowest = torch.tensor([seconds()])
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    count = min(MOST, max(FEWEST, int(length / float(slowest))))
    taken, counted = {"free": [], "limited": []}, 0
    for number in range(ROUNDS * 2):
        kind = ("free", "limited")[number % 2]
        shape(speed if number % 2 else None)
        seconds()  # the first step fills the bucket, or finds it full
        before = sent()
        taken[kind] += [seconds() for _ in range(count)]
        dist.barrier()
        counted += sent() - before if number % 2 else 0
    # A step is over when the slower one is done; medians are not moved by what else the machine does.
    slower = torch.tensor([taken["free"], taken["limited"]])
    dist.all_reduce(slower, op=dist.ReduceOp.MAX)
    free, limited = (statistics.median(row) for row in slower.tolist())
    return {
        "method": method,
        "batch": batch,
        "free": free,
        "seconds": limited,
        "bytes": counted / (ROUNDS * count),
        "steps": ROUNDS * count,
    }


def rate(rank, address, port, megabytes, sent):
    """Bytes per second that a plain connection reaches from worker 0 to worker 1, and the interface's for each of them.

    The first quarter does not count.
    """
    block, total = bytes(2**16), int(megabytes * 2**20)
    if rank == 0:
        with socket.create_server((address, port)) as server:
            connection, _ = server.accept()
            with connection:
                before = sent()
                for _ in range(total // len(block)):
                    connection.sendall(block)
                found = float(connection.recv(64).decode())
                return found, (sent() - before) / (total // len(block) * len(block))
    end = time.monotonic() + 30
    while True:
        try:
            connection = socket.create_connection((address, port), timeout=30)
            break
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
    with connection:
        came, start, at = 0, 0.0, 0
        while came < total // len(block) * len(block):
            came += len(connection.recv(2**16))
            if not at and came >= total / 4:
                start, at = time.perf_counter(), came
        found = (came - at) / (time.perf_counter() - start)
        connection.sendall(f"{found}".encode())
    return found, 1.0


def work(rank, link, cells, length, speed, megabytes, ask, out):
    """Measure cells (method, examples of this worker), so many seconds a round, and write them as JSON."""
    torch.set_num_threads(1)

    def shape(to):
        dist.barrier()
        if rank == 0:  # the cables end outside of this namespace
            ask.send(to)
            ask.recv()
        dist.barrier()

    reached, overhead = rate(rank, link.address(0), 29600, megabytes, lambda: link.sent(rank))
    found = {"bytes per second": reached, "interface bytes per byte": overhead}
    store = dist.TCPStore(link.address(0), 29500, 2, is_master=rank == 0, timeout=WAIT)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=WAIT)
    shape(None)
    found["free bytes per second"], _ = rate(rank, link.address(0), 29601, FREE_MEGABYTES, lambda: link.sent(rank))
    found["cells"] = [
        steps(method, batch, rank, length, shape, speed, lambda: link.sent(rank)) for method, batch in cells
    ]
    dist.barrier()
    dist.destroy_process_group()
    Path(out).write_text(json.dumps(found))
