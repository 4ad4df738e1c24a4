"""Who takes part in an exchange, asked through the group's store if something is wrong, and only then.

A worker that is only slow is waited for: it says in the store that it is alive.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

GRACE_SECONDS = 3.0  # how long those who noticed a failure wait for the others to say that they did too
LONGEST = timedelta(minutes=30)  # that a worker that is alive is waited for
BITS = 60  # workers per word of a roll call
NAMED = 8  # how many workers a message names

log = logging.getLogger("variegrad")


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
            What is wrong; None if those that are missing are alive, so that waiting continues.
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
            return "every worker is waiting, but the exchange makes no progress: the network between them may be cut"
        if dead := [rank for rank in missing if self._beats.get(rank) == self._alive(rank)]:
            return f"{_named(dead)} did not answer: stopped, ended or cut off"
        if not self._told and next(rank for rank in range(self.size) if rank not in missing) == self.rank:
            log.warning(
                "%s kept the others waiting for %.0f s and is alive: waiting continues, for at most %.0f minutes.",
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


def _named(ranks: Sequence[int]) -> str:
    more = f" and {len(ranks) - NAMED} more" if len(ranks) > NAMED else ""
    return f"worker{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:NAMED]))}{more}"
