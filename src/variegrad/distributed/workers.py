"""Workers: the same script under `python`, where there is one, and under `torchrun`, where there are P in one group.

torch.distributed is the engine: gloo between processors, NCCL between accelerators. Whatever a worker decides about the
course of a run travels with the exchange of that step, so that all decide the same: nobody is waited for in vain.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

WANTED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
GRACE_SECONDS = 3.0  # how long those who noticed a failure wait for the others to say that they did too


@dataclass(eq=False, kw_only=True)
class World:
    """The workers of a run, as one of them sees it.

    Attributes:
        rank: the number of this worker, from 0.
        size: P, how many there are.
        device: where this worker computes: put the model there.
        stop_requested: whether this worker asked the run to end (`request_stop`).
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    stop_requested: bool = False
    _store: Any = field(default=None, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this is worker 0: the one that prints and writes files."""
        return self.rank == 0

    def request_stop(self) -> None:
        """Ask that the run end: the next update tells the others, and all end after it. Safe in a signal handler."""
        self.stop_requested = True

    def share(self, count: int) -> range:
        """This worker's part of so many examples: parts differ by one at most and together are all of them.

        Args:
            count: how many examples all workers share.

        Returns:
            Their places, from ⌊rank·count/P⌋ to ⌊(rank+1)·count/P⌋; none where there are fewer examples than workers.
        """
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def add_up(self, numbers: Sequence[float]) -> list[float]:
        """Σ over workers of each number, in float64: the same on every worker, to the last bit.

        Args:
            numbers: this worker's; as many on each.

        Returns:
            The sums.

        Raises:
            RuntimeError: if a worker does not take part; it is named where that is known.
        """
        added = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        self.wait(self.start_sum(added))
        return added.tolist()

    def start_sum(self, tensor: Tensor) -> dist.Work | None:
        """Begin to replace a tensor by its sum over workers; all workers begin their sums in the same order.

        Args:
            tensor: contiguous; it must be left alone until the sum is there.

        Returns:
            What to `wait` for; nothing where there is one worker.
        """
        if self.size == 1:
            return None
        with self.watched():
            work: dist.Work = dist.all_reduce(tensor, async_op=True)
        return work

    def wait(self, *works: dist.Work | None) -> None:
        """Wait until sums that were begun are there.

        Args:
            *works: what `start_sum` returned.

        Raises:
            RuntimeError: if a worker does not take part; it is named where that is known.
        """
        with self.watched():
            for work in works:
                if work is not None:
                    work.wait()

    def gather(self, text: str) -> list[str]:
        """What every worker says, known to every worker.

        Args:
            text: what this one says.

        Returns:
            One text for each worker, by rank.

        Raises:
            RuntimeError: if a worker does not take part; it is named where that is known.
        """
        if self.size == 1:
            return [text]
        said = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8).to(self.device)
        lengths = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
        with self.watched():
            dist.all_gather(lengths, torch.tensor([len(said)], device=self.device))
            longest = max(int(length) for length in lengths)
            padded = torch.zeros(longest, dtype=torch.uint8, device=self.device)
            padded[: len(said)] = said
            parts = [torch.zeros_like(padded) for _ in range(self.size)]
            dist.all_gather(parts, padded)
        texts = [bytes(part[: int(length)].tolist()) for part, length in zip(parts, lengths, strict=True)]
        return [said.decode().strip() if said == b" " else said.decode() for said in texts]

    def barrier(self) -> None:
        """Wait until every worker is here.

        Raises:
            RuntimeError: if one does not come within the time limit.
        """
        self.add_up([0.0])

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around an exchange: where it fails, the error names the worker that did not take part.

        Yields:
            Nothing.

        Raises:
            RuntimeError: if it fails.
        """
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError(f"worker {self.rank} of {self.size}: {self._silent()} ({_first_line(error)})") from error

    def _silent(self) -> str:
        """Who did not notice that something is wrong: all who wait say so in the store, a dead worker does not."""
        unknown = "an exchange between workers failed; which of them caused it is not known"
        if self._store is None:
            return unknown
        others = set(range(self.size)) - {self.rank}
        lost: list[RuntimeError] = []

        def ask() -> None:
            try:
                self._store.set(f"noticed/{self.rank}", "1")
                end = time.monotonic() + GRACE_SECONDS
                while others and time.monotonic() < end:
                    others.difference_update([r for r in others if self._store.check([f"noticed/{r}"])])
                    time.sleep(0.05)
            except RuntimeError as error:  # the store went with the process that kept it
                lost.append(error)

        # In a thread: behind a cut cable the store answers neither yes nor no, and its client waits without a limit.
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(GRACE_SECONDS + 1)
        if asking.is_alive():
            return "neither the others nor their store can be reached: this worker is cut off from them"
        if lost or not others:
            return unknown
        named = ", ".join(map(str, sorted(others)))
        return f"worker{'s' if len(others) > 1 else ''} {named} did not answer: stopped, ended or cut off"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@contextmanager
def workers(*, backend: str | None = None, timeout: float = 60.0, threads: int | None = None) -> Iterator[World]:
    """The workers that `torchrun` started, as one group; under plain `python`, this process alone.

    A group that exists already is used and left standing. Otherwise it is made here, all workers meet at the end, and
    it is taken down, also where an error ends the block.

    Args:
        backend: of torch.distributed; by default "nccl" where there is an accelerator for each worker, else "gloo".
        timeout: seconds after which a worker that does not answer is an error.
        threads: of torch's operations in this process; by default what OMP_NUM_THREADS says (torchrun sets it to 1),
            and an equal share of the processors where it says nothing.

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
            "Write `with vg.workers() as world:` around the run and hand over the world."
        )
    return World(device=_device(0))


def placement(environment: Mapping[str, str]) -> tuple[int, int, int] | None:
    """Rank, number of workers and local rank from torchrun's variables.

    Args:
        environment: of the process.

    Returns:
        (rank, P, local rank); None where the process was not started by torchrun.

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
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    world = World(rank=rank, size=size, device=device, _store=store)
    try:
        yield world
        world.barrier()  # without it, a worker that ends first may take down what others still read
    finally:
        dist.destroy_process_group()
