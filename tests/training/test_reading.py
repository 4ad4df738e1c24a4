"""Batches do not depend on who reads them: here, or readers in processes of their own."""

import random
import signal
from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import variegrad as vg
from variegrad.training import Cadence, Epochs, Evaluation, Phases, Position, Stream
from variegrad.training.reading import outlive_requests_to_end, reader, readers

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))


def noise_of(kind):
    return {
        "none": lambda: 0.0, "torch": lambda: float(torch.randn(())), "random": random.random,
        "numpy": lambda: float(np.random.standard_normal()),  # noqa: NPY002
        "now and then": lambda: float(torch.randn(())) if random.random() < 0.3 else 0.0,
    }[kind]  # fmt: skip


class Augmented(Dataset):
    def __init__(self, kind="torch", together=False):
        self.kind = kind
        if together:
            self.__getitems__ = lambda indices: [self[i] for i in indices]

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i] + noise_of(self.kind)(), X[i].sum()


def losses(model, batch):
    return (model(batch[0]).squeeze(1) - batch[1]) ** 2


def model():
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def config(**changes):
    return vg.TrainConfig(**{"batch_size": 7, "step_size": 0.01, "passes": 2, "seed": 4, **changes})


def trained(data, settings=None, **options):
    net = model()
    updates = list(vg.train(net, losses, data, settings or config(), **options))
    bounds = [update.bound and update.bound.batch_size_bound for update in updates]
    return torch.cat([p.detach().flatten() for p in net.parameters()]), [u.mean_loss for u in updates], bounds


KINDS = ("none", "torch", "random", "numpy", "now and then")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("together", [False, True])
def test_what_a_sample_draws_depends_on_its_number_alone(kind, together):
    """Read in any cut, after any other reading: sample ℓ is the same, and global generators are left alone."""
    numbers = torch.tensor([3, 5, 3, 8, 1, 0])
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    whole = reader(Augmented(kind, together), 9)(numbers, 100)
    for cut in (1, 2, 5):
        read = reader(Augmented(kind, together), 9)
        last, first = read(numbers[cut:], 100 + cut), read(numbers[:cut], 100)
        assert torch.equal(torch.cat([first[0], last[0]]), whole[0])
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    if kind != "none":  # drawn anew for another sample of the run
        assert not torch.equal(reader(Augmented(kind, together), 9)(numbers, 200)[0], whole[0])


