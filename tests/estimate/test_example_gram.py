"""⟨g_i, g_j⟩ of every kind of model equals the loop's, and nothing of the size b × d is ever formed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import variegrad as vg
from cases import CASES, Fn, classify, energy
from reference import loop_gradients
from variegrad.estimators import example_gram
from variegrad.estimators.example_gram import gram_by_part
from variegrad.per_example.evaluate import trained_parameters
from variegrad.per_example.rules import gram

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def flat(rows, scale=None):
    rows = torch.view_as_real(rows) if rows.is_complex() else rows
    return (rows * (1 if scale is None else scale)).double().reshape(len(rows), -1)


def check(model, losses, batch, scales=None, rel=1e-8):
    factors = scales(trained_parameters(model)) if scales else {}
    found = gram_by_part(model, losses, batch, str, scales)
    expected = {name: flat(rows, factors.get(name)) for name, rows in loop_gradients(model, losses, batch).items()}
    assert found.keys() == expected.keys()
    size = sum(float(rows.square().sum()) for rows in expected.values())
    for name, rows in expected.items():
        torch.testing.assert_close(found[name], rows @ rows.T, rtol=rel, atol=rel * size, msg=name)


def random_scales(parameters):
    torch.manual_seed(7)
    shapes = {name: (*p.shape, 2) if p.is_complex() else tuple(p.shape) for name, p in parameters.items()}
    return {name: torch.rand(shape, dtype=torch.float64) + 0.1 for name, shape in shapes.items()}


@pytest.fixture(params=["usual", "tiny"])
def slices(request, monkeypatch):
    if request.param == "tiny":
        monkeypatch.setattr(gram, "SLICE_BYTES", 400)
    return request.param


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gram_matrices_are_the_loops(case, slices) -> None:
    torch.manual_seed(0)
    model, losses, batch = case.make()
    model = model.double()
    batch = torch.utils._pytree.tree_map(
        lambda t: t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t, batch
    )
    check(model, losses, batch, random_scales if slices == "tiny" else None)


class Spectral(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 3, 4, dtype=torch.cdouble) * 0.3)

    def forward(self, x):
        modes = torch.fft.rfft(x)
        kept = torch.einsum("bix,iox->box", modes[..., :4], self.w)
        return torch.fft.irfft(F.pad(kept, (0, modes.shape[-1] - 4)), n=x.shape[-1])


def complex_weights():
    return (
        nn.Sequential(nn.Conv1d(1, 3, 1), Spectral(), nn.Conv1d(3, 1, 1)).double(),
        energy,
        torch.randn(6, 1, 16).double(),
    )


def temperature():
    model = Fn(lambda s, x: s.linear(x) * s.scale.exp(), linear=nn.Linear(4, 3), scale=nn.Parameter(torch.tensor(0.3)))
    return model.double(), classify, (torch.randn(9, 4).double(), torch.randint(3, (9,)))


def frozen_and_unused():
    model = nn.ModuleDict({"a": nn.Linear(4, 5), "b": nn.Linear(5, 3), "idle": nn.Linear(2, 2)}).double()
    model["a"].weight.requires_grad_(False)
    forward = lambda m, b: F.cross_entropy(m["b"](m["a"](b[0]).tanh()), b[1], reduction="none")  # noqa: E731
    return model, forward, (torch.randn(9, 4).double(), torch.randint(3, (9,)))


class Cube(torch.autograd.Function):
    """No rule knows this."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w**3

    @staticmethod
    def backward(ctx, gradient):
        x, w = ctx.saved_tensors
        return gradient @ (w**3).T, (x.T @ gradient) * 3 * w**2


def custom_function():
    model = Fn(
        lambda s, x: s.out(Cube.apply(x, s.w).tanh()), out=nn.Linear(120, 2), w=nn.Parameter(torch.randn(50, 120) / 7)
    )
    return model.double(), energy, torch.randn(12, 50).double()


@pytest.mark.parametrize(
    "make", [complex_weights, temperature, frozen_and_unused, custom_function], ids=lambda f: f.__name__
)
def test_complex_zero_dimensional_frozen_and_unknown_parameters(make, slices) -> None:
    torch.manual_seed(0)
    model, losses, batch = make()
    check(model, losses, batch)
    check(model, losses, batch, random_scales)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_compared_with_the_products_of_their_rows(dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 4)).to(dtype)
    batch = torch.randn(16, 40, dtype=dtype), torch.randint(4, (16,))
    check(model, lambda m, b: F.cross_entropy(m(b[0]).float(), b[1], reduction="none"), batch, rel=2e-2)


