"""B_D in the norm of the optimizer in use: moments of √P·g by the slow loop, on every source that serves."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim

from one_step import last, moments
from reference import loop_gradients
from variegrad import Monitor
from variegrad.estimators.dual_norm import dual_norm_estimate, sum_of, terms_of_groups
from variegrad.estimators.geometry import Sign, Spectral


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def data(step, count=12):
    draw = torch.Generator().manual_seed(step)
    return torch.randn(count, 6, generator=draw, dtype=torch.float64), torch.randint(0, 3, (count,), generator=draw)


def losses(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


# The root of P, from the optimizer's own formula, as the slow obvious version.
ROOTS = {
    "Adam": (lambda p: optim.Adam(p, 0.01, eps=1e-3), lambda s, g: s["exp_avg_sq"] / (1 - 0.999 ** float(s["step"]))),
    "AdamW": (lambda p: optim.AdamW(p, 0.01, eps=1e-3), lambda s, g: s["exp_avg_sq"] / (1 - 0.999 ** float(s["step"]))),
    "amsgrad": (
        lambda p: optim.Adam(p, 0.01, eps=1e-3, amsgrad=True),
        lambda s, g: s["max_exp_avg_sq"] / (1 - 0.999 ** float(s["step"])),
    ),
    "RMSprop": (lambda p: optim.RMSprop(p, 0.01, eps=1e-3), lambda s, g: s["square_avg"]),
    "Adagrad": (lambda p: optim.Adagrad(p, 0.01, eps=1e-3), lambda s, g: s["sum"]),
}


def expected(model, optimizer, moment, batch, cells):
    rows = loop_gradients(model, losses, batch)
    named = dict(model.named_parameters())
    scaled = []
    for name, g in rows.items():
        second = moment(optimizer.state[named[name]], None)
        scaled.append((g / (second.sqrt() + 1e-3).sqrt()).flatten(1))
    flat = torch.cat(scaled, 1)
    gram, n = flat @ flat.T, len(flat)
    if cells == 1:
        return moments(gram)
    b = n // cells
    within = sum(float(gram[j * b : j * b + b, j * b : j * b + b].sum()) for j in range(cells))
    product = (float(gram.sum()) - within) / (n**2 - cells * b**2)
    return product, (within - (cells * b**2 - n) * product) / n


@pytest.mark.parametrize("kind", ROOTS)
def test_micro_batches_are_measured_in_the_norm_of_the_optimizer(kind):
    make, moment = ROOTS[kind]
    model = net()
    optimizer = make(model.parameters())
    monitor = Monitor(model, every=1, accumulate=3, optimizer=optimizer)
    for step in range(4):
        batch = data(step)
        optimizer.zero_grad()
        for k in range(3):
            part = losses(model, tuple(t[4 * k : 4 * k + 4] for t in batch))
            monitor.watch(part)
            (part.mean() / 3).backward()
        if step == 0:
            assert monitor.latest is None, "there is no second moment yet"
        else:
            kept = [p.grad.clone() for p in model.parameters()]
            assert last(monitor) == pytest.approx(expected(model, optimizer, moment, batch, 3), rel=1e-7)
            for p, g in zip(model.parameters(), kept, strict=True):
                p.grad = g
            assert monitor.latest.geometry == type(optimizer).__name__.lower()
        optimizer.step()


def test_one_micro_batch_is_measured_by_a_sign_probe_that_is_right_on_average():
    model = net()
    optimizer = optim.AdamW(model.parameters(), lr=0.0, eps=1e-3)
    monitor = Monitor(model, every=1, optimizer=optimizer, window=400)
    batch = data(0)
    found = []
    for _ in range(300):
        optimizer.zero_grad()
        per_example = losses(model, batch)
        monitor.watch(per_example)
        per_example.mean().backward()
        optimizer.step()  # by a learning rate of 0: v̂ settles, weights stay
        found.append(last(monitor) if monitor.latest else None)
    assert monitor.latest.source == "sign probe"
    _, true = expected(model, optimizer, ROOTS["AdamW"][1], batch, 1)
    # 250 probes of relative deviation below 0.5 each: five standard errors.
    assert sum(norm for _, norm in found[50:]) / 250 == pytest.approx(true, rel=0.16)


def test_plain_sgd_is_measured_as_without_an_optimizer():
    model = net()
    one, other = Monitor(model, every=1), Monitor(model, every=1, optimizer=optim.SGD(model.parameters(), 0.1))
    for monitor in (one, other):
        per_example = losses(model, data(0))
        monitor.watch(per_example)
        per_example.mean().backward()
        model.zero_grad()
    assert str(one.latest) == str(other.latest)
    assert other.latest.geometry == "euclidean"


class SignSGD(optim.SGD):
    pass


class Lion(optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1, "betas": (0.9, 0.99)})


class Muon(optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})


@pytest.mark.parametrize("accumulate", [1, 3, 8])
@pytest.mark.parametrize(("make", "geometry"), [(SignSGD, Sign()), (Lion, Sign()), (Muon, Spectral())])
def test_dual_norms_are_bracketed_from_the_folds_of_a_step(make, geometry, accumulate):
    model, per = net(), -(-8 // accumulate)
    monitor = Monitor(model, every=1, accumulate=accumulate, optimizer=make(model.parameters()))
    covered = [name for name, p in model.named_parameters() if geometry.covers(p)]
    steps = []
    for step in range(3):
        means, sizes = [], []
        for micro in range(accumulate):
            batch = data(10 * step + micro, 32)
            rows = loop_gradients(model, losses, batch)
            means += [{name: rows[name][f::per].mean(0) for name in covered} for f in range(per)]
            sizes += [len(range(f, 32, per)) for f in range(per)]
            per_example = losses(model, batch)
            monitor.watch(per_example)
            (per_example.mean() / accumulate).backward()
        model.zero_grad()
        steps += [terms_of_groups(geometry, torch.stack([m[name] for m in means]), sizes) for name in covered]
    expected = dual_norm_estimate(sum_of(steps), geometry=geometry, count=32 * accumulate)
    latest = monitor.latest
    assert (latest.batch_size_bound, latest.high) == pytest.approx((expected.plug_in, expected.high), rel=1e-6)
    assert latest.low == latest.lower_confidence_bound == pytest.approx(max(1, expected.low), rel=1e-6)
    assert (latest.step, latest.first_step, latest.batch_size) == (3, 1, 32 * accumulate)
    resumed = Monitor(model, every=1, accumulate=accumulate, optimizer=make(model.parameters()))
    resumed.load_state_dict(json.loads(json.dumps(monitor.state_dict())))
    assert resumed.state_dict()["window"] == monitor.state_dict()["window"]


def test_a_dual_norm_leaves_the_training_alone():
    model = net()
    monitor = Monitor(model, every=1, optimizer=SignSGD(model.parameters()))
    for watch in (False, True):
        per_example = losses(model, data(0, 32))
        if watch:
            monitor.watch(per_example)
        per_example.mean().backward()
        found = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        kept = found if not watch else kept
    assert all(map(torch.equal, kept, found))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (optim.LBFGS, TypeError, "LBFGS"),
        (lambda p: optim.Adam(list(p)[:2]), ValueError, "does not update parameter '2.weight'"),
    ],
)
def test_a_norm_that_cannot_be_read_is_refused_at_the_start(make, error, message):
    model = net()
    with pytest.raises(error, match=message):
        Monitor(model, optimizer=make(model.parameters()))
