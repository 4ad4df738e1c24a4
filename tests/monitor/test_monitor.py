"""A monitor in the user's loop: what it may be given, what it refuses, and that it leaves no trace."""

import json
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from one_step import gram, last, moments
from variegrad import Monitor, Reading
from variegrad.monitor.schedule import Schedule


def net(dtype=torch.float64):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def classify(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def data(count=12, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=g, dtype=dtype), torch.randint(0, 3, (count,), generator=g)


class Tokens(nn.Module):
    """A language model in miniature, with positions and attention."""

    def __init__(self, vocabulary=7, width=8, length=5):
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.block = nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, x):
        return self.head(self.block(self.token(x) + self.place(torch.arange(x.shape[1]))))


def tokens(count=6):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randint(0, 7, (count, 5), generator=g), torch.randint(0, 7, (count, 5), generator=g)
    y[0, 2:] = y[3, 1] = -100
    return x, y


def step(monitor, model, batch, reduce=torch.mean):
    per_example = classify(model, batch)
    monitor.watch(per_example)
    reduce(per_example).backward()


# ---- a scalar loss with its output


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_ratio_of_a_scalar_loss_is_that_of_its_examples(reduction):
    model, batch = net(), data()
    monitor = Monitor(model, every=1, examples=64)
    for _ in range(2):
        logits = model(batch[0])
        loss = F.cross_entropy(logits, batch[1], reduction=reduction)
        monitor.watch(loss, output=logits)
        loss.backward()
    found, expected = last(monitor), moments(gram(model, classify, batch))
    assert found[0] / found[1] == pytest.approx(expected[0] / expected[1], rel=1e-9)
    assert monitor.latest.batch_size == 12


def test_a_mean_over_tokens_with_ignored_ones_is_one_of_sequences():
    torch.manual_seed(0)
    model, (x, y) = Tokens().double(), tokens()
    monitor = Monitor(model, every=1, examples=64)
    logits = model(x)
    loss = F.cross_entropy(logits.reshape(-1, 7), y.reshape(-1))
    monitor.watch(loss, output=logits)
    (65536 * loss / 4).backward()  # a loss scale, and accumulation

    def by_sequence(model, batch):
        return F.cross_entropy(model(batch[0]).transpose(1, 2), batch[1], reduction="none").sum(1)

    found, expected = last(monitor), moments(gram(model, by_sequence, (x, y)))
    assert found[0] / found[1] == pytest.approx(expected[0] / expected[1], rel=1e-9)
    assert "examples" in monitor.latest.source


def refused(match, make):
    model, batch = net(), data()
    monitor = Monitor(model, every=1)
    loss, output = make(model, batch)
    with pytest.raises(ValueError, match=match):
        monitor.watch(loss, output=output)
    loss.sum().backward()
    assert monitor.latest is None


def test_a_flattened_output_is_refused():
    def make(model, batch):
        out = model(batch[0].view(4, 3, 6)).view(-1, 3)
        return F.cross_entropy(out, batch[1]), out

    refused("flattened from shape", make)


def test_a_penalty_in_the_scalar_loss_is_refused():
    def make(model, batch):
        out = model(batch[0])
        return F.cross_entropy(out, batch[1]) + 0.1 * model[0].weight.square().sum(), out

    refused("depends on parameter .* directly.*weight_decay", make)


def test_an_output_of_another_forward_pass_is_refused():
    refused("not computed from `output`", lambda m, b: (F.cross_entropy(m(b[0]), b[1]), m(b[0])))


def test_a_loss_that_cannot_be_differentiated_twice_is_refused():
    def make(model, batch):
        out = model(batch[0])
        return F.multi_margin_loss(out, batch[1]), out

    refused("is not known.*differentiated twice", make)