def test_a_large_parameter_of_the_loop_is_sketched_with_exact_norms_and_sums(monkeypatch) -> None:
    torch.manual_seed(0)
    model, losses, batch = custom_function()
    monkeypatch.setattr(example_gram, "KEPT_BYTES", 0)
    rows = torch.cat([flat(r) for r in loop_gradients(model, losses, batch).values()], 1)
    truth, off = rows @ rows.T, ~torch.eye(12, dtype=torch.bool)
    found = [gram_by_part(model, losses, batch, lambda _: "all")["all"] for _ in range(1)]
    torch.testing.assert_close(found[0].diagonal(), truth.diagonal())
    torch.testing.assert_close(found[0].sum(1), truth.sum(1))
    # One sketch of width k errs by √(K_ii K_jj/k) at most in a pair, on average.
    error = (found[0] - truth)[off].square().mean().sqrt()
    assert 0 < float(error) < 2 * float(truth.diagonal().mean()) / example_gram.SKETCH**0.5


@pytest.mark.parametrize("shape", [(40, 60), (60, 40)])
def test_scaled_products_of_a_wide_layer_are_sketched_with_exact_norms_and_sums(monkeypatch, shape) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(*shape, bias=False), nn.Tanh(), nn.Linear(shape[1], 3, bias=False)).double()
    batch = torch.randn(12, shape[0]).double(), torch.randint(3, (12,))
    monkeypatch.setattr(gram, "EXACT", 1000)
    scale = random_scales(trained_parameters(model))
    rows = flat(loop_gradients(model, classify, batch)["0.weight"], scale["0.weight"])
    truth, off = rows @ rows.T, ~torch.eye(12, dtype=torch.bool)
    found = gram_by_part(model, classify, batch, str, random_scales)["0.weight"]
    torch.testing.assert_close(found.diagonal(), truth.diagonal())
    torch.testing.assert_close(found.sum(1), truth.sum(1))
    error = (found - truth)[off].square().mean().sqrt()
    # Inputs of unequal size make fewer sums count: Gaussian ones a third of them.
    assert 0 < float(error) < 4 * float(truth.diagonal().mean()) / gram.SUMS**0.5


class Largest(TorchDispatchMode):
    """The largest number of entries of any tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        made = [result] if isinstance(result, torch.Tensor) else result if isinstance(result, list | tuple) else []
        strides = [t for t in made if isinstance(t, torch.Tensor) and t.layout == torch.strided]
        self.entries = max([self.entries, *(t.untyped_storage().nbytes() // t.element_size() for t in strides)])
        return result


def wide():
    return nn.Sequential(nn.Linear(300, 400), nn.ReLU(), nn.Linear(400, 10)), (
        torch.randn(64, 300),
        torch.randint(10, (64,)),
    )


def sequences():
    model = Fn(lambda s, x: s.b(s.a(x).tanh()).mean(1), a=nn.Linear(200, 300), b=nn.Linear(300, 10))
    return model, (torch.randn(64, 3, 200), torch.randint(10, (64,)))


def table():
    return nn.Sequential(nn.Embedding(40_000, 4), nn.Flatten(), nn.Linear(16, 10)), (
        torch.randint(40_000, (64, 4)), torch.randint(10, (64,)),
    )  # fmt: skip


@pytest.mark.parametrize("make", [wide, sequences, table], ids=lambda f: f.__name__)
@pytest.mark.parametrize("preconditioned", [False, True])
def test_no_tensor_has_a_gradient_for_each_example(make, preconditioned, monkeypatch) -> None:
    monkeypatch.setattr(gram, "SLICE_BYTES", 1 << 18)
    torch.manual_seed(0)
    model, batch = make()
    losses = lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none")  # noqa: E731
    vg.estimate(model, losses, batch)  # what is learnt at first use is another matter
    second = {p: torch.rand_like(p) for p in model.parameters()} if preconditioned else None
    with Largest() as largest:
        vg.estimate(model, losses, batch, preconditioner=second)
    assert largest.entries <= 3 * sum(p.numel() for p in model.parameters())
