"""Who takes part is asked through the store: the number of requests of a worker does not grow with the others."""

import logging
import threading
import time

import pytest
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from variegrad.distributed.agreement import agree, failing_together
from variegrad.distributed.roll_call import BITS, RollCall
from variegrad.distributed.world import World


class Store:
    """A store in memory that counts what it is asked."""

    def __init__(self):
        self.values, self.requests, self.lock = {}, 0, threading.Lock()

    def add(self, key, amount):
        with self.lock:
            self.requests += 1
            self.values[key] = self.values.get(key, 0) + amount
            return self.values[key]

    def set(self, key, value):
        self.values[key] = value

    def wait(self, keys, timeout):
        end = time.monotonic() + timeout.total_seconds()
        while not all(key in self.values for key in keys):
            if time.monotonic() > end:
                raise RuntimeError("wait timeout")
            time.sleep(0.01)


def signed(store, key, ranks, size):
    for rank in ranks:
        RollCall._sign(type("Other", (), {"store": store, "rank": rank})(), key)
    return size


@pytest.fixture
def roll():
    made = []

    def make(size, *, present, key, timeout=1.0, rank=0):
        store = Store()
        signed(store, key, present, size)
        made.append(RollCall(store, rank, size, timeout))
        store.requests = 0
        return made[-1]

    yield make
    for each in made:
        each.end()


LOST = {
    "one": (8, [5], "worker 5 did not answer"),
    "the last of many": (1024, [1023], "worker 1023 did not answer"),
    "across words": (200, [59, 60, 61, 119], "workers 59, 60, 61, 119 did not answer"),
    "half": (64, list(range(1, 64, 2)), "workers 1, 3, 5, 7, 9, 11, 13, 15 and 24 more did not answer"),
}


@pytest.mark.parametrize("case", LOST)
def test_who_did_not_notice_a_failure_is_named_with_few_requests(roll, case, monkeypatch):
    monkeypatch.setattr("variegrad.distributed.roll_call.GRACE_SECONDS", 0.2)
    size, lost, message = LOST[case]
    found = roll(size, present=[r for r in range(1, size) if r not in lost], key="noticed")
    assert found.call_silent().startswith(message)
    assert found.store.requests < 15 + size / BITS + 1  # not one for each worker, 20 times a second


def test_if_all_noticed_nobody_is_named(roll):
    assert roll(9, present=range(1, 9), key="noticed").call_silent() is None


@pytest.mark.parametrize("size", [3, 1024])
def test_a_worker_that_is_alive_is_waited_for_and_one_that_is_not_is_named(roll, size, caplog):
    found = roll(size, present=[r for r in range(1, size) if r != 2], key="waiting/0")
    with caplog.at_level(logging.WARNING, "variegrad"):
        found.ask_for_missing()
        found.store.add("alive/2", 1)  # it says so
        assert found.trouble_with_missing() is None
        found.ask_for_missing()
        assert found.trouble_with_missing() == "worker 2 did not answer: stopped, ended or cut off"
    assert caplog.text.count("worker 2 kept the others waiting for 1 s and is alive") == 1


def test_an_exchange_that_does_not_move_although_all_wait_is_an_error(roll):
    found = roll(4, present=[1, 2, 3], key="waiting/0")
    found.ask_for_missing()
    assert "every worker is waiting, but the exchange makes no progress" in found.trouble_with_missing()


def test_a_worker_that_exchanges_nothing_for_long_says_that_it_is_alive(roll):
    found = roll(2, present=[], key="x", timeout=0.2)
    time.sleep(0.05)
    found.moved()
    assert "alive/0" not in found.store.values
    end = time.monotonic() + 20
    while "alive/0" not in found.store.values and time.monotonic() < end:
        time.sleep(0.01)
    assert found.store.values["alive/0"] >= 1


def test_workers_that_do_not_come_are_named_before_the_group_is_made(roll):
    found = roll(4, present=[1, 3], key="met", timeout=0.1)
    with pytest.raises(RuntimeError, match=r"worker 0 of 4: worker 2 did not come within 0\.1 s\. Start every worker"):
        found.meet()


# --- what is said while all is well ---


@pytest.mark.parametrize("size", [2, 1024])
def test_agreement_and_blocks_that_fail_together_say_the_same_few_numbers_for_any_number_of_workers(size, monkeypatch):
    """By torch's fake process group, which answers every call at once."""
    said = []
    all_reduce = dist.all_reduce
    monkeypatch.setattr(
        dist, "all_reduce", lambda tensor, *a, **k: (said.append(tensor.numel()), all_reduce(tensor, *a, **k))[1]
    )
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        world = World(rank=0, size=size)
        agree(world, {f"parameter {n}": "x" * 100 for n in range(1000)})
        assert said == [2]
        with failing_together(world):
            pass
        assert said == [2, 2]
    finally:
        dist.destroy_process_group()