@pytest.mark.parametrize(
    "loss",
    [
        lambda z: (z @ z.T).logsumexp(1).mean(),
        lambda z: (z - z.mean(0)).square().mean(),
        lambda z: (z[:, None] - z[None]).abs().sum(),
        lambda z: z.square().sum(1).max(),
        lambda z: z.square().sum(1).topk(3).values.mean(),
        lambda z: z.mean(0).abs().sum(),
    ],
    ids=["contrastive", "centred", "distances", "hardest", "mined", "kinked"],
)
def test_losses_that_compare_examples_are_refused(loss):
    def make(model, batch):
        out = model(batch[0])
        return loss(out), out

    refused("compares examples", make)


@pytest.mark.parametrize(
    "loss",
    [
        lambda z: z.square().mean(),
        lambda z: z.abs().sum(),
        lambda z: F.smooth_l1_loss(z, torch.zeros_like(z)),
        lambda z: z.relu().sum(1).mean(),
        lambda z: F.binary_cross_entropy_with_logits(z, torch.ones_like(z)),
        lambda z: z.max(1).values.sum(),
    ],
    ids=["squares", "absolute", "huber", "hinge", "logistic", "row maximum"],
)
def test_usual_losses_keep_examples_apart(loss):
    model, (x, _) = net(), data()
    monitor = Monitor(model, every=1, examples=64)
    out = model(x)
    total = loss(out)
    monitor.watch(total, output=out)
    total.backward()
    rows = gram(model, lambda m, b: torch.stack([loss(m(b[0][i : i + 1])) for i in range(12)]), (x,))
    found, expected = last(monitor), moments(rows)
    assert found[0] / found[1] == pytest.approx(expected[0] / expected[1], rel=1e-9)


# ---- arguments


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (TypeError, "floating-point tensor|Type-check", lambda m, b: (3.0, None)),
        (TypeError, "int64", lambda m, b: (b[1], None)),
        (ValueError, "without one.*between forward and backward", lambda m, b: (classify(m, b).detach(), None)),
        (ValueError, r"got shape \(\).*output=logits", lambda m, b: (classify(m, b).mean(), None)),
        (ValueError, r"got shape \(12, 3\)", lambda m, b: (m(b[0]), None)),
        (ValueError, "takes a scalar loss", lambda m, b: (classify(m, b), m(b[0]))),
        (TypeError, "output.logits|Type-check", lambda m, b: (classify(m, b).mean(), {"logits": 1})),
        (ValueError, "without a graph", lambda m, b: (classify(m, b).mean(), m(b[0]).detach())),
        (ValueError, "does not depend on any trained parameter", lambda m, b: (classify(net(), b), None)),
    ],
)
def test_what_cannot_be_watched_is_named(error, match, arguments):
    model, batch = net(), data()
    with pytest.raises(error, match=match):
        Monitor(model, every=1).watch(arguments(model, batch)[0], output=arguments(model, batch)[1])


@pytest.mark.parametrize(
    ("match", "settings"),
    [
        ("every must be at least 1", {"every": 0}),
        ("warm_up", {"warm_up": -1}),
        ("window must be at least 8", {"window": 4}),
        ("examples must be at least 2", {"examples": 1}),
        ("accumulate must be at least 1", {"accumulate": 0}),
        ("population", {"population": 1}),
        ("confidence", {"confidence": 1.0}),
    ],
)
def test_settings_out_of_range_are_named(match, settings):
    with pytest.raises(ValueError, match=match):
        Monitor(net(), **settings)


def test_the_schedule_is_denser_in_the_warm_up():
    schedule = Schedule(every=16, warm_up=32)
    due = [k for k in range(80) if schedule.due(k) == k]
    assert due == [*range(0, 32, 2), 32, 48, 64]
    assert [k for k in range(8) if Schedule(every=3, warm_up=0).due(k) == k] == [0, 3, 6]


def test_readings_come_on_schedule_and_carry_their_interval():
    model = net()
    monitor = Monitor(model, every=4, warm_up=0, population=1000)
    for k in range(48):
        step(monitor, model, data(seed=k))
        model.zero_grad()
    assert [r.step for r in monitor.history] == list(range(1, 48, 4))
    assert isinstance(monitor.latest, Reading)
    assert (monitor.latest.pooled_steps, monitor.latest.first_step) == (8, 17)
    assert monitor.history[6].cannot_tell
    assert math.isfinite(monitor.latest.low)


