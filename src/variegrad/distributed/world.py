"""The workers of a run, as one of them sees it: its share of a batch, sums over all, and what one says to the others.

Whatever a worker decides about the course of a run travels with the exchange of that step, so that all decide the same,
and no worker waits for one that has stopped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from variegrad.distributed.roll_call import RollCall


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
            RuntimeError: if it is still running after that.
        """
        self._thread.join(None if limit is None else limit.total_seconds())
        if self._thread.is_alive():
            raise RuntimeError("the exchange is still running")
        if self._error is not None:
            raise self._error


def _arrived(work: dist.Work | InThread, seconds: float) -> bool:
    try:
        work.wait(timedelta(seconds=seconds))
    except RuntimeError:
        if not work.is_completed():
            return False
        work.wait()  # it failed, which raises again, or was done at the last moment
    return True


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
