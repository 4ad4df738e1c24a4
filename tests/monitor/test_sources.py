"""The moments of a watched step equal those of the slow loop, on every way of writing a model."""

from random import Random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cases import CASES
from one_step import gram, last, moments
from variegrad import Monitor

# Where the graph alone cannot tell that examples are independent, or no rule covers a parameter.
BY_SIGN_PROBE = {
    "embedding_bag_max", "group_and_instance_norm", "relative_position_bias", "bilinear", "lstm", "gru",
    "lstm_bidirectional_token_major", "rnn_and_cells", "spectrally_normalised", "checkpointed_between_other_layers",
    "routed_tokens", "bare_parameters", "lora_merged_into_the_weight", "weight_normalised", "masked_weight",
    "checkpointed", "complex_spectrum_of_a_weight", "modulated_convolution", "custom_function",
    "lstm_below_dropout_in_training",
}  # fmt: skip
REFUSED = {"checkpointed_reentrant"}


def built(case):
    torch.manual_seed(0)
    model, losses, batch = case.make()

    def double(value):
        if isinstance(value, torch.Tensor):
            return value.double() if value.is_floating_point() else value
        if isinstance(value, dict):
            return {k: double(v) for k, v in value.items()}
        return type(value)(double(v) for v in value) if isinstance(value, tuple | list) else value

    return model.double(), losses, double(batch)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", [c for c in CASES if c.name not in BY_SIGN_PROBE | REFUSED], ids=str)
def test_moments_of_a_step_are_those_of_the_loop(case):
    model, losses, batch = built(case)
    monitor = Monitor(model, every=1, examples=64)
    for seed in (1, 2):  # learnt, and known
        torch.manual_seed(seed)
        per_example = losses(model, batch)
        monitor.watch(per_example)
        per_example.mean().backward()
        model.zero_grad()
        torch.manual_seed(seed)
        assert last(monitor) == pytest.approx(moments(gram(model, losses, batch)), rel=1e-7, abs=1e-14)
        assert "examples" in monitor.latest.source
        model.zero_grad()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", [c for c in CASES if c.name in BY_SIGN_PROBE], ids=str)
def test_a_model_without_rules_is_served_by_a_sign_probe(case):
    model, losses, batch = built(case)
    monitor = Monitor(model, every=1, examples=64)
    for _ in range(2):
        per_example = losses(model, batch)
        monitor.watch(per_example)
        per_example.mean().backward()
        model.zero_grad()
    assert monitor.latest.source == "sign probe"


