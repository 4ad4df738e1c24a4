"""Workers: the same script under `python`, where there is one, and under `torchrun`, where there are P in one group.

torch.distributed is the engine: gloo between processors, NCCL between accelerators.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from variegrad.distributed.roll_call import LONGEST, RollCall
from variegrad.distributed.world import World

WANTED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def workers(*, backend: str | None = None, timeout: float = 60.0, threads: int | None = None) -> Iterator[World]:
    """The workers that `torchrun` started, as one group; under plain `python`, this process alone.

    A group that exists already is used and left standing. Otherwise it is made here, all workers meet at the end, and
    it is taken down, also if an error ends the block.

    Args:
        backend: of torch.distributed; by default "nccl" if there is an accelerator for each worker, else "gloo".
        timeout: seconds after which a worker that does not answer is an error. One that is slow (it saves, reads, or is
            in the caller's loop) but alive is waited for, up to 30 minutes, and named.
        threads: of torch's operations in this process; by default what OMP_NUM_THREADS says (torchrun sets it to 1),
            and an equal share of the processors if that is not set.

    Yields:
        The world: rank, size, device.

    Raises:
        ValueError: if an argument or a variable of torchrun's environment is out of range or missing.
        RuntimeError: if the workers cannot meet within the time limit.
    """
    if not 0 < timeout < float("inf"):
        raise ValueError(f"workers: timeout must be a positive number of seconds; got {timeout}.")
    if threads is not None and threads < 1:
        raise ValueError(f"workers: threads must be at least 1; got {threads}.")
    placed = placement(os.environ)
    before = torch.get_num_threads()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if threads is None and local > 1 and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, (os.cpu_count() or 1) // local)
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        if dist.is_available() and dist.is_initialized():
            yield present()
        elif placed is None or placed[1] == 1:
            yield World(device=_device(0))
        else:
            with _group(*placed, backend=backend, timeout=timeout) as world:
                yield world
    finally:
        torch.set_num_threads(before)


def present() -> World:
    """The world as it stands: of the process group that exists, or of this process alone.

    Returns:
        The world.

    Raises:
        ValueError: if torchrun started several workers and none of them made a group.
    """
    if dist.is_available() and dist.is_initialized():
        device = _device(int(os.environ.get("LOCAL_RANK", "0"))) if dist.get_backend() == "nccl" else None
        return World(rank=dist.get_rank(), size=dist.get_world_size(), device=device or torch.device("cpu"))
    placed = placement(os.environ)
    if placed is not None and placed[1] > 1:
        raise ValueError(
            f"torchrun started {placed[1]} workers, but they form no group: each would train alone. "
            "Write `with vg.workers() as world:` around the run and pass the world."
        )
    return World(device=_device(0))


def placement(environment: Mapping[str, str]) -> tuple[int, int, int] | None:
    """Rank, number of workers and local rank from torchrun's variables.

    Args:
        environment: of the process.

    Returns:
        (rank, P, local rank); None if the process was not started by torchrun.

    Raises:
        ValueError: if a variable is missing, no number or out of range.
    """
    if "RANK" not in environment and environment.get("WORLD_SIZE", "1") == "1":
        return None
    missing = [name for name in WANTED if name not in environment and name != "LOCAL_RANK"]
    if missing:
        raise ValueError(
            f"workers: the environment has {', '.join(n for n in WANTED if n in environment)} but not "
            f"{', '.join(missing)}. Start with torchrun, or set {', '.join(WANTED)} for each worker."
        )
    numbers = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        written = environment.get(name, "0")
        if not written.isdecimal():
            raise ValueError(f"workers: the variable {name} must be a whole number, not negative; got {written!r}.")
        numbers[name] = int(written)
    if not numbers["RANK"] < numbers["WORLD_SIZE"]:
        raise ValueError(
            f"workers: RANK must be below WORLD_SIZE; got {numbers['RANK']} of {numbers['WORLD_SIZE']}. "
            "Ranks are counted from 0."
        )
    return numbers["RANK"], numbers["WORLD_SIZE"], numbers["LOCAL_RANK"]


def _device(local_rank: int) -> torch.device:
    if torch.cuda.is_available() and local_rank < torch.cuda.device_count():
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


@contextmanager
def _group(rank: int, size: int, local_rank: int, *, backend: str | None, timeout: float) -> Iterator[World]:
    enough = torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    backend = backend or ("nccl" if enough else "gloo")
    device = _device(local_rank) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    limit = timedelta(seconds=timeout)
    met, *_ = next(rendezvous("env://", timeout=limit))
    # After a restart the store still holds the addresses of the workers before it: each attempt has keys of its own.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"variegrad/{attempt}", met)  # type: ignore[attr-defined]
    roll = RollCall(store, rank, size, timeout)
    try:
        roll.meet()
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=LONGEST)
        world = World(rank=rank, size=size, device=device, _roll=roll)
        yield world
        # Without a last exchange, a worker that ends first may take down what others still read. Its works are held
        # until the group is gone: in torch 2.6 a thread of gloo that drops the last reference to a tensor waits for
        # Python's lock, which the group's destructor holds while it waits for that thread.
        last = [world.start_sum(torch.zeros(1, device=device)) for _ in range(4)]
        world.wait(*last)
    finally:
        time.sleep(0.02)  # the same threads drop the works before the last ones
        roll.end()
        if dist.is_initialized():
            if roll.trouble is not None:
                # An exchange is under way, and taking the group down, also at exit, would wait 30 minutes for it.
                sys.stderr.write(f"RuntimeError: worker {rank} of {size}: {roll.trouble}\n")
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(1)
            dist.destroy_process_group()
