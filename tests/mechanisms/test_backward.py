"""`backward` puts Σ m(∇f_i) into `.grad`, on every way of writing a model, exactly as the slow version draws it."""

import math
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from cases import CASES, classify
from mechanisms.own import Jitter, SkipExample, Ternary
from mechanisms.slow import drawn_one_by_one, gradients_of
from variegrad.batches import map_tensors, shared_length, split
from variegrad.mechanisms import Draws, DropConnect, Langevin, MomentMatched, Quantize, backward, draws, masks
from variegrad.mechanisms import threads as room_of_threads
from variegrad.mechanisms.backward_step import refuse_settings
from variegrad.per_example.evaluate import NotFinite

# One path of the code each: ordinary autograd, autograd and noise, per-example draws, sums of squares.
NOTHING = [None, Langevin(0.0), DropConnect(0.0), MomentMatched(DropConnect(0.0))]
DRAWN = [DropConnect(0.4, rescale=False), SkipExample(0.3), Ternary()]  # Quantize: equal in law, in test_thinning
HAS_DROPOUT = {"dropout_in_training", "lstm_below_dropout_in_training"}
KNOWS_THE_WHOLE_BATCH = {"zero_gradient_of_some_examples"}


class Own(Jitter):
    """A law that does not matter, and a draw that goes wrong."""

    def __init__(self, function):
        super().__init__(0.1)
        object.__setattr__(self, "function", function)

    def draw(self, rows, draws):
        return self.function(rows, draws)


@cache  # what the engine learns of a case is learnt once for all tests
def build(case):
    torch.manual_seed(0)
    model, losses, batch = case.make()
    cast = lambda t: t.double() if t.is_floating_point() else t  # noqa: E731

    def seeded(model, batch):
        if case.name in HAS_DROPOUT:
            torch.manual_seed(1)
        return losses(model, batch)

    return model.double(), seeded, map_tensors(cast, batch)


def assert_same(found, wanted, tolerance=1e-9):
    scale = max(float(w.abs().max()) for w in wanted.values())
    for name, total in wanted.items():
        assert torch.allclose(found[name], total, rtol=0, atol=tolerance * scale), name


pytestmark = pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_without_a_mechanism_s_effect_it_is_an_ordinary_backward_pass(case):
    model, losses, batch = build(case)
    per_example = losses(model, batch)
    per_example.sum().backward()
    wanted = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.to_dense() if p.grad.is_sparse else p.grad
        for name, p in model.named_parameters() if p.requires_grad
    }  # fmt: skip
    model.zero_grad(set_to_none=True)
    for mechanism in NOTHING:
        said = backward(model, losses, batch, mechanism=mechanism)
        torch.testing.assert_close(said, per_example.detach())  # recurrent layers are other kernels
        assert not said.requires_grad
        found = gradients_of(model)
        if mechanism is None:  # as torch leaves it: None, or sparse
            found = {n: torch.zeros_like(wanted[n]) if g is None else g.to_dense() for n, g in found.items()}
        assert_same(found, wanted)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_equals_one_draw_for_each_gradient_of_the_loop(case):
    model, losses, batch = build(case)
    for seen, mechanism in enumerate(DRAWN):
        wanted = drawn_one_by_one(model, losses, batch, mechanism, seed=3, samples_seen=seen)
        backward(model, losses, batch, mechanism=mechanism, seed=3, samples_seen=seen)
        assert_same(gradients_of(model), wanted)


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in HAS_DROPOUT | KNOWS_THE_WHOLE_BATCH], ids=str)
def test_a_batch_in_parts_is_the_same_batch(case):
    model, losses, batch = build(case)
    count = shared_length(batch)
    if count is None:
        pytest.skip("its examples cannot be cut apart")
    for mechanism in (Ternary().then(Langevin(0.1)),):  # norms, draws for each example, and noise once a step
        backward(model, losses, batch, mechanism=mechanism, seed=1, samples_seen=2)
        whole = gradients_of(model)
        start = 0
        for part in split(batch, 2):
            size = shared_length(part)
            here = range(start, start + size)
            backward(model, losses, part, mechanism=mechanism, seed=1, samples_seen=2, positions=here, total=count)
            start += size
        assert_same(gradients_of(model), whole)


OTHERS = [Jitter(0.5), SkipExample(0.3), Quantize().then(DropConnect(0.3)), DropConnect(0.2).then(Jitter(0.1))]


