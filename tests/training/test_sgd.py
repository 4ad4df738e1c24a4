"""`train` is w ← Π_W(w − γ·Σ m(∇f_i)) over batches in an order that is a function of (seed, position)."""

import copy
import math
from dataclasses import replace
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

import variegrad as vg
from variegrad.training import (
    Ball,
    Cadence,
    Epochs,
    Evaluation,
    Phases,
    Position,
    Skip,
    TrainConfig,
    Update,
    WithReplacement,
    train,
)
from variegrad.training.reading import reader


def losses(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def right(model, batch):
    return (model(batch[0]).argmax(1) == batch[1]).double()


def model(dropout=0.0):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, 3)).double()


def dataset(n=11):
    generator = torch.Generator().manual_seed(4)
    return TensorDataset(torch.randn(n, 4, generator=generator).double(), torch.arange(n) % 3)


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def run(net, updates, data=None, loss=losses, evaluation=None, bound_every=None, start=0, **changes):
    options = {"evaluation": evaluation, "bound_every": bound_every, "start": start}
    options |= {"skipped": changes.pop("skipped")} if "skipped" in changes else {}
    config = TrainConfig(**{"batch_size": 4, "step_size": 0.05, "passes": math.inf, "seed": 1, **changes})
    return list(islice(train(net, loss, dataset() if data is None else data, config, **options), updates))


# --- equation (2) ---


def by_hand(net, batches, step_size=0.05, radius=math.inf):
    """The oracle: single examples' gradients, one after the other."""
    x, y = dataset().tensors
    for indices in batches:
        total = [torch.zeros_like(p) for p in net.parameters()]
        for i in indices:
            gradient = torch.autograd.grad(losses(net, (x[i : i + 1], y[i : i + 1])).sum(), list(net.parameters()))
            total = [t + g for t, g in zip(total, gradient, strict=True)]
        with torch.no_grad():
            for p, t in zip(net.parameters(), total, strict=True):
                p.sub_(step_size * t)
            if (norm := weights(net).norm()) > radius:
                for p in net.parameters():
                    p.mul_(radius / norm)
    return weights(net)


def test_epochs_visit_each_example_once_with_a_short_last_batch():
    net = model()
    records = run(net, 7, sampling=Epochs())
    batches = [Epochs().batch(1, 11 * epoch + start, 4, 11) for epoch in range(3) for start in (0, 4, 8)][:7]
    assert [r.examples for r in records] == [4, 8, 11, 15, 19, 22, 26]
    assert [r.updates for r in records] == list(range(1, 8))
    assert records[2].passes == 1
    torch.testing.assert_close(weights(net), by_hand(model(), batches), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("projection", "radius"), [(None, math.inf), (Ball(1.7), 1.7)])
def test_draws_with_replacement_are_the_default(projection, radius):
    net = model()
    run(net, 7, projection=projection)
    batches = [WithReplacement().batch(1, 4 * k, 4, 11) for k in range(7)]
    torch.testing.assert_close(weights(net), by_hand(model(), batches, radius=radius), rtol=1e-13, atol=1e-15)


def test_the_mean_loss_is_that_of_the_batch_before_the_update():
    before = model()
    drawn = WithReplacement().batch(1, 0, 4, 11)
    expected = losses(before, tuple(c[drawn] for c in dataset().tensors)).mean()
    assert run(model(), 1)[0].mean_loss == pytest.approx(float(expected.detach()), rel=1e-14)


def test_it_equals_torch_s_own_sgd_on_the_summed_loss():
    net, other, data = model(), model(), dataset()
    run(net, 3, sampling=Epochs())
    optimizer = torch.optim.SGD(other.parameters(), lr=0.05)
    for start in (0, 4, 8):
        x, y = (column[Epochs().batch(1, start, 4, 11)] for column in data.tensors)
        optimizer.zero_grad()
        losses(other, (x, y)).sum().backward()
        optimizer.step()
    torch.testing.assert_close(weights(net), weights(other), rtol=1e-14, atol=0)


@pytest.mark.parametrize("granularity", ["example", "worker"])
@pytest.mark.parametrize("mechanism", [vg.DropConnect(0.4), vg.Langevin(0.1), vg.Quantize()], ids=str)
def test_with_a_mechanism_it_is_backward_and_a_step(mechanism, granularity):
    net, other = model(), model()
    run(net, 3, mechanism=mechanism, granularity=granularity)
    for step in range(3):
        other.zero_grad()
        drawn = WithReplacement().batch(1, 4 * step, 4, 11)
        batch = tuple(c[drawn] for c in dataset().tensors)
        vg.backward(other, losses, batch, mechanism=mechanism, seed=1, samples_seen=4 * step, granularity=granularity)
        with torch.no_grad():
            for p in other.parameters():
                p.sub_(0.05 * p.grad)
    torch.testing.assert_close(weights(net), weights(other), rtol=1e-14, atol=0)


