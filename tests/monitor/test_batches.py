"""Batches whose order means something, or whose members belong together; and what a step costs in host reads."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cases import CASES
from one_step import gram, moments
from variegrad import Monitor


def losses(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def population(count, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 12, generator=g, dtype=torch.float64)
    return x * torch.randn(count, 1, generator=g).double().mul(0.5).exp(), torch.randint(0, 3, (count,), generator=g)


def net():
    torch.manual_seed(1)
    return nn.Linear(12, 3).double()


ORDERS = {
    "as drawn": lambda norm: torch.arange(len(norm)),
    "longest first": lambda norm: norm.argsort(descending=True),
    "shortest first": lambda norm: norm.argsort(),
    "alternating": lambda norm: torch.stack([norm.argsort()[:16], norm.argsort()[16:].flip(0)], 1).flatten(),
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_examples_that_are_looked_at_stand_for_all_whatever_the_order_of_a_batch(order):
    """The mean of M̂² over 200 draws of 4 of 32 examples is that of all, within four standard errors."""
    model, (x, y) = net(), population(120)
    monitor = Monitor(model, every=1, examples=4, window=200)
    for step in range(200):
        at = torch.randint(0, len(x), (32,), generator=torch.Generator().manual_seed(step))
        at = at[ORDERS[order](x[at].norm(dim=1))]
        per_example = losses(model, (x[at], y[at]))
        monitor.watch(per_example)
        per_example.mean().backward()
        model.zero_grad()
    found = torch.tensor([row[-1] for row in monitor.state_dict()["window"]], dtype=torch.float64)
    truth = float(gram(model, losses, (x, y)).diagonal().mean())
    assert abs(float(found.mean()) - truth) < 4 * float(found.std()) / 200**0.5


def test_more_examples_are_looked_at_if_their_norms_differ_much():
    model = net()
    sizes = {}
    for spread in (0.1, 2.0):
        monitor = Monitor(model, every=1, window=32)
        for step in range(60):
            g = torch.Generator().manual_seed(step)
            x = torch.randn(128, 12, generator=g).double() * torch.randn(128, 1, generator=g).double().mul(spread).exp()
            per_example = losses(model, (x, torch.randint(0, 3, (128,), generator=g)))
            monitor.watch(per_example)
            per_example.mean().backward()
            model.zero_grad()
        sizes[spread] = monitor.latest.examples
    assert sizes[0.1] <= 16
    assert sizes[2.0] >= 48


@pytest.mark.parametrize("scalar", [False, True])
@pytest.mark.parametrize("groups", ["k", "ids in order", "ids in any order", "uneven ids"])
def test_a_group_is_the_unit(groups, scalar):
    """(Û, M̂²) of the sums over groups, by the definition."""
    model, (x, y) = net(), population(12)
    ids = {
        "k": torch.arange(12) // 3, "ids in order": torch.arange(12) // 3,
        "ids in any order": torch.tensor([3, 1, 2, 0, 1, 3, 2, 0, 0, 3, 1, 2]),
        "uneven ids": torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3]),
    }[groups]  # fmt: skip
    monitor = Monitor(model, every=1, examples=64, groups=3 if groups == "k" else None, window=200)
    told = None if groups == "k" else ids
    steps = 1 if groups in ("k", "ids in order") else 200  # a sign probe is right on average
    for _ in range(steps):
        out = model(x)
        if scalar:
            loss = F.cross_entropy(out, y)
            monitor.watch(loss, output=out, groups=told)
        else:
            per_example = losses(model, (x, y))
            monitor.watch(per_example, groups=told)
            loss = per_example.mean()
        loss.backward()
        model.zero_grad()
    k = gram(model, losses, (x, y))
    of = F.one_hot(ids).double().T
    expected = torch.tensor(moments(of @ k @ of.T), dtype=torch.float64) * (1 / 144 if scalar else 1)
    found = torch.tensor([row[-2:] for row in monitor.state_dict()["window"]], dtype=torch.float64)
    error = found.std(0) / steps**0.5 if steps > 1 else torch.zeros(2)
    assert bool(((found.mean(0) - expected).abs() <= 4 * error + 1e-9 * expected[1]).all())
    reading = monitor.latest
    assert (reading.batch_size, reading.unit, reading.group_size) == (4, "groups", 3)
    assert reading.in_examples().batch_size == 12
    assert reading.in_examples().high == 3 * reading.high


@pytest.mark.parametrize(
    ("groups", "match"),
    [(torch.arange(3), "one whole number per example"), (torch.rand(12), "float")],
)
def test_groups_that_do_not_fit_are_named(groups, match):
    model, batch = net(), population(12)
    with pytest.raises(ValueError, match=match):
        Monitor(model, every=1).watch(losses(model, batch), groups=groups)
    with pytest.raises(ValueError, match="whole groups of 5"):
        Monitor(model, every=1, groups=5).watch(losses(model, batch))


def run(draw, learning_rate, seed):
    """What a monitor says of a training whose batches are drawn by `draw`."""
    torch.manual_seed(seed)
    x, y = torch.randn(2000, 12), torch.randint(0, 3, (2000,))
    model = nn.Linear(12, 3)
    monitor = Monitor(model, every=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(30):
            at = draw(step)
            per_example = losses(model, (x[at] + 0.05 * torch.randn(len(at), 12), y[at]))
            monitor.watch(per_example)
            per_example.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return [str(w.message) for w in said if "Monitor(groups=k)" in str(w.message)]


@pytest.mark.parametrize("learning_rate", [0.0, 0.1, 1.0])
def test_dependent_batches_are_noticed_and_independent_ones_are_not(learning_rate):
    def sort(at):
        return at[torch.randn(2000, generator=torch.Generator().manual_seed(0))[at].argsort()]

    draws = {
        "independent": lambda _: torch.randint(0, 2000, (64,)),
        "in order": lambda _: sort(torch.randint(0, 2000, (64,))),
        "two copies": lambda _: torch.randint(0, 2000, (32,)).repeat(2),
        "chunks of two": lambda _: torch.randint(0, 2000, (32,)).repeat_interleave(2),
        "chunks of four": lambda _: torch.randint(0, 2000, (16,)).repeat_interleave(4),
    }
    counts = {name: sum(bool(run(draw, learning_rate, seed)) for seed in range(2)) for name, draw in draws.items()}
    assert counts == {
        "independent": 0, "in order": 0, "two copies": 2, "chunks of two": 2, "chunks of four": 2,
    }  # fmt: skip
    (said,) = run(draws["two copies"], 0.0, 0)
    assert "32 positions apart" in said
    assert "Monitor(groups=k)" in said


WAITS = {"_local_scalar_dense", "nonzero", "_unique2", "unique_consecutive", "unique_dim", "equal", "masked_select"}


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a device."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name.split("::")[1] in WAITS:
            self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["conv_stack", "mlp", "linear_bias", "resnet_like"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_watched_step_is_read_once_and_others_never(name, accumulate, monkeypatch):
    found = [case for case in CASES if case.name == name]
    case = found[0] if found else CASES[0]
    model, function, batch = case.make()
    monitor = Monitor(model, every=2, warm_up=0, accumulate=accumulate)
    reads = Reads()
    tolist = torch.Tensor.tolist

    def counted(tensor):
        reads.count += 1
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    counts = []
    for _ in range(12):
        reads.count = 0
        for _ in range(accumulate):
            per_example = function(model, batch)
            with reads:
                monitor.watch(per_example)
                per_example.mean().backward()
        counts.append(reads.count)
        model.zero_grad()
    assert counts[2::2] == [1] * 5  # also with a check, which the 2nd and 4th reading have
    assert counts[1::2] == [0] * 6
