"""Every number type and every degenerate batch: the loop's numbers, or one clear sentence."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import variegrad as vg
from reference import loop_gradients
from variegrad.measurement import measure, measure_differential
from variegrad.per_example import explain

pytestmark = pytest.mark.filterwarnings("ignore:Sparse", "ignore:.*beta state")


def squares(rows):
    return sum((r.abs().double() ** 2).reshape(len(r), -1).sum(1) for r in rows.values())


class Waves(nn.Module):
    """A Fourier layer with complex weights between real ones."""

    def __init__(self, dtype):
        super().__init__()
        self.inner, self.outer = nn.Conv1d(1, 3, 1).to(dtype), nn.Conv1d(3, 1, 1).to(dtype)
        self.w = nn.Parameter(
            torch.randn(3, 3, 4, dtype=torch.complex64 if dtype == torch.float32 else torch.complex128)
        )

    def forward(self, x):
        modes = torch.fft.rfft(self.inner(x))
        kept = torch.einsum("bix,iox->box", modes[..., :4], self.w)
        return self.outer(torch.fft.irfft(F.pad(kept, (0, modes.shape[-1] - 4)), n=x.shape[-1]))


def wave_losses(model, batch):
    return (model(batch[0]) - batch[1]).square().mean((1, 2))


def waves(dtype, count, seed):
    torch.manual_seed(seed)
    return torch.randn(count, 1, 16, dtype=dtype), torch.randn(count, 1, 16, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_complex_parameters_are_pairs_of_reals_everywhere(dtype) -> None:
    torch.manual_seed(0)
    model, rel = Waves(dtype), 1e-4 if dtype == torch.float32 else 1e-9
    batches = [waves(dtype, count, seed) for seed, count in enumerate((6, 3, 9))]
    a, total, l1_l2 = 0.0, None, 0.0
    for batch in batches:
        rows = loop_gradients(model, wave_losses, batch)
        torch.testing.assert_close(vg.example_sq_norms(model, wave_losses, batch), squares(rows), rtol=rel, atol=0)
        real = [torch.view_as_real(r) if r.is_complex() else r for r in rows.values()]
        flat = torch.cat([r.reshape(len(r), -1).double() for r in real], 1)
        a, total = a + float(flat.square().sum()), flat.sum(0) + (0 if total is None else total)
        l1_l2 += float((flat.abs().sum(1) * flat.norm(dim=1)).sum())
    found = measure(model, wave_losses, batches, mechanism=vg.Quantize())
    assert found.sum_sq_norms == pytest.approx(a, rel=rel)
    assert found.sq_norm_of_sum == pytest.approx(float(total.square().sum()), rel=rel)
    assert found.sum_l1_l2_norms == pytest.approx(l1_l2, rel=rel)
    assert found.dimension == len(total)
    other = Waves(dtype)
    other.load_state_dict({k: v + 0.1 for k, v in model.state_dict().items()})
    here, there = (loop_gradients(m, wave_losses, batches[0]) for m in (model, other))
    apart = {name: here[name] - there[name] for name in here}
    found = measure_differential(model, other, wave_losses, batches[:1])
    assert found.sum_sq_norms == pytest.approx(float(squares(apart).sum()), rel=rel)
    whole = sum(float(r.sum(0).abs().double().square().sum()) for r in apart.values())
    assert found.sq_norm_of_sum == pytest.approx(whole, rel=rel)


@pytest.mark.parametrize("product", ["@", "sparse.mm", "linear", "addmm"])
@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_sparse_inputs_are_served_by_a_rule(layout, product) -> None:
    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.v, self.b = (nn.Parameter(torch.randn(*s).double()) for s in ((5, 2), (2, 5), (2,)))

        def forward(self, x):
            if product == "linear":
                return F.linear(x, self.v, self.b)
            if product == "addmm":
                return torch.addmm(self.b, x, self.w, alpha=0.7)
            return torch.sparse.mm(x, self.w) if product == "sparse.mm" else x @ self.w

    torch.manual_seed(0)
    model, losses = Sparse(), lambda m, b: m(b).square().sum(1)
    for count in (7, 3, 12):
        dense = torch.randn(count, 5).double() * (torch.rand(count, 5) < 0.4)
        dense[1] = 0
        x = getattr(dense, f"to_sparse_{layout}")()
        rows = loop_gradients(model, losses, x)
        torch.testing.assert_close(vg.example_sq_norms(model, losses, x), squares(rows))
        for name, parameter in model.named_parameters():
            expected = rows[name].sum(0)
            torch.testing.assert_close(
                torch.zeros_like(parameter) if parameter.grad is None else parameter.grad, expected
            )
        model.zero_grad()
    assert "tokens" in str(explain(model, losses, x))
    assert vg.estimate(model, losses, x).count == 12


class Losses(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.idle = nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(3))


def test_losses_that_are_a_parameter() -> None:
    model, itself = Losses(), lambda m, b: m.w
    assert vg.example_sq_norms(model, itself, torch.zeros(12)).equal(torch.ones(12, dtype=torch.float64))
    assert model.w.grad.equal(torch.ones(12))
    assert measure(model, itself, [torch.zeros(12)]).batch_size_bound == pytest.approx(12)
    assert vg.estimate(model, itself, torch.zeros(12)).coherence == 0


def test_an_empty_batch_is_zero_norms_or_a_sentence() -> None:
    model, losses = nn.Linear(3, 1), lambda m, b: m(b).squeeze(1) ** 2
    empty = torch.zeros(0, 3)
    assert vg.example_sq_norms(model, losses, empty).shape == (0,)
    assert measure(model, losses, [empty, torch.randn(4, 3), empty]).count == 4
    for call in (
        lambda: vg.estimate(model, losses, empty),
        lambda: measure(model, losses, [empty]),
        lambda: vg.sign_probe(model, losses, empty),
    ):
        with pytest.raises(ValueError, match=r"no examples|at least 2 examples"):
            call()


@pytest.mark.parametrize("before", ["none", "sparse", "dense"])
@pytest.mark.parametrize("bag", [False, True])
def test_the_gradient_of_a_sparse_table_stays_sparse_and_is_added_to_any(before, bag) -> None:
    torch.manual_seed(0)
    table = nn.EmbeddingBag(30, 4, mode="mean", sparse=True) if bag else nn.Embedding(30, 4, sparse=True)
    model = nn.Sequential(table, nn.Flatten(), nn.Linear(4 if bag else 12, 3))
    losses = lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none")  # noqa: E731
    for count in (6, 3, 9):
        batch = torch.randint(30, (count, 3)), torch.randint(3, (count,))
        rows = loop_gradients(model, losses, batch)
        start = torch.randn(30, 4)
        kept = {"none": None, "sparse": start.to_sparse(1), "dense": start.clone()}[before]
        model.zero_grad(set_to_none=True)
        table.weight.grad = kept
        torch.testing.assert_close(vg.example_sq_norms(model, losses, batch), squares(rows), rtol=1e-5, atol=0)
        assert table.weight.grad.is_sparse is (before != "dense")
        expected = rows["0.weight"].sum(0) + (0 if kept is None else start)
        torch.testing.assert_close(table.weight.grad.to_dense(), expected)


def test_a_table_of_two_million_rows_costs_its_touched_rows(monkeypatch) -> None:
    model = nn.Sequential(nn.Embedding(2_000_000, 2, sparse=True), nn.Flatten(), nn.Linear(8, 3))
    losses = lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none")  # noqa: E731
    batches = [(torch.randint(2_000_000, (64, 4)), torch.randint(3, (64,))) for _ in range(3)]
    # What is learnt at first use, and checked against the loop at the first four batches, is another matter.
    measure(model, losses, batches[:1])
    for _ in range(4):
        vg.estimate(model, losses, batches[0])
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **kwargs or {})
            for t in result if isinstance(result, list | tuple) else [result]:
                if (
                    isinstance(t, torch.Tensor)
                    and t.layout == torch.strided
                    and t.data_ptr() != model[0].weight.data_ptr()
                ):
                    largest = max(largest, t.numel())
            return result

    with Sizes():
        assert measure(model, losses, batches).count == 192
        assert vg.estimate(model, losses, batches[0]).count == 64
    assert largest < 100_000


class Modes(nn.Module):
    """A linear map between Fourier modes, with a complex weight or with its pair of reals."""

    def __init__(self, pairs):
        super().__init__()
        torch.manual_seed(0)
        w = torch.randn(4, 3, dtype=torch.cdouble)
        self.w = nn.Parameter(torch.view_as_real(w).clone() if pairs else w)
        self.bias = nn.Parameter(torch.randn(3).double())

    def forward(self, x):
        w = self.w if self.w.is_complex() else torch.view_as_complex(self.w)
        return (torch.fft.fft(x) @ w).abs() + self.bias


MECHANISMS = [vg.DropConnect(0.4), vg.Quantize(), vg.Langevin(0.5), vg.MomentMatched(vg.DropConnect(0.3))]


@pytest.mark.parametrize("granularity", ["example", "worker"])
@pytest.mark.parametrize("mechanism", MECHANISMS, ids=str)
def test_a_mechanism_draws_for_complex_weights_what_it_draws_for_their_pairs(mechanism, granularity) -> None:
    if granularity == "worker" and isinstance(mechanism, vg.MomentMatched):
        pytest.skip("stands for many draws")
    x = torch.randn(7, 4).double()
    losses = lambda m, b: m(b).square().sum(1)  # noqa: E731
    found = {}
    for pairs in (False, True):
        model = Modes(pairs)
        vg.backward(model, losses, x, mechanism=mechanism, seed=3, samples_seen=14, granularity=granularity)
        assert model.w.grad.dtype == model.w.dtype
        found[pairs] = torch.view_as_real(model.w.grad) if not pairs else model.w.grad
    torch.testing.assert_close(found[False], found[True])
    assert found[True].abs().sum() > 0


@pytest.mark.parametrize("kind", ["rows", "tokens"])
@pytest.mark.parametrize("bad", [(1, 0, 0, 1, 0), (0, 1, 0, 0, 1), (0, 0, 1, 1, 0), (1, 1, 1, 0, 0)])
def test_a_gradient_that_is_not_finite_is_shown_whenever_it_comes_and_spoils_no_other_batch(kind, bad) -> None:
    """The square root of zero: before anything was learned, while it is checked, and in a steady call.

    In the loop, 0 · ∞ makes all examples of such a batch NaN; rules may still know those of the others.
    """
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False) if kind == "rows" else nn.Embedding(9, 3)
    model.double()
    if kind == "tokens":
        model.weight.data[0] = 0

    def losses(model, x):
        out = model(x)
        return out.reshape(len(x), -1).square().sum(1).sqrt()

    for k, is_bad in enumerate(bad):
        count = (8, 5, 6)[k % 3]
        x = torch.randn(count, 4).double() if kind == "rows" else torch.randint(1, 9, (count, 2))
        if is_bad:
            x[k % count] = 0
        alone = torch.cat([squares(loop_gradients(model, losses, x[i : i + 1])) for i in range(count)])
        found = vg.example_sq_norms(model, losses, x)
        known = found.isfinite() if is_bad else torch.ones(count, dtype=torch.bool)
        assert not is_bad or not known[k % count]
        torch.testing.assert_close(found[known], alone[known])
        assert all(bool(p.grad.isfinite().all()) != bool(is_bad) for p in model.parameters())
        model.zero_grad()
