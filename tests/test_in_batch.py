"""Losses that depend on the rest of the batch are never cut in silence; sums take one copy to the host per batch."""

import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from variegrad import measure
from variegrad.per_example.state import Generators


def advantages(model, batch):
    seen, action, advantage = batch
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    return -model(seen).log_softmax(1).gather(1, action[:, None])[:, 0] * advantage


def in_batch_weights(model, batch):
    seen, action, weight = batch
    return F.cross_entropy(model(seen), action, reduction="none") * weight.abs() / weight.abs().sum()


def alone(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 3))
    model.eval()
    return model, TensorDataset(
        torch.randn(64, 5), torch.randint(0, 3, (64,)), torch.randn(64) + torch.linspace(-2, 2, 64)
    )


@pytest.mark.parametrize("losses", [advantages, in_batch_weights])
@pytest.mark.parametrize("chunk_size", [32, 7, 2])
@pytest.mark.parametrize("training", [False, True])
def test_chunks_that_change_the_losses_are_refused_with_both_values(problem, losses, chunk_size, training) -> None:
    model, data = problem
    model.train(training)
    whole = data[:]
    state = torch.get_rng_state()
    with pytest.raises(
        ValueError, match=rf"chunk_size={chunk_size} would change.*is \S+ in a batch.*and \S+ in a batch of"
    ):
        measure(model, losses, [whole], chunk_size=chunk_size)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training is training


@pytest.mark.parametrize("losses", [advantages, in_batch_weights])
def test_a_data_set_that_is_cut_here_warns_and_the_users_own_batches_do_not(problem, losses) -> None:
    model, data = problem
    with pytest.warns(UserWarning, match=r"is \S+ in a batch of 16 examples and \S+ in a batch of 8.*batch_size=16"):
        cut = measure(model, losses, data, batch_size=16).batch_size_bound
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measure(model, losses, DataLoader(data, batch_size=16)).batch_size_bound == pytest.approx(cut)


@pytest.mark.parametrize("training", [False, True])
def test_losses_of_their_own_are_cut_without_a_word_dropout_or_not(problem, training) -> None:
    model, data = problem
    model.train(training)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for chunk_size in (None, 32, 5, 1):
            measure(model, alone, data, batch_size=20, chunk_size=chunk_size)


def test_losses_that_draw_at_random_in_evaluation_mode_too_are_not_accused(problem) -> None:
    model, data = problem
    noisy = lambda m, b: alone(m, b) * torch.rand(len(b[0]))  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(model, noisy, data, batch_size=20, chunk_size=4)


class Reads(TorchDispatchMode):
    """How often the host waits for a value of a tensor."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **kwargs or {})


def test_the_sums_of_a_pass_read_nothing_one_by_one(problem, monkeypatch) -> None:
    from variegrad.accumulation import Accumulation

    model, data = problem
    measure(model, alone, data, batch_size=16)
    counts, add = [], Accumulation.add

    def counted(self, norms):
        with Reads() as reads:
            add(self, norms)
        counts.append(reads.count)

    monkeypatch.setattr(Accumulation, "add", counted)
    measure(model, alone, data, batch_size=16)
    assert counts == [0, 0, 0, 0]  # one `tolist` per batch is a copy, not a read of a single value


@pytest.mark.parametrize("batches", [1, 8, 9, 20])
def test_sums_of_many_batches_are_those_of_one(problem, batches) -> None:
    model, data = problem
    whole = measure(model.double(), lambda m, b: alone(m, (b[0].double(), b[1])), data, batch_size=64)
    size = -(-64 // batches)
    found = measure(model.float(), alone, data, batch_size=size)
    assert found.sq_norm_of_sum == pytest.approx(whole.sq_norm_of_sum, rel=1e-5)
    assert found.sum_sq_norms == pytest.approx(whole.sum_sq_norms, rel=1e-5)


def test_a_sparse_table_has_a_sparse_sum() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3))
    dense = nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(8, 3))
    dense.load_state_dict(model.state_dict())
    batches = [(torch.randint(50, (6, 2)), torch.randint(3, (6,))) for _ in range(10)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found, expected = measure(model, alone, batches), measure(dense, alone, batches)
    assert found.sum_sq_norms == pytest.approx(expected.sum_sq_norms, rel=1e-6)
    assert found.sq_norm_of_sum == pytest.approx(expected.sq_norm_of_sum, rel=1e-6)


FIRST = torch.device("cuda", 0)


@pytest.mark.parametrize("devices", [1, 2])
def test_the_generator_of_every_device_is_rewound(monkeypatch, devices) -> None:
    states = {torch.device("cuda", 0): torch.tensor([5]), torch.device("cuda", 1): torch.tensor([7])}

    class Module:
        @staticmethod
        def device_count():
            return devices

        @staticmethod
        def get_rng_state(device=FIRST):
            return states[device].clone()

        @staticmethod
        def set_rng_state(state, device=FIRST):
            states[device] = state

    class Spread(nn.Module):
        def parameters(self, recurse=True):
            return [SimpleNamespace(device=torch.device("cuda", k)) for k in range(devices)]

        def buffers(self, recurse=True):
            return [torch.zeros(1)]

    monkeypatch.setattr(torch, "get_device_module", lambda _: Module)
    before = torch.get_rng_state()
    kept = Generators(Spread(), Spread())
    torch.rand(3)
    for device in list(states)[:devices]:
        states[device] = torch.tensor([0])
    kept.restore()
    assert torch.equal(torch.get_rng_state(), before)
    assert [int(states[torch.device("cuda", k)]) for k in range(devices)] == [5, 7][:devices]