def test_the_sign_probe_is_right_on_average_over_all_signs_for_even_and_odd_batches():
    from itertools import combinations

    from variegrad.monitor.exchange.sums import StepSums, cell_sums

    torch.manual_seed(0)
    for count in (4, 5):
        g = torch.randn(count, 3, dtype=torch.float64)
        half, found = count // 2, []
        for plus in combinations(range(count), half):
            rest = [i for i in range(count) if i not in plus]
            for minus in combinations(rest, half):
                probe = (g[list(plus)].sum(0) - g[list(minus)].sum(0)).square().sum()
                sums = StepSums(*cell_sums(torch.ones(count), g.sum(0).square().sum(), probe=probe).tolist())
                found.append(sums.sum_sq_norms)
        assert sum(found) / len(found) == pytest.approx(float(g.square().sum()))


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def classify(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def data(count=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=g, dtype=torch.float64), torch.randint(0, 3, (count,), generator=g)


@pytest.mark.parametrize("reduce", [torch.mean, torch.sum, lambda t: 7 * t.mean(), lambda t: (t / 3).sum() / 4])
def test_a_subset_is_unbiased_and_whatever_the_reduction_moments_are_those_of_single_examples(reduce):
    model, batch = net(), data()
    k = gram(model, classify, batch)
    monitor = Monitor(model, every=1, examples=5)
    per_example = classify(model, batch)
    monitor.watch(per_example)
    reduce(per_example).backward()
    rows = Random(hash((0, 0, 0))).sample(range(12), 5)  # drawn by step, micro-batch and worker
    mean_sq = float(k.diagonal()[rows].mean())
    assert last(monitor) == pytest.approx(((float(k.sum()) - 12 * mean_sq) / (12 * 11), mean_sq), rel=1e-9)
    assert monitor.latest.source == "5 of 12 examples"
    assert monitor.latest.batch_size == 12


def test_examples_of_weight_zero_do_not_count():
    model, batch = net(), data()
    mask = torch.tensor([1, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1], dtype=torch.float64)
    monitor = Monitor(model, every=1, examples=64)
    per_example = classify(model, batch)
    monitor.watch(per_example)
    ((per_example * mask).sum() / mask.sum()).backward()
    k = gram(model, classify, batch)[mask.bool()][:, mask.bool()]
    assert last(monitor) == pytest.approx(moments(k), rel=1e-9)
    assert monitor.latest.batch_size == 9


def test_micro_batches_that_are_mostly_padding_are_read():
    model = net()
    monitor = Monitor(model, every=1, accumulate=2, examples=2, window=64)
    for step in range(30):
        for micro in range(2):
            x, y = data(12, 2 * step + micro)
            per_example = classify(model, (x, y))
            monitor.watch(per_example)
            (per_example * (torch.arange(12) < 3)).sum().backward()
        model.zero_grad()
    assert monitor.latest.pooled_steps >= 28
    assert monitor.latest.batch_size == 6


def test_unequal_weights_after_watch_are_refused_and_before_it_exact():
    model, batch = net(), data()
    weights = torch.linspace(0.5, 2, 12, dtype=torch.float64)
    monitor = Monitor(model, every=1, examples=64)
    per_example = classify(model, batch)
    monitor.watch(per_example)
    with pytest.warns(RuntimeWarning, match="unequal weights.*before watch"):
        (per_example * weights).mean().backward()
    assert monitor.latest is None
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    per_example = classify(model, batch) * weights
    monitor.watch(per_example)
    per_example.mean().backward()
    expected = moments(gram(model, lambda m, b: classify(m, b) * weights, batch))
    assert last(monitor) == pytest.approx(expected, rel=1e-9)


def test_a_batch_norm_in_training_is_read_from_micro_batches_as_from_workers():
    from variegrad.estimators import moments_from_workers

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()
    batches = [data(8, seed) for seed in range(3)]
    sums = []
    for batch in batches:
        loss = classify(model, batch).sum()
        sums.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    expected = moments_from_workers([float(s.square().sum()) for s in sums], [8] * 3, float(sum(sums).square().sum()))
    monitor = Monitor(model, every=1, examples=64, accumulate=3)
    for batch in batches:
        per_example = classify(model, batch)
        monitor.watch(per_example)
        (per_example.mean() / 3).backward()
    assert last(monitor) == pytest.approx(expected, rel=1e-9)
    assert monitor.latest.source == "3 micro-batches"
    assert monitor.latest.batch_size == 24


@pytest.mark.parametrize("sizes", [(4, 4, 4), (1, 1, 1, 1), (5, 3)])
def test_examples_of_all_micro_batches_make_one_step(sizes):
    model, whole = net(), data(sum(sizes))
    monitor = Monitor(model, every=1, examples=64, accumulate=len(sizes))
    start = 0
    for size in sizes:
        per_example = classify(model, tuple(t[start : start + size] for t in whole))
        monitor.watch(per_example)
        per_example.sum().backward()
        start += size
    assert last(monitor) == pytest.approx(moments(gram(net(), classify, whole)), rel=1e-9)
    assert monitor.latest.batch_size == sum(sizes)


def test_a_batch_norm_without_micro_batches_is_probed_by_signs_and_its_statistics_are_left_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
    monitor = Monitor(model, every=1, examples=64)
    per_example = classify(model, data())
    seen = model[1].running_mean.clone(), model[1].num_batches_tracked.clone()
    monitor.watch(per_example)
    per_example.mean().backward()
    assert monitor.latest.source == "sign probe"
    assert torch.equal(model[1].running_mean, seen[0])
    assert torch.equal(model[1].num_batches_tracked, seen[1])


def test_a_sign_probe_pooled_over_many_draws_finds_the_bound_of_the_batch():
    torch.manual_seed(0)
    model = nn.LSTM(6, 5).double()

    def losses(model, batch):
        return model(batch[0].unsqueeze(0))[0][0].square().sum(1)

    batch = data(8)
    expected = moments(gram(model, losses, batch))
    monitor = Monitor(model, every=1, window=400)
    for _ in range(400):
        per_example = losses(model, batch)
        monitor.watch(per_example)
        per_example.mean().backward()
        model.zero_grad()
    found = torch.tensor(monitor.state_dict()["window"], dtype=torch.float64)[:, -2:]
    error = found.std(0) / 20
    assert bool(((found.mean(0) - torch.tensor(expected)).abs() < 4 * error).all())  # four standard errors
