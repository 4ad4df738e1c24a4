"""What a worker sends in an update, by count: one message per step, whatever P is, and the bytes of the gradient.

Packed sums are a tree of ⌈log₂ P⌉ messages.
"""

import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import TensorDataset

from cases import classify
from variegrad import DropConnect, Langevin, Quantize, TrainConfig, shared_gradient, train
from variegrad.distributed import payloads, wire
from variegrad.distributed.exchange import VOTES
from variegrad.distributed.world import World
from variegrad.training import Skip


@pytest.fixture(params=[2, 64, 1024])
def size(request):
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=request.param)
    yield request.param
    dist.destroy_process_group()


@pytest.fixture
def sent(monkeypatch):
    """Bytes of each collective."""
    found = []

    def noting(original):
        def noted(first, *arguments, **named):
            found.append(first.nbytes if isinstance(first, torch.Tensor) else len(first))
            return original(first, *arguments, **named)

        return noted

    for name in ("all_reduce", "broadcast", "all_gather"):
        monkeypatch.setattr(dist, name, noting(getattr(dist, name)))
    return found


def run_of(size, make, width=256, **settings):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(4 * size, 64), torch.arange(4 * size) % 10)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    config = TrainConfig(batch_size=2 * size, step_size=1e-4, passes=math.inf, **settings)
    return make(model, classify, data, config, World(rank=0, size=size)), sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("make", [train, shared_gradient])
@pytest.mark.parametrize(
    "settings",
    [{}, {"mechanism": DropConnect(0.5)}, {"mechanism": Quantize()}, {"mechanism": Langevin(0.1)},
     {"when_not_finite": Skip(at_most=3)}],
    ids=str,
)  # fmt: skip
def test_an_update_is_one_message_of_the_gradient_and_the_votes(size, sent, make, settings):
    run, parameters = run_of(size, make, **settings)
    next(run)  # and what is compared once
    sent.clear()
    for _ in range(3):
        next(run)
    assert sent == [4 * (parameters + VOTES)] * 3
    run.close()


def test_buckets_of_25_megabytes_are_filled(size, sent):
    run, parameters = run_of(size, train, width=100_000)
    next(run)
    sent.clear()
    next(run)
    assert sum(sent) == 4 * (parameters + VOTES)
    assert len(sent) <= 1 + math.ceil(4 * parameters / (25 * 2**20))
    run.close()


def test_a_run_that_has_ended_leaves_no_hook(size):
    run, _ = run_of(size, train)
    next(run)
    model = run.gi_frame.f_locals["self"].model
    run.close()
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


# --- packed sums ---


def simulated(size):
    """The payloads that each of P workers holds after all rounds, and how many messages each has sent."""
    places = [{0: rank} for rank in range(size)]  # place → whose payload
    schedule = [payloads.rounds(rank, size) for rank in range(size)]
    assert len({len(rounds) for rounds in schedule}) == 1
    for number in range(len(schedule[0])):
        before = [dict(each) for each in places]
        for rank in range(size):
            to, source, held, count = schedule[rank][number]
            assert schedule[to][number][1] == rank  # who is sent to waits for this worker
            assert len(before[rank]) == held
            places[rank] |= {held + j: before[source][j] for j in range(count)}
    return places, len(schedule[0])


@pytest.mark.parametrize("size", [*range(1, 40), 64, 100, 127, 128, 129, 1000, 1024])
def test_every_worker_has_every_payload_after_as_many_messages_as_p_has_doublings(size):
    places, messages = simulated(size)
    assert messages == math.ceil(math.log2(size))
    for rank, held in enumerate(places):
        assert held == {place: (rank + place) % size for place in range(size)}


@pytest.fixture
def echo(monkeypatch):
    """A network in which every other worker has a gradient of zero; bytes of each message of worker 0."""
    found = []

    def answered(moves):
        receive, send = moves
        held = send.tensor.shape[0]
        _, _, _, number, *_, step, elements, _, _ = wire.HEADER.unpack_from(send.tensor[0].numpy().tobytes())
        for place, row in enumerate(receive.tensor):
            zero = torch.zeros(elements, dtype=wire.DTYPES[number])
            payload = wire.encode(zero, step=step, sender=receive.peer + place)
            row.copy_(torch.frombuffer(bytearray(payload.ljust(len(row), b"\0")), dtype=torch.uint8))
        found.append(send.tensor.nbytes)
        assert receive.op is dist.irecv
        assert send.op is dist.isend
        assert held <= receive.peer
        return []

    monkeypatch.setattr(dist, "batch_isend_irecv", answered)
    return found


def test_packed_sums_are_a_tree_of_messages(size, sent, echo):
    run, parameters = run_of(size, train, width=15_000, mechanism=Quantize(), granularity="worker")
    next(run)
    for _ in range(2):
        sent.clear()
        echo.clear()
        next(run)
        assert sent == [payloads.ANNOUNCED_BYTES, 8 * VOTES]
        assert len(echo) == math.ceil(math.log2(size))
        longest = echo[0]
        assert sum(echo) == longest * (size - 1)
        assert longest < 40 + 4 + 2 * 1.1 * parameters**0.5 + 2 * parameters / 2**15
    run.close()


@pytest.mark.parametrize("size", [64, 1024], indirect=True)
def test_packed_sums_never_send_more_than_a_dense_one(size, sent, echo):
    run, parameters = run_of(size, train, mechanism=Quantize(), granularity="worker")  # small: reading would cost more
    next(run)
    sent.clear()
    next(run)
    assert not echo
    assert sent == [payloads.ANNOUNCED_BYTES, 4 * (parameters + VOTES)]
    run.close()


def test_which_workers_have_nothing_to_add_is_asked_in_numbers_of_52_workers(size, sent):
    said = payloads.announce(None, World(rank=0, size=size))
    assert said.absent == (0,)
    assert sent == [payloads.ANNOUNCED_BYTES, 8 * -(-size // payloads.BITS)]
