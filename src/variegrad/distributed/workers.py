"""Workers: the same script under `python`, where there is one, and under `torchrun`, where there are P in one group.

torch.distributed is the engine: gloo between processors, NCCL between accelerators. Whatever a worker decides about the
course of a run travels with the exchange of that step, so that all decide the same, and no worker waits for one that
has stopped. A worker that is only slow is waited for: it says in the group's store that it is alive.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

WANTED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
GRACE_SECONDS = 3.0  # how long those who noticed a failure wait for the others to say that they did too
LONGEST = timedelta(minutes=30)  # that a worker that is alive is waited for
BITS = 60  # workers per word of a roll call
NAMED = 8  # how many workers a message names

log = logging.getLogger("variegrad")


@dataclass(eq=False, kw_only=True)
class World:
    """The workers of a run, as one of them sees it.

    Attributes:
        rank: the number of this worker, from 0.
        size: P, how many there are.
        device: where this worker computes: put the model there.
        stop_requested: whether this worker requested that the run stop (`request_stop`); `train` clears it when it has.
        group: of torch.distributed; None for the group of all.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    stop_requested: bool = False
    group: Any = field(default=None, repr=False)
    _roll: RollCall | None = field(default=None, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this is worker 0: the one that prints and writes files."""
        return self.rank == 0

    def request_stop(self) -> None:
        """Request that the run stop: the next update tells the others, all stop after it. Safe in a signal handler."""
        self.stop_requested = True

    def share(self, count: int) -> range:
        """This worker's part of `count` examples: parts differ by one at most and together are all of them.

        Args:
            count: how many examples all workers share.

        Returns:
            Their places, from ⌊rank·count/P⌋ to ⌊(rank+1)·count/P⌋; none if there are fewer examples than workers.
        """
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def add_up(self, numbers: Sequence[float]) -> list[float]:
        """Σ over workers of each number, in float64: the same on every worker, to the last bit.

        Args:
            numbers: this worker's; as many on each.

        Returns:
            The sums.

        Raises:
            RuntimeError: if a worker does not take part; it is named if that is known.
        """
        added = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        self.wait(self.start_sum(added))
        return added.tolist()

    def extremes(self, numbers: Sequence[int]) -> list[tuple[int, int]]:
        """The least and the greatest over workers of each number: one message of twice as many numbers.

        Args:
            numbers: this worker's, between −2⁶³ and 2⁶³; as many on each.

        Returns:
            (least, greatest) of each, the same on every worker.

        Raises:
            RuntimeError: if a worker does not take part; it is named if that is known.
        """
        both = torch.tensor([*numbers, *(-number for number in numbers)], dtype=torch.int64, device=self.device)
        self.wait(self._start(lambda: dist.all_reduce(both, dist.ReduceOp.MAX, group=self.group, async_op=True)))
        greatest, least = both.view(2, -1).tolist()
        return [(-low, high) for low, high in zip(least, greatest, strict=True)]

    def start_sum(self, tensor: Tensor) -> dist.Work | None:
        """Begin to replace a tensor by its sum over workers; all workers begin their sums in the same order.

        Args:
            tensor: contiguous; it must be left alone until the sum is there.

        Returns:
            What to `wait` for; nothing if there is one worker.
        """
        return self._start(lambda: dist.all_reduce(tensor, group=self.group, async_op=True))

    def broadcast(self, tensor: Tensor, source: int = 0) -> None:
        """Replace a tensor by that of one worker.

        Args:
            tensor: contiguous, of the same shape and type on every worker.
            source: whose numbers all get.

        Raises:
            RuntimeError: if a worker does not take part; it is named if that is known.
        """
        at, flat = self.in_default_group(source), tensor.detach().reshape(-1).view(torch.uint8)
        self.wait(self._start(lambda: dist.broadcast(flat, at, group=self.group, async_op=True)) if len(flat) else None)

    def tell(self, text: str, source: int = 0) -> str:
        """What one worker says, known to every worker.

        Args:
            text: what this one would say.
            source: whose text all get.

        Returns:
            The text of that worker.

        Raises:
            RuntimeError: if a worker does not take part; it is named if that is known.
        """
        said = torch.frombuffer(bytearray(text.encode() + b" "), dtype=torch.uint8)
        length = torch.tensor([len(said)], device=self.device)
        self.broadcast(length, source)
        heard = said.to(self.device) if self.rank == source else said.new_empty(int(length), device=self.device)
        self.broadcast(heard, source)
        return heard.cpu().numpy().tobytes()[:-1].decode()

    def first_words(self, text: str | None) -> tuple[int, str] | None:
        """What the first of the workers that have something to say says; one number travels if none has.

        Args:
            text: what this one says; None for nothing.

        Returns:
            (worker, its text), the same on every worker; None if no worker has a text.

        Raises:
            RuntimeError: if a worker does not take part; it is named if that is known.
        """
        if self.size == 1:
            return None if text is None else (0, text)
        ((first, _),) = self.extremes([self.size if text is None else self.rank])
        return None if first == self.size else (first, self.tell(text or "", first))

    def barrier(self) -> None:
        """Wait until every worker is here.

        Raises:
            RuntimeError: if one does not come and is not alive.
        """
        self.add_up([0.0])

    def in_default_group(self, rank: int) -> int:
        """A worker's number in the group of all, which torch's messages ask for.

        Args:
            rank: its number here.

        Returns:
            Its number there.
        """
        return rank if self.group is None or self.size == 1 else dist.get_global_rank(self.group, rank)

    def carry_out(self, exchange: Callable[[], None]) -> None:
        """Make an exchange of several messages, and wait for it as a whole as `wait` does.

        Args:
            exchange: begins messages and waits for them.

        Raises:
            RuntimeError: if a worker does not take part; it is named if that is known.
        """
        if self.size == 1:
            return
        with self.watched():
            if self._roll is None or self.device.type != "cpu":
                exchange()
            else:  # gloo ends a connection at which a message was waited for too long: no such wait is cut
                self._wait(InThread(exchange))

    def wait(self, *works: dist.Work | None) -> None:
        """Wait until exchanges that were begun are there; a worker that is slow but alive is waited for.

        Args:
            *works: what `start_sum` returned.

        Raises:
            RuntimeError: if a worker does not take part; it is named if that is known.
        """
        with self.watched():
            for work in works:
                if work is not None:
                    self._wait(work)

    def _start(self, begin: Callable[[], dist.Work | None]) -> dist.Work | None:
        if self.size == 1:
            return None
        with self.watched():
            return begin()

    def _wait(self, work: dist.Work | InThread) -> None:
        roll = self._roll
        if roll is None or self.device.type != "cpu":  # NCCL's works are waited for by the device
            work.wait()
            return
        while not _arrived(work, 0.75 * roll.timeout):
            cut_off = roll.ask_for_missing()
            if _arrived(work, 0.25 * roll.timeout):
                break
            if trouble := cut_off or roll.trouble_with_missing():
                raise RuntimeError(trouble)
        roll.moved()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around an exchange: if it fails, the error names the worker that did not take part.

        Yields:
            Nothing.

        Raises:
            RuntimeError: if it fails.
        """
        try:
            yield
        except RuntimeError as error:
            known = self._roll is not None and self._roll.trouble == str(error)
            silent = "an exchange between workers failed; which of them caused it is not known"
            if self._roll is not None and not known:
                silent = self._roll.call_silent() or silent
            said = str(error) if known else f"{silent} ({_first_line(error)})"
            raise RuntimeError(f"worker {self.rank} of {self.size}: {said}") from error


class InThread:
    """An exchange in a thread, which is waited for as torch's works are.

    Args:
        exchange: the whole of it.
    """

    def __init__(self, exchange: Callable[[], None]) -> None:
        self._exchange = exchange
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._exchange()
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._error = error

    def is_completed(self) -> bool:
        """Whether it has ended, also by an error."""
        return not self._thread.is_alive()

    def wait(self, limit: timedelta | None = None) -> None:
        """Wait until it has ended.

        Args:
            limit: at most so long.

        Raises:
            RuntimeError: if it goes on after that.
        """
        self._thread.join(None if limit is None else limit.total_seconds())
        if self._thread.is_alive():
            raise RuntimeError("the exchange goes on")
        if self._error is not None:
            raise self._error


class RollCall:
    """Who takes part, asked through the group's store when something is wrong, and only then.

    Every question costs a worker a few requests, whatever P is: those who are there set a bit each, and one reads the
    words of all. A worker that has not completed an exchange for half the time limit says now and then that it lives.

    Args:
        store: of the group, with keys of its own for each attempt.
        rank: of this worker.
        size: P.
        timeout: seconds of silence after which a worker is asked for.
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: float) -> None:
        self.store, self.rank, self.size, self.timeout = store, rank, size, timeout
        self.trouble: str | None = None
        self._exchanges, self._last = 0, time.monotonic()
        self._noticed, self._told, self._signed = False, False, ""
        self._beats: dict[int, int] = {}
        self._ended = threading.Event()
        threading.Thread(target=self._say_alive, daemon=True).start()

    def meet(self) -> None:
        """Wait until every worker is here, before the group is made.

        Raises:
            RuntimeError: if some do not come within the time limit: which.
        """
        if self._sign("met") == self.size:
            self.store.set("met/all", "1")
        try:
            self.store.wait(["met/all"], timedelta(seconds=self.timeout))
        except RuntimeError as error:
            raise RuntimeError(
                f"worker {self.rank} of {self.size}: {_named(self._missing('met'))} did not come within "
                f"{self.timeout:g} s. Start every worker with the same address, port and number of workers."
            ) from error

    def moved(self) -> None:
        """An exchange was completed."""
        self._exchanges, self._last = self._exchanges + 1, time.monotonic()

    def end(self) -> None:
        """Say no more."""
        self._ended.set()

    def ask_for_missing(self) -> str | None:
        """Well before the time limit: note who does not wait as this worker does, and how often they have said so.

        Returns:
            Why the store could not be reached; None if it could.
        """
        self.trouble = self._asked(self._ask_for_missing)
        return self.trouble

    def trouble_with_missing(self) -> str | None:
        """At the time limit: who keeps the others waiting, and whether it is alive.

        Returns:
            What is wrong; None if those that are missing are alive, so that waiting goes on.
        """
        self.trouble = self._asked(self._judge_missing)
        return self.trouble

    def call_silent(self) -> str | None:
        """After an exchange failed: who did not notice.

        Returns:
            Who; None if that is not known.
        """
        return self._asked(self._find_silent)

    def _ask_for_missing(self) -> None:
        key = f"waiting/{self._exchanges}"
        if self._signed != key:
            self._signed, self._told = key, False
            self._sign(key)
        self._until(lambda: self._count(key) == self.size, min(GRACE_SECONDS, self.timeout / 10))
        self._beats = {rank: self._alive(rank) for rank in self._missing(key)[:NAMED]}

    def _judge_missing(self) -> str | None:
        missing = self._missing(f"waiting/{self._exchanges}")
        if not missing:
            return "every worker waits, and the exchange does not move: the network between them may be cut"
        if dead := [rank for rank in missing if self._beats.get(rank) == self._alive(rank)]:
            return f"{_named(dead)} did not answer: stopped, ended or cut off"
        if not self._told and next(rank for rank in range(self.size) if rank not in missing) == self.rank:
            log.warning(
                "%s kept the others waiting for %.0f s and is alive: waiting goes on, for at most %.0f minutes.",
                _named(missing), self.timeout, LONGEST.total_seconds() / 60,
            )  # fmt: skip
        self._told = True
        return None

    def _find_silent(self) -> str | None:
        if not self._noticed:
            self._noticed = True
            self._sign("noticed")
        if self._until(lambda: self._count("noticed") == self.size, GRACE_SECONDS):
            return None
        return f"{_named(self._missing('noticed'))} did not answer: stopped, ended or cut off"

    def _asked(self, question: Callable[[], str | None]) -> str | None:
        """In a thread: behind a cut cable the store answers neither yes nor no, and its client waits forever."""
        answers: list[str | None] = []

        def ask() -> None:
            with suppress(RuntimeError):  # the store went with the process that kept it
                answers.append(question())

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(GRACE_SECONDS + 1)
        if asking.is_alive():
            return "neither the others nor their store can be reached: this worker is cut off from them"
        if answers:
            return answers[0]
        return "the store of the group has gone, and with it the worker or the torchrun that kept it"

    def _sign(self, key: str) -> int:
        self.store.add(f"{key}/{self.rank // BITS}", 1 << self.rank % BITS)
        return int(self.store.add(f"{key}/count", 1))

    def _count(self, key: str) -> int:
        return int(self.store.add(f"{key}/count", 0))

    def _missing(self, key: str) -> list[int]:
        words = [int(self.store.add(f"{key}/{word}", 0)) for word in range(-(-self.size // BITS))]
        return [rank for rank in range(self.size) if not words[rank // BITS] >> rank % BITS & 1]

    def _alive(self, rank: int) -> int:
        return int(self.store.add(f"alive/{rank}", 0))

    def _until(self, true: Callable[[], bool], seconds: float) -> bool:
        end, pause = time.monotonic() + seconds, 0.02
        while not (found := true()) and time.monotonic() < end:
            time.sleep(pause)
            pause = min(2 * pause, 0.5)
        return found

    def _say_alive(self) -> None:
        while not self._ended.wait(self.timeout / 40):
            if time.monotonic() - self._last > self.timeout / 2:
                with suppress(RuntimeError):
                    self.store.add(f"alive/{self.rank}", 1)


def _arrived(work: dist.Work | InThread, seconds: float) -> bool:
    try:
        work.wait(timedelta(seconds=seconds))
    except RuntimeError:
        if not work.is_completed():
            return False
        work.wait()  # it failed, which raises again, or was done at the last moment
    return True


def _named(ranks: Sequence[int]) -> str:
    more = f" and {len(ranks) - NAMED} more" if len(ranks) > NAMED else ""
    return f"worker{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:NAMED]))}{more}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@contextmanager
def workers(*, backend: str | None = None, timeout: float = 60.0, threads: int | None = None) -> Iterator[World]:
    """The workers that `torchrun` started, as one group; under plain `python`, this process alone.

    A group that exists already is used and left standing. Otherwise it is made here, all workers meet at the end, and
    it is taken down, also where an error ends the block.

    Args:
        backend: of torch.distributed; by default "nccl" where there is an accelerator for each worker, else "gloo".
        timeout: seconds after which a worker that does not answer is an error. One that is slow (it saves, reads, or is
            in the caller's loop) but alive is waited for, up to 30 minutes, and named.
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
            "Write `with vg.workers() as world:` around the run and pass the world."
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
