"""What is learnt at first use: from a few examples where they say all, in little memory, leaving nothing behind."""

import copy

import pytest
import torch
from torch import nn

from cases import CASES, Fn, energy
from reference import loop_gradients
from variegrad.batches import map_tensors
from variegrad.per_example import learn
from variegrad.per_example.check import FIRST
from variegrad.per_example.engine import Engine
from variegrad.per_example.norms import batch_norms, example_gradients


def build(case):
    torch.manual_seed(0)
    model, losses, batch = case.make()

    def seeded(model, batch):
        torch.manual_seed(1)  # the same masks whenever the losses are evaluated
        return losses(model, batch)

    return model.double(), seeded, map_tensors(lambda t: t.double() if t.is_floating_point() else t, batch)


def expected(model, losses, batch):
    rows = {name: r.double().reshape(len(r), -1) for name, r in loop_gradients(model, losses, batch).items()}
    return {name: r.square().sum(1) for name, r in rows.items()}, {name: r.sum(0) for name, r in rows.items()}


@pytest.fixture
def from_the_whole_batch(monkeypatch):
    monkeypatch.setattr(learn, "FEWEST", 10**6)
    monkeypatch.setattr(learn, "MOST", 10**6)


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@pytest.mark.usefixtures("from_the_whole_batch")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_norms_of_some_examples_and_the_sum_of_all_equal_the_loop(case):
    model, losses, batch = build(case)
    squares, sums = expected(copy.deepcopy(model), losses, batch)
    scale = float(sum(squares.values()).max())
    for examples in ([1, 0], [1, 0], [0, 1, 2]):
        if max(examples) >= len(next(iter(squares.values()))):
            continue
        found = batch_norms(model, losses, batch, examples=examples)
        for name, norms in squares.items():
            assert torch.allclose(found.sq_norms[name], norms[examples], rtol=0, atol=1e-9 * scale), name
            assert torch.allclose(found.total[name].to_dense().flatten(), sums[name], rtol=0, atol=1e-9 * scale**0.5), (
                name
            )
    assert all(p.grad is None for p in model.parameters())


class Counted(nn.Module):
    """Notes for how many examples each gradient arrives at its hidden layer; its buffer counts evaluations."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.arrived = nn.Linear(4, 6), nn.Linear(6, 2), []
        self.register_buffer("scale", torch.ones(6))

    def forward(self, x):
        self.scale.add_(0.5)
        hidden = torch.tanh(self.first(x))
        if hidden.requires_grad:
            hidden.register_hook(lambda g: self.arrived.append(len(g)))
        return self.second(hidden * self.scale)


@pytest.mark.parametrize("examples", [None, [0, 5]])
def test_the_graph_of_the_whole_batch_is_walked_once(examples):
    model, batch = Counted(), torch.randn(64, 4)
    batch_norms(model, energy, batch, examples=examples)
    assert model.arrived.count(64) == 1
    assert set(model.arrived) == {64, learn.MOST}
    for _ in range(FIRST - 1):  # these are checked
        batch_norms(model, energy, batch, examples=examples)
    walked = len(model.arrived)
    batch_norms(model, energy, batch, examples=examples)
    assert len(model.arrived) == walked + 1


def test_the_model_the_batch_and_the_generator_are_left_as_one_evaluation_leaves_them():
    model, batch = nn.Sequential(Counted(), nn.Dropout(0.5)), torch.randn(64, 4)
    other, same = copy.deepcopy(model), batch.clone()

    def losses(model, batch):
        return energy(model, batch.mul_(1.5))

    torch.manual_seed(3)
    batch_norms(model, losses, batch)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    losses(other, same)
    assert torch.equal(after, torch.get_rng_state())
    assert torch.equal(model[0].scale, other[0].scale)
    assert torch.equal(batch, same)


def test_a_wrong_rule_is_refused_though_only_a_few_examples_are_checked(monkeypatch):
    from variegrad.per_example import capture

    honest = capture.RULES["AddmmBackward0"]
    wrong = lambda visit, slot, shape: (  # noqa: E731
        honest(visit, slot, shape) if slot != 2 else type(honest(visit, 2, shape))(
            honest(visit, 2, shape).left * 2, honest(visit, 2, shape).right
        )
    )  # fmt: skip
    monkeypatch.setitem(capture.RULES, "AddmmBackward0", wrong)
    with pytest.raises(RuntimeError, match="differ from the loop"):
        batch_norms(nn.Linear(4, 3), energy, torch.randn(64, 4))
    with pytest.raises(RuntimeError, match="differ from the loop"):
        next(example_gradients(nn.Linear(4, 3), energy, torch.randn(64, 4)))


def test_a_coupling_that_only_the_whole_batch_shows_is_refused():
    table = nn.Embedding(9, 4)

    def forward(m, x):
        x = x + m.table(torch.arange(9))
        full = len(x) > 32  # such as a router whose capacity is used up
        return m.out(x) * (x[:, :, :1].detach().mean() if full else 1.0)

    model = Fn(forward, table=table, out=nn.Linear(4, 2))
    assert len(batch_norms(copy.deepcopy(model), energy, torch.randn(20, 9, 4)).sq_norms["out.bias"]) == 20
    with pytest.raises(ValueError, match="depends on the other examples"):
        batch_norms(model, energy, torch.randn(64, 9, 4))


def test_a_model_that_differentiates_inside_is_compared_with_its_parts_all_the_same():
    def forward(m, x):
        x = (x + m.place(torch.arange(3))).flatten(1)
        with torch.enable_grad():
            inner = m.inner(y := x.detach().requires_grad_())
            (slope,) = torch.autograd.grad(inner.square().sum(), y)
        return m.out(x + slope)

    model = Fn(forward, place=nn.Embedding(3, 2), inner=nn.Linear(6, 2), out=nn.Linear(6, 2)).double()
    model.inner.requires_grad_(False)
    batch = torch.randn(16, 3, 2).double()
    squares, _ = expected(copy.deepcopy(model), energy, batch)
    found = batch_norms(model, energy, batch)
    for name, norms in squares.items():
        assert torch.allclose(found.sq_norms[name], norms, rtol=1e-9), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_group_norm_over_several_images_of_an_example(dtype):
    def forward(m, x):
        return m.norm(x.flatten(0, 1)).view(x.shape).square()

    model, batch = Fn(forward, norm=nn.GroupNorm(2, 4)).to(dtype), torch.randn(8, 3, 4, 5, 2, dtype=dtype)
    nn.init.normal_(model.norm.weight)
    squares, _ = expected(copy.deepcopy(model), energy, batch)
    for examples in (None, [6, 1, 2]):
        found = batch_norms(model, energy, batch, examples=examples)
        for name, norms in squares.items():
            wanted = norms if examples is None else norms[examples]
            assert torch.allclose(found.sq_norms[name], wanted, rtol=1e-9 if dtype == torch.float64 else 1e-4), name


def test_without_a_plan_the_first_variant_is_taken_and_agrees():
    model, batch = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 4, 3)), torch.randn(32, 3, 8, 8)
    squares, _ = expected(copy.deepcopy(model), energy, batch)
    for measured in (False, True):
        found = batch_norms(model, energy, batch, engine=Engine(measured=measured))
        for name, norms in squares.items():
            assert torch.allclose(found.sq_norms[name], norms, rtol=1e-4), name
