"""`measure` equals the slow loop on every way of writing a model, for any cut of the data, and leaves all as it was."""

import copy
import math
from collections import UserDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from cases import CASES, B
from reference import loop_gradients, loop_sums
from variegrad import DropConnect, Quantize, measure, measure_differential
from variegrad.batches import map_tensors, shared_length

N = 13


def classify(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none")


def mlp(dtype=torch.float64, hidden=6):
    return nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3)).to(dtype)


def data(dtype=torch.float64, n=N):
    return torch.randn(n, 4, dtype=dtype), torch.arange(n) % 3


def in_float64(case):
    torch.manual_seed(0)
    model, losses, batch = case.make()
    return model.double(), losses, map_tensors(lambda t: t.double() if t.is_floating_point() else t, batch)


def same(found, expected, rel=1e-10):
    n, sq, of_sum, mixed = expected
    assert found.count == n
    assert found.sum_sq_norms == pytest.approx(sq, rel=rel)
    assert found.sq_norm_of_sum == pytest.approx(of_sum, rel=rel, abs=rel * n * sq)
    if found.sum_l1_l2_norms is not None:
        assert found.sum_l1_l2_norms == pytest.approx(mixed, rel=rel)


# --- equal to the loop ---

RANDOM = {"dropout_in_training", "lstm_below_dropout_in_training"}
# Its losses weigh the examples of this very batch, so that the batch cannot be cut.
WHOLE = {"zero_gradient_of_some_examples"}


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@pytest.mark.parametrize("case", [c for c in CASES if c.name not in RANDOM], ids=str)
def test_it_equals_the_loop_for_any_chunk_and_any_split(case):
    model, losses, batch = in_float64(case)
    expected = loop_sums(copy.deepcopy(model), losses, [batch])
    same(measure(model, losses, [batch], mechanism=Quantize()), expected)
    if shared_length(batch) is None:  # bags with offsets cannot be cut by the example
        with pytest.raises(ValueError, match="chunk_size needs tensors that share their first dimension; got shapes"):
            measure(model, losses, [batch], chunk_size=2)
        return
    if case.name in WHOLE:
        return
    for chunk_size in (1, 2, B + 1):
        same(measure(model, losses, [batch], mechanism=Quantize(), chunk_size=chunk_size), expected)
    parts = [map_tensors(lambda t, a=a, b=b: t[a:b], batch) for a, b in ((0, 3), (3, 3), (3, 4), (4, B))]
    same(measure(model, losses, parts, mechanism=Quantize()), expected)


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_it_equals_the_loop_under_the_same_dropout_masks(name):
    model, losses, batch = in_float64(next(c for c in CASES if c.name == name))
    torch.manual_seed(1)
    expected = loop_sums(copy.deepcopy(model), losses, [batch])
    torch.manual_seed(1)
    same(measure(model, losses, [batch]), expected)


@pytest.mark.parametrize(
    ("dtype", "rel"),
    # A unit roundoff of 6e-8 or 4e-3 a product, over sums of a dozen terms and two layers.
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 5e-2)],
    ids=["float64", "float32", "bfloat16"],
)
def test_models_of_lower_precision_agree_with_the_same_model_in_float64(dtype, rel):
    model, (x, y) = mlp(dtype), data(dtype)
    exact = loop_sums(copy.deepcopy(model).double(), classify, [(x.double(), y)])
    same(measure(model, classify, TensorDataset(x, y), batch_size=4, mechanism=Quantize()), exact, rel)


def test_it_sums_in_float64_where_float32_would_lose_small_examples():
    # One gradient of 10⁴ in front of 2,000 of 1: in float32 Σ‖g‖² would stay at 10⁸ + a rounded part.
    x = torch.ones(2001, 1)
    x[0] = 1e4
    found = measure(nn.Linear(1, 1, bias=False), lambda m, b: m(b[0]).squeeze(1), TensorDataset(x), batch_size=200)
    assert found.sum_sq_norms == 1e8 + 2000
    assert found.sq_norm_of_sum == 12000.0**2