# --- a run is a function of its settings and of where it is ---


@pytest.mark.parametrize("sampling", [WithReplacement(), Epochs()], ids=str)
def test_the_run_is_a_function_of_the_seed_alone(sampling):
    first, again, other = model(0.5), model(0.5), model(0.5)
    run(first, 8, sampling=sampling)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    run(again, 8, sampling=sampling)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights(first), weights(again))
    run(other, 8, sampling=sampling, seed=2)
    assert not torch.equal(weights(first), weights(other))


@pytest.mark.parametrize("mechanism", [None, vg.DropConnect(0.4)], ids=str)
@pytest.mark.parametrize("sampling", [WithReplacement(), Epochs()], ids=str)
def test_a_run_can_be_continued_anywhere(sampling, mechanism):
    whole, parts = model(0.5 if mechanism is None else 0.0), model(0.5 if mechanism is None else 0.0)
    settings = {"sampling": sampling, "mechanism": mechanism}
    expected = run(whole, 8, **settings)
    kept = run(parts, 5, **settings)[-1]
    found = run(parts, 3, start=kept.position, **settings)
    assert torch.equal(weights(whole), weights(parts))
    assert [(r.updates, r.examples, r.mean_loss) for r in found] == [
        (r.updates, r.examples, r.mean_loss) for r in expected[5:]
    ]


class Noisy(Dataset):
    """Each reading draws anew."""

    def __len__(self):
        return 11

    def __getitem__(self, i):
        x, y = dataset()[i]
        return x + torch.randn(4).double(), y


def test_augmentation_is_drawn_afresh_for_each_sample_and_the_same_in_each_run():
    first, again = model(), model()
    seen = []

    def watched(net, batch):
        seen.append(batch[0])
        return losses(net, batch)

    run(first, 6, data=Noisy(), loss=watched)
    torch.manual_seed(99)
    run(again, 6, data=Noisy())
    assert torch.equal(weights(first), weights(again))
    assert len({tuple(row.tolist()) for batch in seen for row in batch}) == 24


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: Subset(d, range(11))], ids=["alone", "subset"])
def test_augmentation_does_not_depend_on_how_a_batch_is_shared(wrap):
    indices = torch.tensor([3, 1, 4, 1, 5])
    whole, _ = reader(wrap(Noisy()), 0)(indices, 70)
    for first, last in ((0, 2), (2, 5)):
        part, _ = reader(wrap(Noisy()), 0)(indices[first:last], 70 + first)
        assert torch.equal(part, whole[first:last])
    assert not torch.equal(whole[1], whole[3])  # one example, two samples


def test_examples_that_are_read_together_are_read_once_where_nothing_is_drawn():
    asked = []

    class Together(Dataset):
        def __len__(self):
            return 11

        def __getitems__(self, indices):
            asked.append(indices)
            return [dataset()[i] for i in indices]

    run(model(), 3, data=Together())
    assert [len(indices) for indices in asked] == [4, 4, 4]


def test_any_data_set_and_frozen_parameters():
    class Examples(Dataset):
        def __len__(self):
            return 11

        def __getitem__(self, i):
            return dataset()[i]

    class Together(Examples):
        def __getitems__(self, indices):
            return [dataset()[i] for i in indices]

    class Doubled(TensorDataset):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return 2 * x, y

    nets = [model() for _ in range(3)]
    for net in nets:
        net[0].requires_grad_(False)
    untouched = copy.deepcopy(nets[0][0].weight)
    for net, data in zip(nets, (None, Examples(), Together()), strict=True):
        run(net, 4, data=data)
        assert torch.equal(weights(nets[0]), weights(net))
        assert torch.equal(net[0].weight, untouched)
        assert all(p.grad is None for p in net.parameters())
    doubled, plain = model(), model()
    run(doubled, 1, data=Doubled(*dataset().tensors))
    run(plain, 1, data=TensorDataset(2 * dataset().tensors[0], dataset().tensors[1]))
    assert torch.equal(weights(doubled), weights(plain))