@pytest.mark.parametrize("mechanism", OTHERS, ids=str)
def test_a_user_s_mechanism_and_compositions_are_drawn_alike(mechanism):
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 3))
    model, batch = model.double(), (torch.randn(6, 2, 6).double(), torch.arange(6) % 3)
    wanted = drawn_one_by_one(model, classify, batch, mechanism, seed=3, samples_seen=4)
    backward(model, classify, batch, mechanism=mechanism, seed=3, samples_seen=4)
    assert_same(gradients_of(model), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_draws_the_same_masks(dtype):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)
    batch = torch.randn(7, 6).to(dtype), torch.arange(7) % 3
    wanted = drawn_one_by_one(model, classify, batch, DropConnect(0.5))
    backward(model, classify, batch, mechanism=DropConnect(0.5))
    found = gradients_of(model)
    assert all(g.dtype == dtype for g in found.values())
    found = {name: g.to(wanted[name].dtype) for name, g in found.items()}
    assert_same(found, wanted, 1e-6 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("compiled", [False, True], ids=["numpy", "compiled"])
def test_a_mask_is_the_same_by_any_number_of_threads_and_either_implementation(threads, compiled, monkeypatch):
    if compiled:
        pytest.importorskip("numba")
    monkeypatch.setattr(masks, "WORTH_COMPILING", 0 if compiled else math.inf)
    monkeypatch.setattr(masks, "TOGETHER", 1000)  # several blocks of rows
    rows, columns = torch.relu(torch.randn(7, 33)), torch.randn(7, 70)
    positions = [5, 1, 0, 2**40, 2**63 - 1, 8, 9]
    formed = rows.unsqueeze(2) * columns.unsqueeze(1)
    mechanism, draws = DropConnect(0.4), lambda: Draws.keyed(3, "weight", torch.empty(33, 70), positions)
    keep = torch.from_numpy(masks.kept((33, 70), draws().mask_key(), positions, 0.6))
    wanted = formed * keep / 0.6
    monkeypatch.setattr(room_of_threads, "WORTH_THREADS", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        drawn, total = mechanism.draw(formed, draws()), mechanism.sum_of_outer(rows, columns, draws())
        of_rows = mechanism.sum_of_rows(formed, draws())
    finally:
        torch.set_num_threads(before)
    assert torch.allclose(drawn, wanted, rtol=1e-6)
    assert torch.allclose(total, wanted.sum(0), rtol=0, atol=1e-5 * float(wanted.abs().max()))
    assert torch.allclose(of_rows, wanted.sum(0), rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_numbers_are_the_same_by_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(room_of_threads, "WORTH_THREADS", 0)
    monkeypatch.setattr(draws, "BLOCK", 12)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(Draws.keyed(3, "weight", torch.empty(20, 7), [4, 0, 9]).normal())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_workers_shares_of_noise_add_up_to_the_same_numbers(size, monkeypatch):
    monkeypatch.setattr(draws, "BLOCK", 12)
    drawn = [Draws.keyed(3, "weight", torch.empty(20, 7), [0], part=(rank, size)).normal() for rank in range(size)]
    assert torch.equal(sum(drawn), Draws.keyed(3, "weight", torch.empty(20, 7), [0]).normal())
    assert all(float((each != 0).sum()) < 140 for each in drawn) or size == 1


def test_zero_rows_are_not_drawn_and_change_no_other_draw():
    mechanism = DropConnect(0.5)
    rows, columns = torch.randn(3, 8), torch.randn(3, 40)

    def drawn(rows):
        return mechanism.sum_of_outer(rows, columns, Draws.keyed(0, "weight", torch.empty(8, 40), [0, 1, 2]))

    part = rows.clone()
    part[:, ::2] = 0
    assert torch.equal(drawn(rows)[1::2], drawn(part)[1::2])


def test_gradients_add_up_as_backward_does():
    model, batch = nn.Linear(4, 3), (torch.randn(5, 4), torch.arange(5) % 3)
    for mechanism in (None, DropConnect(0.4), Langevin(0.2)):
        backward(model, classify, batch, mechanism=mechanism)
        held = model.weight.grad
        once = held.clone()
        backward(model, classify, batch, mechanism=mechanism)
        assert model.weight.grad is held
        assert torch.allclose(held, 2 * once)
        model.zero_grad(set_to_none=True)


def test_seeds_steps_positions_and_workers_have_draws_of_their_own():
    model, batch = nn.Linear(40, 30), (torch.randn(2, 40), torch.arange(2) % 3)

    def drawn(**settings):
        backward(model, classify, batch, mechanism=DropConnect(0.5), **settings)
        return gradients_of(model)["weight"]

    first = drawn(seed=0, samples_seen=0)
    assert torch.equal(first, drawn(seed=0, samples_seen=0))
    others = [drawn(seed=1), drawn(samples_seen=1), drawn(positions=[2, 3], total=9), drawn(positions=[1, 0])]
    others += [drawn(granularity="worker"), drawn(granularity="worker", worker=1)]
    for k, other in enumerate([first, *others]):
        for another in [first, *others][k + 1 :]:
            assert not torch.equal(other, another)


def test_nothing_is_drawn_from_the_global_generator():
    model, batch = nn.Linear(4, 3), (torch.randn(5, 4), torch.arange(5) % 3)
    backward(model, classify, batch, mechanism=DropConnect(0.4))  # the first visit
    before = torch.get_rng_state()
    for mechanism in (DropConnect(0.4), Langevin(0.3), Quantize(), MomentMatched(DropConnect(0.3))):
        backward(model, classify, batch, mechanism=mechanism)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("mechanism", [DropConnect(0.4), Quantize(), Langevin(0.1), Jitter(0.2)], ids=str)
def test_per_worker_it_is_one_draw_for_the_sum(mechanism):
    from variegrad.mechanisms import Draws

    model, batch = nn.Linear(4, 3).double(), (torch.randn(5, 4).double(), torch.arange(5) % 3)
    classify(model, batch).sum().backward()
    sums = gradients_of(model)
    norm = torch.stack([g.square().sum() for g in sums.values()]).sum().sqrt().reshape(1)
    backward(model, classify, batch, mechanism=mechanism, granularity="worker", worker=3, seed=5, samples_seen=7)
    for name, found in gradients_of(model).items():
        keyed = Draws.keyed(5, name, found, [3], purpose="worker", at=7, norms=norm)
        assert torch.equal(found, mechanism.draw(sums[name].unsqueeze(0), keyed)[0])


def infinite(model, batch):
    """Finite losses; the gradient of the example whose input is zero is not."""
    return model(batch).square().sum(1).sqrt()


NOT_FINITE = [DropConnect(0.4), Quantize(), Langevin(0.1), Jitter(0.2), MomentMatched(DropConnect(0.2))]


@pytest.mark.parametrize("granularity", ["example", "worker"])
@pytest.mark.parametrize("mechanism", NOT_FINITE, ids=str)
def test_a_gradient_that_is_not_finite_is_named_and_nothing_is_written(mechanism, granularity):
    if granularity == "worker" and isinstance(mechanism, MomentMatched):
        pytest.skip("there is no such draw")
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False))
    batch = torch.randn(5, 3)
    batch[3] = 0
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(NotFinite, match=r"the gradient of example 3 of the batch with respect to '.*' is not finite"):
        backward(model, infinite, batch, mechanism=mechanism, granularity=granularity)
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())