def test_each_parameter_has_its_own_bound():
    model, batch = mlp(), data()
    found = measure(model, classify, [batch])
    rows = loop_gradients(copy.deepcopy(model), classify, batch)
    assert found.per_parameter.keys() == rows.keys()
    for name, part in found.per_parameter.items():
        flat = rows[name].flatten(1)
        bound = N * float(flat.square().sum()) / float(flat.sum(0).square().sum())
        assert part.batch_size_bound == pytest.approx(bound, rel=1e-10)


def test_frozen_parameters_do_not_count():
    model, batch = mlp(), data()
    model[0].requires_grad_(False)
    found = measure(model, classify, [batch])
    assert found.dimension == 6 * 3 + 3
    same(found, loop_sums(copy.deepcopy(model), classify, [batch]))


def test_the_mixed_norm_is_collected_only_where_a_mechanism_needs_it():
    model, batch = mlp(), data()
    assert measure(model, classify, [batch]).sum_l1_l2_norms is None
    assert measure(model, classify, [batch], mechanism=DropConnect(0.4)).sum_l1_l2_norms is None
    found = measure(model, classify, [batch], mechanism=[DropConnect(0.4), Quantize()], chunk_size=3)
    assert found.sum_l1_l2_norms == pytest.approx(loop_sums(model, classify, [batch])[3], rel=1e-12)
    assert found.effective_bound_with(Quantize()) > found.batch_size_bound


# --- any kind of data ---