def test_sparse_gradients_and_unused_parameters():
    net = nn.ModuleDict({"table": nn.Embedding(5, 3, sparse=True), "unused": nn.Linear(2, 2)}).double()
    dense = copy.deepcopy(net)
    dense["table"].sparse = False
    data = TensorDataset(torch.arange(5), torch.arange(5) % 3)
    for each in (net, dense):
        run(each, 4, data=data, loss=lambda m, b: F.cross_entropy(m["table"](b[0]), b[1], reduction="none"))
    torch.testing.assert_close(weights(net), weights(dense), rtol=1e-14, atol=0)


# --- B changes on the way ---

CHANGES = [
    {"batch_size": 8},
    {"batch_size": 1},
    {"batch_size": 7, "step_size": 0.01},
    {"mechanism": vg.Langevin(0.1)},
    {"batch_size": 8, "mechanism": None},
]


def phases(change, at=20, **settings):
    first = TrainConfig(**{"batch_size": 4, "step_size": 0.05, "passes": math.inf, "seed": 1, **settings})
    return Phases({0: first, at: replace(first, **change)})


def go(net, config, updates, start=0, **options):
    return list(islice(train(net, losses, dataset(), config, start=start, **options), updates))


@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize("mechanism", [None, vg.DropConnect(0.4), vg.Langevin(0.1), vg.Quantize()], ids=str)
@pytest.mark.parametrize("sampling", [WithReplacement(), Epochs()], ids=str)
def test_a_run_whose_settings_change_can_be_continued_anywhere(sampling, mechanism, change):
    config = phases(change, sampling=sampling, mechanism=mechanism)
    whole = model()
    expected = go(whole, config, 12)
    for made in (3, 5, 6, 9):  # before, at and after the change
        parts = model()
        kept = go(parts, config, made)[-1]
        found = go(parts, config, 12 - made, start=kept.position)
        assert torch.equal(weights(whole), weights(parts))
        again, wanted = ([{**vars(r), "seconds": None} for r in each] for each in (found, expected[made:]))
        assert again == wanted


@pytest.mark.parametrize("sampling", [WithReplacement(), Epochs()], ids=str)
def test_a_phase_and_another_call_are_the_same_run(sampling):
    config = phases({"batch_size": 8}, sampling=sampling, mechanism=vg.DropConnect(0.4))
    whole, parts = model(), model()
    expected = go(whole, config, 9)
    kept = [r for r in expected if r.examples <= 20][-1]
    go(parts, config.at(0), kept.updates)
    go(parts, config.at(20), 9 - kept.updates, start=kept.position)
    assert torch.equal(weights(whole), weights(parts))


@pytest.mark.parametrize("mechanism", [vg.DropConnect(0.4), vg.Langevin(0.1), vg.Quantize()], ids=str)
def test_no_draw_is_repeated_when_b_changes(mechanism):
    # At a step size of nearly zero the weights stay, so the sum over samples is the same however they are batched,
    # but for Langevin, whose noise of a step is one Gaussian: that is compared below.
    def moved(config):
        net = model()
        before = weights(net)
        noise = []
        for update in islice(train(net, losses, dataset(), config), 12):
            noise.append((update.examples, (weights(net) - before).clone()))
            before = weights(net)
        return noise

    small = {"step_size": 1e-9, "mechanism": mechanism}
    fixed, changed = (moved(phases(change, **small)) for change in ({}, {"batch_size": 8}))
    if mechanism.adds_noise:
        plain = moved(phases({"batch_size": 8}, step_size=1e-9))
        parts = [tuple((a - b).tolist()) for (_, a), (_, b) in zip(changed, plain, strict=True)]
        for i, one in enumerate(parts):
            for other in parts[:i]:
                cosine = F.cosine_similarity(torch.tensor(one), torch.tensor(other), dim=0)
                assert abs(cosine) < 0.6  # d = 43: a standard deviation of 0.15
    else:
        ends = dict(fixed)
        assert [end for end, _ in changed][:7] == [4, 8, 12, 16, 20, 28, 36]
        for start, end in ((20, 28), (28, 36)):
            both = ends[start + 4] + ends[end]
            step = dict(changed)[end]
            torch.testing.assert_close(step, both, rtol=1e-5, atol=1e-16)


def test_updates_are_counted_not_derived():
    found = go(model(), phases({"batch_size": 8}), 8)
    assert [r.updates for r in found] == list(range(1, 9))
    assert [r.batch_size for r in found] == [4] * 5 + [8] * 3
    again = go(model(), phases({}), 2, start=Position(examples=44, updates=8, left_out=3))
    assert [(r.updates, r.left_out, r.examples) for r in again] == [(9, 3, 48), (10, 3, 52)]


def test_a_change_takes_effect_where_an_update_begins():
    found = go(model(), phases({"batch_size": 8}, at=18), 7)
    assert [r.batch_size for r in found] == [4] * 5 + [8] * 2
    assert phases({"batch_size": 8}).settings()["phases"] == [[20, {"batch_size": 8}]]