def test_products_that_overflow_are_not_finite():
    model = nn.Linear(3, 2, bias=False)
    batch = torch.randn(4, 3)
    batch[2] = 3e30

    def losses(model, batch):
        return model(batch).sum(1) * torch.tensor([1, 1, 1e20, 1]) * 1e-20

    def steep(model, batch):
        out = model(batch).sum(1)
        return (out - out.detach()) * torch.tensor([1, 1, 1e20, 1])

    backward(model, losses, batch * 1e-30, mechanism=Quantize())
    with pytest.raises(ValueError, match="example 2 of the batch with respect to 'weight' is not finite"):
        backward(model, steep, batch, mechanism=DropConnect(0.4))


REFUSED = [
    ({"granularity": "batch"}, ValueError, 'granularity must be "example" or "worker"; got \'batch\''),
    ({"worker": -1}, ValueError, "worker must be a rank from 0 on; got -1"),
    ({"positions": [0, 1]}, ValueError, "positions must name one place for each of the 5 examples; got 2"),
    ({"positions": [0, 1, 2, 3, 3]}, ValueError, "different places from 0 on"),
    ({"positions": [-1, 1, 2, 3, 4]}, ValueError, "different places from 0 on"),
    ({"positions": [2**63, 1, 2, 3, 4]}, ValueError, "different places from 0 on"),
    ({"positions": [0.5, 1, 2, 3, 4]}, TypeError, "positions"),  # the type checker may look at this entry first
    ({"total": 4}, ValueError, "total must exceed every position"),
    ({"mechanism": Langevin(1.0), "positions": range(5, 10)}, ValueError, "say total=, the number of examples"),
    ({"mechanism": MomentMatched(DropConnect(0.1)), "granularity": "worker"}, ValueError, r"use DropConnect\(0.1\)"),
]