class Examples(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


class Stream(IterableDataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __iter__(self):
        return iter(zip(self.x, self.y, strict=True))


KINDS = {
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=5),
    "shuffled loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True),
    "data set of tensors": TensorDataset,
    "data set": Examples,
    "iterable data set": Stream,
    "loader over an iterable data set": lambda x, y: DataLoader(Stream(x, y), batch_size=3),
    "list of batches": lambda x, y: [(x[:7], y[:7]), [x[7:], y[7:]]],
    "generator": lambda x, y: ((x[i : i + 6], y[i : i + 6]) for i in range(0, len(x), 6)),
    "an empty batch in between": lambda x, y: [(x[:7], y[:7]), (x[:0], y[:0]), (x[7:], y[7:])],
}


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_of_data_gives_the_same_numbers(kind, progress, capfd):
    model, (x, y) = mlp(), data()
    found = measure(model, classify, KINDS[kind](x, y), batch_size=4, progress=progress)
    same(found, loop_sums(copy.deepcopy(model), classify, [(x, y)]))
    assert capfd.readouterr().out == ""  # a bar goes to standard error


def test_a_data_set_that_transforms_its_tensors_is_asked_for_each_example():
    class Doubled(TensorDataset):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return 2 * x, y

    model, (x, y) = mlp(), data()
    same(measure(model, classify, Doubled(x, y)), loop_sums(copy.deepcopy(model), classify, [(2 * x, y)]))


class Encoding(UserDict):
    """What a tokenizer returns: a mapping of a type of its own, with attributes."""

    def __getattr__(self, name):
        if name == "data" or name not in self.data:
            raise AttributeError(name)
        return self.data[name]


@pytest.mark.parametrize("kind", [dict, Encoding])
def test_a_batch_may_be_a_mapping(kind):
    model, (x, y) = mlp(), data()

    def losses(model, batch):
        return F.cross_entropy(model(batch["x"]), batch["labels"], reduction="none")

    batches = [kind({"x": x[:8], "labels": y[:8]}), kind({"x": x[8:], "labels": y[8:]})]
    for chunk_size in (None, 3):
        same(measure(model, losses, batches, chunk_size=chunk_size), loop_sums(mlp_of(model), classify, [(x, y)]))


def mlp_of(model):
    return copy.deepcopy(model)


# --- left as found ---


class FailsError(Exception):
    pass


def snapshot(model):
    return (
        {name: module.training for name, module in model.named_modules()},
        {name: t.clone() for name, t in model.state_dict().items()},
        {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        {name: p.requires_grad for name, p in model.named_parameters()},
        torch.get_rng_state(),
    )


def assert_unchanged(model, before):
    after = snapshot(model)
    assert after[0] == before[0]
    assert after[3] == before[3]
    assert all(torch.equal(t, before[1][name]) for name, t in after[1].items())
    for name, grad in after[2].items():
        assert (grad is None) == (before[2][name] is None)
        assert grad is None or torch.equal(grad, before[2][name])
    assert torch.equal(after[4], before[4])


class Counts(nn.Module):
    """Dropout, a buffer that counts its calls, and a part in another mode than the rest."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(4, 6), nn.Linear(6, 3), nn.Dropout(0.3)
        self.register_buffer("calls", torch.zeros(()))
        self.a.eval()

    def forward(self, x):
        self.calls += 1
        return self.b(self.drop(self.a(x).tanh()))


@pytest.mark.parametrize("fail_at", [None, 2])
@pytest.mark.parametrize("differential", [False, True])
def test_all_is_left_as_it_was_found(fail_at, differential):
    model = Counts().double()
    other = copy.deepcopy(model)
    model.a.weight.grad = torch.ones_like(model.a.weight)
    before, before_other = snapshot(model), snapshot(other)
    seen = 0

    def losses(model, batch):
        nonlocal seen
        seen += 1
        if fail_at is not None and seen >= fail_at:
            model.train()
            raise FailsError
        return classify(model, batch)

    def run():
        batches = DataLoader(TensorDataset(*data()), batch_size=5, shuffle=True)
        before_rng = torch.get_rng_state()
        try:
            if differential:
                measure_differential(model, other, losses, batches)
            else:
                measure(model, losses, batches, mechanism=Quantize())
        finally:
            assert torch.equal(torch.get_rng_state(), before_rng)
            torch.set_rng_state(before[4])

    if fail_at is None:
        run()
    else:
        with pytest.raises(FailsError):
            run()
    assert_unchanged(model, before)
    assert_unchanged(other, before_other)


# --- refused, with the reason ---

X, Y = torch.randn(6, 4), torch.arange(6) % 3
GOOD = [(X, Y)]
REFUSED = {
    "scalar loss": (
        lambda m, b: classify(m, b).mean(), GOOD, {}, ValueError,
        r"one loss per example, a tensor of shape \(b,\); got a scalar\. Compute the loss with reduction='none'",
    ),
    "(b, 1) loss": (
        lambda m, b: classify(m, b).unsqueeze(1), GOOD, {}, ValueError, r"got shape \(6, 1\)\..*\.squeeze\(1\)",
    ),
    "wrong length": (
        lambda m, b: classify(m, b).repeat(2)[:9], GOOD, {}, ValueError, "got 9 losses for a batch .* dimension 6",
    ),
    "no graph": (lambda m, b: classify(m, b).detach(), GOOD, {}, ValueError, r"without a graph\. Is there"),
    "a number": (lambda m, b: 1.0, GOOD, {}, TypeError, "one loss per example.*; got float"),
    "integers": (lambda m, b: b[1], GOOD, {}, TypeError, "of a floating-point type; got torch.int64"),
    "empty list": (classify, [], {}, ValueError, "the data has no examples"),
    "empty batch": (classify, [(X[:0], Y[:0])], {}, ValueError, "the data has no examples"),
    "empty data set": (classify, TensorDataset(X[:0], Y[:0]), {}, ValueError, "the data has no examples"),
    "empty data set of examples": (classify, Examples(X[:0], Y[:0]), {}, ValueError, "the data has no examples"),
    "batch_size 0": (classify, TensorDataset(X, Y), {"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    "chunk_size 0": (classify, GOOD, {"chunk_size": 0}, ValueError, "chunk_size must be at least 1 example; got 0"),
    "a tensor": (classify, X, {}, TypeError, r"got one Tensor\. For a single batch, pass \[batch\]"),
    "a batch": (classify, (X, Y), {}, TypeError, r"got one tuple\. For a single batch, pass \[batch\]"),
    "a dict": (classify, {"x": X}, {}, TypeError, r"got one dict\. For a single batch, pass \[batch\]"),
    "a number as data": (classify, 7, {}, TypeError, "must be a DataLoader, a Dataset or an iterable .*; got int"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(case):
    losses, batches, options, error, message = REFUSED[case]
    model = mlp(torch.float32)
    before = snapshot(model)
    with pytest.raises(error, match=message):
        measure(model, losses, batches, **options)
    with pytest.raises(error, match=message):
        measure_differential(model, copy.deepcopy(model), losses, batches, **options)
    assert_unchanged(model, before)


def test_an_input_that_is_not_a_number_is_named():
    x, y = data()
    x[9, 2] = math.nan
    with pytest.raises(ValueError, match=r"^the loss of example 9 of the batch is nan\. Check this example's input"):
        measure(mlp(), classify, [(x, y)])
    with pytest.raises(
        ValueError, match=r"^in the batch that starts with example 8, counted from 0: the loss of example 1 "
    ):
        measure(mlp(), classify, TensorDataset(x, y), batch_size=4)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_gradient_that_is_not_finite_under_a_finite_loss_is_named(batch_size):
    x = torch.tensor([[1.0], [1.0], [0.0], [1.0]])

    def roots(model, batch):  # the slope of a root at zero
        return model(batch[0]).abs().sqrt().squeeze(1)

    with pytest.raises(
        ValueError, match=r"the gradient of example 2 \(counted from 0\) is not finite although its loss"
    ):
        measure(nn.Linear(1, 1, bias=False), roots, TensorDataset(x), batch_size=batch_size)


def test_batch_statistics_are_refused_with_the_module_and_the_ways_on():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"BatchNorm1d '1' uses the statistics of the batch.*module\.eval\(\).*GroupNorm"
    ):
        measure(model, classify, GOOD)
    assert_unchanged(model, before)  # running statistics, too
    same(measure(model.eval(), classify, GOOD), loop_sums(copy.deepcopy(model), classify, GOOD), 1e-4)


def test_a_model_without_trained_parameters_is_refused():
    model = mlp().requires_grad_(False)
    with pytest.raises(
        ValueError, match="Sequential has no parameter that requires a gradient: there is nothing to measure"
    ):
        measure(model, classify, [data()])


# --- differential ---


@pytest.mark.parametrize("chunk_size", [None, 1, 4])
def test_differential_diversity_equals_the_loop(chunk_size):
    model, other, (x, y) = mlp(), mlp(), data()
    here, there = loop_gradients(model, classify, (x, y)), loop_gradients(other, classify, (x, y))
    differences = torch.cat([(here[name] - there[name]).flatten(1) for name in here], 1)
    found = measure_differential(model, other, classify, TensorDataset(x, y), batch_size=5, chunk_size=chunk_size)
    assert found.sum_sq_norms == pytest.approx(float(differences.square().sum()), rel=1e-10)
    assert found.sq_norm_of_sum == pytest.approx(float(differences.sum(0).square().sum()), rel=1e-10)
    assert found.count == N


def test_differential_diversity_of_equal_weights_is_undefined():
    model = Counts().double()  # with dropout: both see the same masks
    found = measure_differential(model, copy.deepcopy(model), classify, [data()])
    assert found.undefined


def test_different_architectures_have_no_differential_diversity():
    with pytest.raises(
        ValueError, match=r"one model at two weights; \['0\.bias', '0\.weight', '2\.weight'\] differ in name, shape"
    ):
        measure_differential(mlp(), mlp(hidden=5), classify, [data()])
    frozen = mlp()
    frozen[2].bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"\['2\.bias'\] differ"):
        measure_differential(mlp(), frozen, classify, [data()])