# ---- no trace


def hooks_left(losses):
    node, seen = [losses.grad_fn], set()
    while node:
        n = node.pop()
        if n is not None and n not in seen:
            seen.add(n)
            node += [child for child, _ in n.next_functions]
    return sum(len(getattr(n, "_backward_hooks", None) or {}) for n in seen)


def test_gradients_and_randomness_are_bit_equal_with_and_without():
    torch.manual_seed(5)
    x = torch.randn(12, 6)
    y = torch.randint(0, 3, (12,))

    def run(watched):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
        monitor = Monitor(model, every=1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for k in range(4):
            model[1].train(k % 2 == 0)
            per_example = classify(model, (x, y))
            if watched:
                monitor.watch(per_example)
            per_example.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert len(monitor.history) == 4 * watched
        return [*model.state_dict().values(), torch.get_rng_state()]

    assert all(torch.equal(a, b) for a, b in zip(run(True), run(False), strict=True))


def test_a_backward_pass_that_never_comes_or_fails_leaves_nothing_behind():
    model, batch = net(), data()
    monitor = Monitor(model, every=1, examples=64)
    step(monitor, model, batch)
    monitor.watch(classify(model, batch))  # and no backward
    per_example = classify(model, batch)
    monitor.watch(per_example)

    def fail(_):
        raise KeyError("the user's own")

    handle = model[0].weight.register_hook(fail)
    with pytest.raises(KeyError):
        per_example.mean().backward()
    handle.remove()
    model.zero_grad()
    step(monitor, model, batch)
    assert [r.step for r in monitor.history] == [1, 4]
    assert last(monitor) == pytest.approx(tuple(monitor.state_dict()["window"][0][-2:]))
    with monitor:
        monitor.watch(classify(model, batch))
    assert monitor._loop.waiting is None


def test_a_loop_of_autograd_grad_is_passed_over_and_a_kept_graph_read_once():
    model, batch = net(), data()
    monitor = Monitor(model, every=1, examples=64)
    per_example = classify(model, batch)
    monitor.watch(per_example)
    for loss in per_example:
        torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    assert monitor.latest is None
    per_example = classify(model, batch)
    monitor.watch(per_example)
    per_example.mean().backward(retain_graph=True)
    per_example.mean().backward()
    assert len(monitor.history) == 1
    assert last(monitor) == pytest.approx(moments(gram(model, classify, batch)), rel=1e-9)


def test_reading_is_before_clipping_and_without_what_grad_held():
    model, batch = net(), data()
    monitor = Monitor(model, every=1, examples=64)
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e3)
    step(monitor, model, batch)
    nn.utils.clip_grad_norm_(model.parameters(), 1e-9)
    assert last(monitor) == pytest.approx(moments(gram(model, classify, batch)), rel=1e-9)


def test_something_else_in_the_loss_is_noticed_and_refused():
    model, batch = net(), data()
    monitor = Monitor(model, every=1)
    per_example = classify(model, batch)
    monitor.watch(per_example)
    with pytest.warns(RuntimeWarning, match=r"something else was differentiated.*weight_decay"):
        (per_example.mean() + 0.1 * model[0].weight.square().sum()).backward()
    assert monitor.latest is None
    monitor = Monitor(model, every=1)  # one warning per kind and monitor
    hidden = model[1](model[0](batch[0]))
    per_example = F.cross_entropy(model[2](hidden), batch[1], reduction="none")
    monitor.watch(per_example)
    with pytest.warns(
        RuntimeWarning, match="another loss, computed from the same hidden values|something else was differ"
    ):
        (per_example.mean() + hidden.square().mean()).backward()
    assert monitor.latest is None