@pytest.mark.parametrize(
    ("configs", "kind", "message"),
    [
        ({}, ValueError, "must begin at position 0; got None"),
        ({5: TrainConfig(batch_size=1, step_size=1.0)}, ValueError, "must begin at position 0; got 5"),
        ({0: TrainConfig(batch_size=1, step_size=1.0), 9: TrainConfig(batch_size=1, step_size=1.0, seed=1)},
         ValueError, "seed belongs to the whole run and may not change; got 0, 1"),
        ({0: TrainConfig(batch_size=1, step_size=1.0, sampling=Epochs()),
          9: TrainConfig(batch_size=1, step_size=1.0)}, ValueError, "sampling belongs to the whole run"),
    ],
)  # fmt: skip
def test_phases_that_cannot_be_are_refused(configs, kind, message):
    with pytest.raises(kind, match=message):
        Phases(configs)


def test_former_names_work_for_one_version():
    import variegrad.training as room

    with pytest.warns(DeprecationWarning, match="Step is now Update"):
        assert room.Step is Update
    with pytest.warns(DeprecationWarning, match="Every is now Cadence"):
        assert room.Every is Cadence
    with pytest.warns(DeprecationWarning, match="Skipped is now Unusable"):
        assert room.checkpoint.Skipped is room.checkpoint.Unusable
    with pytest.raises(AttributeError, match="no attribute 'Never'"):
        _ = room.Never
    update = go(model(), phases({}), 1)[0]
    with pytest.warns(DeprecationWarning, match="left_out"):
        assert update.skipped == 0
    with pytest.warns(DeprecationWarning, match="left_out"):
        run(model(), 1, skipped=2)