SETTINGS = {
    "with replacement": config(), "epochs": config(sampling=Epochs()),
    "phases": Phases({0: config(), 21: config(batch_size=10)}),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", ["none", "now and then"])
def test_a_run_with_readers_is_the_run_without(name, kind):
    options = {
        "bound_every": Cadence(updates=3),
        "evaluation": Evaluation(accuracy=losses, data=Augmented("none"), every=Cadence(updates=4)),
    }
    alone = trained(Augmented(kind), SETTINGS[name], **options)
    before = torch.get_rng_state()
    found = trained(Augmented(kind), SETTINGS[name], **options, readers=2)
    assert torch.equal(found[0], alone[0])
    assert found[1:] == alone[1:]
    assert torch.equal(torch.get_rng_state(), before)


def test_tensors_are_sliced_and_read_alike():
    data = TensorDataset(X, X.sum(1))
    assert torch.equal(trained(data)[0], trained(Augmented("none"))[0])
    assert torch.equal(trained(data, readers=1)[0], trained(data)[0])


def test_a_collate_function_makes_the_batch():
    def doubled(examples):
        return torch.stack([2 * x for x, _ in examples]), torch.stack([2 * y for _, y in examples])

    expected = trained(TensorDataset(2 * X, 2 * X.sum(1)))[0]
    assert torch.equal(trained(Augmented("none"), collate_fn=doubled)[0], expected)
    assert torch.equal(trained(TensorDataset(X, X.sum(1)), collate_fn=doubled)[0], expected)
    assert torch.equal(trained(Augmented("none"), collate_fn=doubled, readers=1)[0], expected)


def masked(examples):
    """As a language model's collator: it draws for the batch as a whole."""
    x, y = zip(*examples, strict=True)
    return torch.stack(x) * (torch.rand(len(x), 3) < 0.8), torch.stack(y)


@pytest.mark.parametrize("kind", ["none", "torch"])
def test_what_a_collate_function_draws_depends_on_the_first_sample_alone(kind):
    torch.manual_seed(1)
    alone = trained(Augmented(kind), collate_fn=masked)
    torch.manual_seed(2)
    assert torch.equal(trained(Augmented(kind), collate_fn=masked, readers=2)[0], alone[0])
    assert not torch.equal(trained(Augmented(kind))[0], alone[0])


class Broken(Augmented):
    def __getitem__(self, i):
        if i == 17:
            raise OSError("sector 17")
        return super().__getitem__(i)


@pytest.mark.parametrize("count", [0, 1])
def test_an_error_of_the_data_set_reaches_the_caller(count):
    with pytest.raises(OSError, match="sector 17"):
        trained(Broken("none"), readers=count)


def test_readers_end_with_the_run_also_if_it_is_left():
    import multiprocessing

    before = set(multiprocessing.active_children())
    run = vg.train(model(), losses, Augmented(), config(passes=float("inf")), readers=2)
    assert len(list(islice(run, 3))) == 3
    assert len(set(multiprocessing.active_children()) - before) == 2
    run.close()
    assert not set(multiprocessing.active_children()) - before


def test_readers_outlive_the_signals_that_reach_a_whole_job():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        outlive_requests_to_end(0)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert 0 < signal.alarm(0) <= 30  # and then they end, unless they have been ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_negative_number_of_readers_is_refused():
    with pytest.raises(ValueError, match="readers must be a number of processes, not negative; got -1"):
        vg.train(model(), losses, Augmented(), config(), readers=-1)


def test_readers_may_be_more_than_the_parts():
    parts = [(torch.tensor([1, 2]), 0)]
    with readers(Augmented("none"), 0, iter(parts), 1) as read:
        assert torch.equal(read(*parts[0])[0], X[[1, 2]])


# --- data without end ---


class Endless(Dataset):
    """Sample ℓ is made when it is asked for."""

    def __getitem__(self, number):
        x = torch.randn(3, generator=torch.Generator().manual_seed(number))
        return x, x.sum()


def test_a_stream_reads_each_number_once_in_order():
    seen = []

    class Noting(Endless):
        def __getitem__(self, number):
            seen.append(number)
            return super().__getitem__(number)

    settings = config(sampling=Stream(), passes=float("inf"))
    updates = list(islice(vg.train(model(), losses, Noting(), settings), 5))
    assert seen == list(range(35))
    assert [u.examples for u in updates] == [7, 14, 21, 28, 35]
    assert all(u.passes < 1e-12 for u in updates)


@pytest.mark.parametrize("count", [0, 1])
def test_a_stream_is_resumed_by_its_position(count):
    settings = config(sampling=Stream(per_pass=28), passes=2)
    whole = model()
    rows = list(vg.train(whole, losses, Endless(), settings, bound_every=Cadence(passes=1)))
    assert [bool(u.bound) for u in rows] == [False, False, False, True] * 2
    parts = model()
    for update in islice(vg.train(parts, losses, Endless(), settings, readers=count), 3):
        at = update.position
    assert at == Position(examples=21, updates=3)
    list(vg.train(parts, losses, Endless(), settings, start=at, readers=count))
    assert torch.equal(whole.weight, parts.weight)


def test_a_stream_has_no_passes_of_its_own():
    with pytest.raises(ValueError, match="a stream has no passes: take passes=inf, or"):
        vg.train(model(), losses, Endless(), config(sampling=Stream()))
    with pytest.raises(ValueError, match="per_pass must be at least 1 sample; got 0"):
        Stream(per_pass=0)