def test_a_penalty_that_begins_later_is_noticed_by_a_later_check():
    model, batch = net(), data()
    monitor = Monitor(model, every=1)
    for _ in range(3):
        step(monitor, model, batch)
        model.zero_grad()
    per_example = classify(model, batch)
    monitor.watch(per_example)
    with pytest.warns(RuntimeWarning, match=r"something else was differentiated.*weight_decay"):
        (per_example.mean() + 0.1 * sum(p.square().sum() for p in model.parameters())).backward()
    assert [reading.step for reading in monitor.history] == [1, 2, 3]


# ---- scale, overflow, state


def test_a_step_that_overflows_is_skipped_and_counted_and_training_goes_on():
    model, batch = net(torch.float32), data(dtype=torch.float32)
    monitor = Monitor(model, every=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=1000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for k in range(4):
        per_example = classify(model, batch) * (1e36 if k == 1 else 1)
        monitor.watch(per_example)
        scaler.scale(per_example.mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert monitor.latest.skipped == 1
    assert [r.step for r in monitor.history] == [1, 3, 4]
    assert scaler.get_scale() == 2.0**15


def test_the_loss_scale_cancels():
    model, batch = net(), data()
    plain, scaled = Monitor(model, every=1), Monitor(model, every=1)
    step(plain, model, batch)
    step(scaled, model, batch, lambda t: 2.0**16 * t.mean() / 4)
    assert last(plain) == pytest.approx(last(scaled), rel=1e-12)


def test_nan_losses_are_skipped():
    model, (x, y) = net(), data()
    monitor = Monitor(model, every=1)
    step(monitor, model, (x * math.nan, y))
    model.zero_grad()
    step(monitor, model, (x, y))
    assert monitor.latest.skipped == 1
    assert monitor.latest.step == 2


def test_a_resumed_run_reads_what_an_uninterrupted_one_does(tmp_path):
    def run(stop):
        model = net()
        monitor = Monitor(model, every=2, warm_up=0, log=tmp_path / f"{stop}.jsonl")
        for k in range(40):
            if k == stop:
                state = json.loads(json.dumps(monitor.state_dict()))
                monitor.close()
                monitor = Monitor(model, every=2, warm_up=0, log=tmp_path / f"{stop}.jsonl")
                monitor.load_state_dict(state)
            step(monitor, model, data(seed=k))
            model.zero_grad()
        monitor.close()
        return list(map(str, monitor.history))

    assert run(21) == run(None)
    assert len(json.dumps(Monitor(net()).state_dict())) < 1000
    with pytest.raises(ValueError, match="state must be"):
        Monitor(net()).load_state_dict({"calls": 1})


def test_accumulation_finds_its_place_again_after_a_short_step():
    model = net()
    monitor = Monitor(model, every=1, examples=64, accumulate=2)
    for sizes in ([4, 4], [4], [4, 4], [4, 4]):  # the second step ends early, as an epoch may
        for k, size in enumerate(sizes):
            per_example = classify(model, data(size, seed=k))
            monitor.watch(per_example)
            (per_example.mean() / 2).backward()
        model.zero_grad()
    expected = moments(gram(model, classify, tuple(map(torch.cat, zip(data(4, 0), data(4, 1), strict=True)))))
    assert [r.batch_size for r in monitor.history] == [8, 8, 8]
    for *_, product, norm in monitor.state_dict()["window"]:
        assert (product, norm) == pytest.approx(expected, rel=1e-9)


def test_undeclared_accumulation_is_named():
    model, batch = net(), data(4)
    monitor = Monitor(model, every=1, accumulate=2)
    for _ in range(5):
        step(monitor, model, batch)
    with pytest.warns(RuntimeWarning, match="accumulated over more micro-batches"):
        step(monitor, model, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(monitor, model, batch)  # said once


def test_re_entrant_checkpoints_are_refused():
    from torch.utils.checkpoint import checkpoint

    model, (x, y) = net(), data()
    x = x.requires_grad_()
    per_example = F.cross_entropy(checkpoint(model, x, use_reentrant=True), y, reduction="none")
    with pytest.raises(ValueError, match="use_reentrant=False"):
        Monitor(model, every=1).watch(per_example)