class Running(nn.Module):
    """Keeps running statistics that a forward pass moves, also to NaN."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.norm, self.last = nn.BatchNorm1d(4).double(), nn.Linear(4, 3).double()

    def forward(self, x):
        return self.last(self.norm(x))


def test_an_update_that_is_left_out_moves_no_running_statistics():
    net, before = Running(), Running()
    data = with_a_hole()
    drawn = [7 in WithReplacement().batch(1, 4 * k, 4, 11) for k in range(12)]
    first = drawn.index(True)
    run(before, first, data=data, loss=uncoupled)
    run(net, first + 1, data=data, loss=uncoupled, when_not_finite=Skip())
    for found, wanted in zip(net.buffers(), before.buffers(), strict=True):
        assert torch.equal(found, wanted)


def uncoupled(net, batch):
    return losses(net, batch)


# --- its end ---


@pytest.mark.parametrize(
    ("passes", "n", "sampling", "examples"),
    [
        (1.0, 11, WithReplacement(), [4, 8, 12]),
        (1.0, 11, Epochs(), [4, 8, 11]),
        (0.1, 60, WithReplacement(), [4, 8]),
        (0.1, 40, WithReplacement(), [4]),  # 0.1 · 40 is not quite 4 in binary
        (2.0, 3, WithReplacement(), [4, 8]),  # fewer examples than a batch holds
        (2.0, 4, Epochs(), [4, 8]),  # as many as a batch holds
    ],
)
def test_the_last_update_completes_the_passes(passes, n, sampling, examples):
    assert [r.examples for r in run(model(), 99, data=dataset(n), passes=passes, sampling=sampling)] == examples


def test_accuracy_is_followed_and_the_last_update_always_evaluated():
    found = run(model(), 99, passes=2, evaluation=Evaluation(accuracy=right, data=dataset(), every=Cadence(updates=4)))
    assert [r.accuracy is not None for r in found] == [False, False, False, True, False, True]
    net = model()
    run(net, 6)
    x, y = dataset().tensors
    assert found[-1].accuracy == float((net(x).argmax(1) == y).double().mean())


def test_a_run_ends_at_its_target():
    watch = Evaluation(accuracy=right, data=dataset(), every=Cadence(passes=0.5), target=0.6)
    found = run(model(), 9999, step_size=0.2, evaluation=watch)
    evaluated = [r.accuracy for r in found if r.accuracy is not None]
    assert evaluated[-1] >= 0.6
    assert all(a < 0.6 for a in evaluated[:-1])
    assert found[-1].accuracy is not None


def test_the_bound_is_estimated_on_the_way_and_changes_nothing():
    watched, plain = model(), model()
    found = run(watched, 6, batch_size=16, data=dataset(64), bound_every=Cadence(updates=3))
    run(plain, 6, batch_size=16, data=dataset(64))
    assert torch.equal(weights(watched), weights(plain))
    assert [r.bound is not None for r in found] == [False, False, True] * 2
    start = model()
    run(start, 2, batch_size=16, data=dataset(64))
    drawn = WithReplacement().batch(1, 32, 16, 64)
    expected = vg.estimate(start, losses, tuple(c[drawn] for c in dataset(64).tensors))
    assert found[2].bound.batch_size_bound == pytest.approx(expected.batch_size_bound, rel=1e-12)


# --- what is not finite ---


def with_a_hole():
    data = dataset()
    data.tensors[0][7] = math.nan
    return data


def test_a_run_stops_before_an_update_that_is_not_finite():
    net, before = model(), model()
    sampled = next(k for k in range(99) if 7 in WithReplacement().batch(1, 4 * k, 4, 11))
    run(before, sampled, data=with_a_hole())
    with pytest.raises(ValueError, match=r"the loss of example \d of the batch is nan. Check"):
        run(net, 99, data=with_a_hole())
    assert torch.equal(weights(net), weights(before))


def test_updates_that_are_not_finite_can_be_left_out_and_are_counted():
    net = model()
    found = run(net, 12, data=with_a_hole(), when_not_finite=Skip())
    batches = [WithReplacement().batch(1, 4 * k, 4, 11) for k in range(12)]
    whole = [b for b in batches if 7 not in b]
    assert 0 < found[-1].left_out == 12 - len(whole)
    assert [math.isnan(r.mean_loss) for r in found] == [7 in b for b in batches]
    torch.testing.assert_close(weights(net), by_hand(model(), whole), rtol=1e-13, atol=1e-15)
    with pytest.raises(ValueError, match="is nan"):
        run(model(), 99, data=with_a_hole(), when_not_finite=Skip(at_most=1))


@pytest.mark.parametrize("mechanism", [None, vg.DropConnect(0.4), vg.Quantize()], ids=str)
def test_a_gradient_that_is_not_finite_reaches_no_weight(mechanism):
    def rooted(net, batch):
        return (net(batch[0]).sum(1) - net(batch[0]).sum(1).detach()).abs().sqrt()  # 0, with slope ∞

    net = model()
    with pytest.raises(ValueError, match="not finite"):
        run(net, 1, loss=rooted, mechanism=mechanism)
    assert torch.equal(weights(net), weights(model()))


def test_a_run_that_diverges_stops():
    single = TensorDataset(dataset().tensors[0].float(), dataset().tensors[1])
    with pytest.raises(ValueError, match=r"the loss of example \d of the batch is (inf|nan)|is not finite"):
        run(model().float(), 50, data=single, step_size=1e38)


# --- what is refused ---


class Endless(IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"data": dataset(0)}, ValueError, "the training set has no examples"),
        (
            {"data": dataset(3), "sampling": Epochs()},
            ValueError,
            r"batch_size must be at most the number of examples, each of which Epochs\(\) draws once per pass; "
            r"got 4 for 3 examples\. Take at most 3, or sampling=WithReplacement\(\)\.",
        ),
        ({"start": -1}, ValueError, "Position: examples must not be negative; got -1"),
        ({"data": Endless()}, TypeError, "the data set must have a length"),
        (
            {"loss": lambda m, b: losses(m, b).mean()},
            ValueError,
            "got a scalar. Compute the loss with",
        ),
        ({"loss": lambda m, b: losses(m, b)[:1]}, ValueError, "got 1 losses for a batch of 4 examples"),
    ],
)
def test_what_cannot_be_trained_is_refused(options, kind, message):
    with pytest.raises(kind, match=message):
        run(model(), 1, **options)


def test_a_wrapped_model_is_refused():
    wrapped = DistributedDataParallel.__new__(DistributedDataParallel)
    with pytest.raises(TypeError, match="must not be wrapped in DistributedDataParallel"):
        train(wrapped, losses, dataset(), TrainConfig(batch_size=1, step_size=1.0))


def test_settings_are_checked_before_the_first_record():
    with pytest.raises(ValueError, match="no examples"):
        train(model(), losses, dataset(0), TrainConfig(batch_size=1, step_size=1.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_sixteen_bits_are_warned_of(dtype):
    model = nn.Linear(4, 3).to(dtype)
    data = TensorDataset(torch.randn(8, 4).to(dtype), torch.arange(8) % 3)
    with pytest.warns(UserWarning, match="weights such as 'weight' have 16 bits: an update below"):
        next(vg.train(model, losses, data, vg.TrainConfig(batch_size=4, step_size=1e-3, passes=1)))
