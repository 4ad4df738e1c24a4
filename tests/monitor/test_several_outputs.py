"""A scalar loss of several outputs (policy and value, detection heads, auxiliary losses) is that of its examples."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from one_step import gram, last, moments
from variegrad import Monitor


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x):
        hidden = torch.tanh(self.trunk(x))
        return hidden, self.first(hidden), self.second(hidden)


def data(count=12):
    draw = torch.Generator().manual_seed(1)
    return torch.randn(count, 6, generator=draw, dtype=torch.float64), torch.randint(0, 3, (count,), generator=draw)


def policy_and_value(model, batch):
    _, logits, value = model(batch[0])
    return (logits, value), F.cross_entropy(logits, batch[1], reduction="none") + value.flatten().square()


def with_values_of_one_dimension(model, batch):
    _, logits, value = model(batch[0])
    value = value.flatten()
    return (logits, value), F.cross_entropy(logits, batch[1], reduction="none") + 0.5 * F.huber_loss(
        value, batch[0][:, 0], reduction="none"
    )


def with_a_penalty_on_hidden_values(model, batch):
    hidden = torch.tanh(model.trunk(batch[0]))
    twice = hidden * 2
    logits = model.first(hidden)
    return (logits, twice), F.cross_entropy(logits, batch[1], reduction="none") + twice.abs().sum(1)


def two_forwards_of_one_model(model, batch):
    (_, a, _), (_, b, _) = model(batch[0]), model(batch[0].flip(1))
    return (a, b), F.cross_entropy(a, batch[1], reduction="none") + (a - b).square().sum(1)


@pytest.mark.parametrize(
    "make", [policy_and_value, with_values_of_one_dimension, with_a_penalty_on_hidden_values, two_forwards_of_one_model]
)
@pytest.mark.parametrize("kind", [list, tuple])
def test_the_ratio_of_a_step_is_that_of_the_loop(make, kind):
    torch.manual_seed(0)
    model, batch = Heads().double(), data()
    monitor = Monitor(model, every=1, examples=64)
    for _ in range(3):
        outputs, losses = make(model, batch)
        loss = losses.mean()
        monitor.watch(loss, output=kind(outputs))
        loss.backward()
        model.zero_grad()
        found, expected = last(monitor), moments(gram(model, lambda m, b: make(m, b)[1], batch))
        assert found[0] / found[1] == pytest.approx(expected[0] / expected[1], rel=1e-8)
        model.zero_grad()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)


def nested(model, batch):
    hidden, logits, _ = model(batch[0])
    return (hidden, logits), F.cross_entropy(logits, batch[1]) + hidden.square().mean()


def of_different_lengths(model, batch):
    _, logits, value = model(batch[0])
    return (logits, value[:5]), F.cross_entropy(logits, batch[1]) + value[:5].square().mean()


def one_is_not_in_the_loss(model, batch):
    _, logits, value = model(batch[0])
    return (logits, value), F.cross_entropy(logits, batch[1])


def one_is_missing(model, batch):
    _, logits, value = model(batch[0])
    return (logits,), F.cross_entropy(logits, batch[1]) + value.square().mean()


def compares_across_outputs(model, batch):
    _, logits, value = model(batch[0])
    return (logits, value), F.cross_entropy(logits, batch[1]) + (value * logits.mean()).mean()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nested, "computed from another"),
        (of_different_lengths, r"same examples in their first dimension; got \[12, 5\] rows"),
        (one_is_not_in_the_loss, "not in the loss's graph"),
        (one_is_missing, "depends on parameter 'second.* directly"),
        (compares_across_outputs, "compares examples"),
    ],
)
def test_outputs_that_do_not_keep_examples_apart_are_refused(make, message):
    torch.manual_seed(0)
    model, batch = Heads().double(), data()
    outputs, loss = make(model, batch)
    with pytest.raises(ValueError, match=message):
        Monitor(model, every=1).watch(loss, output=outputs)


class TimeFirst(nn.Module):
    """Outputs (T, b, 3) or, of one value per position, (T, b); with recurrence or attention over T."""

    def __init__(self, kind, wide):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.wide = kind, wide
        self.mix = {
            "lstm": lambda: nn.LSTM(4, 8), "gru": lambda: nn.GRU(4, 8), "rnn": lambda: nn.RNN(4, 8),
            "attention": lambda: nn.MultiheadAttention(4, 2), "convolution": lambda: nn.Conv1d(4, 8, 3, padding=1),
        }[kind]()  # fmt: skip
        self.head = nn.Linear(4 if kind == "attention" else 8, 3 if wide else 1)

    def forward(self, x):
        if self.kind == "convolution":
            hidden = self.mix(x.permute(1, 2, 0)).permute(2, 0, 1)
        else:
            hidden = self.mix(x, x, x)[0] if self.kind == "attention" else self.mix(x)[0]
        found = self.head(hidden)
        return found if self.wide else found.squeeze(-1)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn", "attention", "convolution"])
def test_positions_are_not_taken_for_examples(kind, wide, accumulate):
    model = TimeFirst(kind, wide)
    x = torch.randn(5, 8, 4)
    out = model(x)
    target = torch.randn_like(out)
    with pytest.raises(ValueError, match="depend on each other through the model"):
        Monitor(model, every=1, accumulate=accumulate).watch((out - target).square().mean(), output=out)
    batch_first = model(x).transpose(0, 1)
    monitor = Monitor(model, every=1)
    loss = (batch_first - target.transpose(0, 1)).square().mean()
    monitor.watch(loss, output=batch_first)
    loss.backward()
    assert monitor.latest.batch_size == 8