@pytest.mark.parametrize(("settings", "error", "message"), REFUSED, ids=lambda v: str(v)[:40])
def test_settings_out_of_range_are_refused(settings, error, message):
    model, batch = nn.Linear(4, 3), (torch.randn(5, 4), torch.arange(5) % 3)
    with pytest.raises(error, match=message):
        backward(model, classify, batch, **{"mechanism": DropConnect(0.4), **settings})
    assert model.weight.grad is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mechanism": 0.4}, r"mechanism must be a Mechanism such as DropConnect\(0.4\), or None; got float"),
        ({"seed": 0.5}, "seed must be an integer; got 0.5"),
        ({"samples_seen": True}, "samples_seen must be an integer; got True"),
        ({"worker": "1"}, "worker must be an integer; got '1'"),
    ],
)
def test_settings_of_another_type_are_refused(settings, message):
    # Called directly: in tests the signature of `backward` is checked first, with words of its own.
    given = {"mechanism": None, "granularity": "example", "seed": 0, "samples_seen": 0, "worker": 0, **settings}
    with pytest.raises(TypeError, match=message):
        refuse_settings(**given)


WRONG_SHAPE = {
    "one row": lambda rows, _: rows.sum(0),
    "broadcast": lambda rows, _: rows[:, :1],
    "none": lambda *_: None,
}


@pytest.mark.parametrize("granularity", ["example", "worker"])
@pytest.mark.parametrize("function", WRONG_SHAPE.values(), ids=WRONG_SHAPE)
def test_a_draw_of_another_shape_is_refused(function, granularity):
    model, batch = nn.Linear(4, 3), (torch.randn(5, 4), torch.arange(5) % 3)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match="must return surrogates of the rows' shape"):
        backward(model, classify, batch, mechanism=Own(function), granularity=granularity)
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())


@pytest.mark.parametrize("layer", [nn.Linear(6, 6), weight_norm(nn.Linear(6, 6))], ids=["rules", "fallback"])
def test_a_draw_may_write_into_its_rows(layer):
    model, batch = nn.Sequential(layer, nn.ReLU(), nn.Linear(6, 3)), (torch.randn(5, 6), torch.arange(5) % 3)
    backward(model, classify, batch, mechanism=Own(lambda rows, draws: rows * draws.normal()))
    wanted = gradients_of(model)
    backward(model, classify, batch, mechanism=Own(lambda rows, draws: rows.mul_(draws.normal())))
    assert_same(gradients_of(model), wanted, 1e-5)


OVERFLOWS = [DropConnect(0.99), Langevin(1e38), MomentMatched(DropConnect(0.9)), Own(lambda rows, _: rows * torch.nan)]


@pytest.mark.filterwarnings("ignore:.*encountered in multiply:RuntimeWarning")
@pytest.mark.parametrize("granularity", ["example", "worker"])
@pytest.mark.parametrize("mechanism", OVERFLOWS, ids=["dropconnect", "langevin", "moments", "own"])
def test_what_a_mechanism_makes_not_finite_is_not_written(mechanism, granularity):
    if granularity == "worker" and isinstance(mechanism, (MomentMatched, Langevin)):
        pytest.skip("no such draw, or no overflow in one")
    model, batch = nn.Linear(40, 40), torch.ones(9, 40)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(NotFinite, match="made of the gradients with respect to 'weight' is not finite"):
        backward(model, lambda m, x: m(x).sum(1) * 1e37, batch, mechanism=mechanism, granularity=granularity)
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())


@pytest.mark.parametrize("granularity", ["example", "worker"])
def test_a_norm_beyond_float64_is_not_quantised_to_zero(granularity):
    model = nn.Linear(3, 2).double()
    with pytest.raises(NotFinite, match="the squared norm of a gradient is beyond float64"):
        backward(
            model, lambda m, x: m(x).sum(1) * 1e170, torch.ones(4, 3).double(), mechanism=Quantize(),
            granularity=granularity,
        )  # fmt: skip
    assert model.weight.grad is None


@pytest.mark.parametrize("p", [-0.5, 1.5, float("nan")])
def test_a_probability_out_of_range_is_refused(p):
    with pytest.raises(ValueError, match=r"a probability must lie in \[0, 1\]"):
        draws.Draws.keyed(0, "weight", torch.empty(3), [0]).bernoulli(p)


def test_parameters_without_entries_or_of_one_are_no_exception():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.none, self.one = nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return x * self.one + (x @ self.none.t()).sum(1, keepdim=True)

    model, batch = Odd(), (torch.randn(4, 3), torch.arange(4) % 3)
    for mechanism in (DropConnect(0.4), Quantize(), Langevin(0.1), Jitter(0.2), MomentMatched(DropConnect(0.1))):
        backward(model, classify, batch, mechanism=mechanism)
        found = gradients_of(model)
        assert found["none"].shape == (0, 3)
        assert found["one"].shape == ()


def test_no_examples_leave_gradients_alone():
    model, batch = nn.Linear(4, 3), (torch.randn(0, 4), torch.arange(0))
    assert backward(model, classify, batch, mechanism=DropConnect(0.4)).shape == (0,)
    assert model.weight.grad is None
