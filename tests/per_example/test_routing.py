"""What was learnt of one batch is used for the next only where no value could have changed it."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import distributed

from cases import Fn, energy
from reference import loop_gradients
from variegrad import estimate, example_gradients, measure, measure_differential
from variegrad.per_example import fallback
from variegrad.per_example.engine import Engine
from variegrad.per_example.graph import read_graph
from variegrad.per_example.norms import batch_norms


def check(model, losses, batches):
    """Each batch equals the loop, or is refused; the first is not refused."""
    refused = []
    for k, batch in enumerate(batches):
        rows = loop_gradients(model, losses, batch)
        expected = sum(r.double().reshape(len(r), -1).square().sum(1) for r in rows.values())
        try:
            found = sum(batch_norms(model, losses, batch).sq_norms.values())
        except ValueError as error:
            refused.append((k, str(error)))
            continue
        assert torch.allclose(found, expected, rtol=1e-8), k
    return refused


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.project, self.out = nn.Embedding(8, 4), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, tokens):
        return self.out(nn.functional.embedding(tokens, torch.tanh(self.project(self.table.weight))))


def test_a_projected_table_read_once_then_twice():
    tokens = [torch.arange(8).view(4, 2), torch.randint(0, 8, (4, 2)), torch.randperm(8).view(4, 2)]
    assert not check(Table().double(), energy, tokens)


def test_rows_of_lengths_that_come_from_data():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()

    def losses(model, batch):
        x, lengths = batch
        rows = torch.cat([x[i, : int(n)] for i, n in enumerate(lengths)])
        return torch.stack([part.mean() ** 2 for part in model(rows).squeeze(1).split(lengths.tolist())])

    batches = [(torch.randn(4, 6, 4).double(), torch.tensor(n)) for n in ([3, 3, 3, 3], [1, 5, 2, 4], [6, 2, 3, 1])]
    assert not check(model, losses, batches)


def test_a_mixing_matrix_that_starts_as_the_identity():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    mixing = torch.eye(5).double()

    def losses(model, batch):
        return (mixing @ model(batch)).squeeze(1) ** 2

    batch = torch.randn(5, 4).double()
    assert not check(model, losses, [batch])
    mixing = torch.rand(5, 5).double()
    # The matrix does not fit a part of the batch, so that this cannot tell: each loss is differentiated in its batch.
    assert not check(model, losses, [batch])


def test_a_coupling_that_is_switched_on_later_is_refused_then():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    strength = 0.0

    def losses(model, batch):
        out = model(batch).squeeze(1)
        return out**2 + strength * out.var()

    batch = torch.randn(5, 4).double()
    assert not check(model, losses, [batch])
    strength = 1.0
    assert check(model, losses, [batch])


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_switched_to_training_after_a_measurement_is_refused(affine):
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, affine=affine), nn.Tanh(), nn.Linear(6, 2)).double().eval()
    batch = torch.randn(6, 4).double()
    assert not check(model, energy, [batch])
    model.train()
    for _ in range(2):
        assert "BatchNorm1d" in check(model, energy, [batch])[0][1]
    for refusing in (lambda: estimate(model, energy, batch), lambda: list(example_gradients(model, energy, batch))):
        with pytest.raises(ValueError, match="BatchNorm1d"):
            refusing()


def test_frozen_batch_statistics_below_a_trained_head_are_refused():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)).train()
    model[:2].requires_grad_(False)
    with pytest.raises(ValueError, match="BatchNorm1d '1'"):
        measure(model, energy, [torch.randn(6, 4)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coupling_confined_to_one_of_many_entries_is_seen(dtype):
    class OneCentred(nn.Module):
        def forward(self, x):
            centred = torch.zeros_like(x)
            centred[1:-1, 7] = x[1:-1, 7].mean()
            return x - centred

    model = nn.Sequential(nn.Linear(4, 4096), OneCentred(), nn.Tanh(), nn.Linear(4096, 2)).to(dtype)
    with pytest.raises(ValueError, match="depends on the other examples"):
        batch_norms(model, energy, torch.randn(12, 4, dtype=dtype))


def test_a_gram_whose_terms_cancel_is_formed_instead():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.key = nn.Linear(64, 64)

        def forward(self, x):
            return (self.key(x).sum(2).softmax(1).unsqueeze(2) * x).sum(1)

    model, x = Pooled(), torch.randn(6, 3, 64) + 30
    rows = loop_gradients(model, energy, x)
    expected = sum(r.double().reshape(6, -1).square().sum(1) for r in rows.values())
    engine = Engine(verify=False)
    batch_norms(model, energy, x, engine=engine)
    for key, ways in engine.plan.seconds.items():
        if "gram" in ways:
            engine.plan.chosen[key] = "gram"
    found = sum(batch_norms(model, energy, x, engine=engine).sq_norms.values())
    assert torch.allclose(found, expected, rtol=1e-4)


def test_losses_that_are_normalised_over_the_batch_do_not_mislead_the_fallback():
    model = nn.LSTM(3, 4, batch_first=True).double()

    def losses(model, batch):
        x, weight = batch
        return model(x)[0].square().flatten(1).sum(1) * weight / weight.mean()

    x = torch.randn(5, 4, 3).double()
    assert not check(model, losses, [(x, torch.ones(5).double()), (x, torch.rand(5).double())])


def test_columns_that_are_not_tensors_are_not_cut_silently():
    model, x = nn.Linear(4, 1), torch.randn(6, 4)

    def losses(model, batch):
        rows, weights = batch
        return torch.stack([w * out.square().sum() for w, out in zip(weights, model(rows), strict=False)])

    with pytest.raises(ValueError, match="convert it to a tensor"):
        measure(model, losses, [(x, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])], chunk_size=2)


def test_differences_do_not_depend_on_the_free_memory(monkeypatch):
    model, other, x = nn.Linear(4, 2).double(), nn.Linear(4, 2).double(), torch.randn(7, 4).double()
    sizes = iter([3, 1, 2, 5])
    whole = measure_differential(model, other, energy, [x]).batch_size_bound
    monkeypatch.setattr(fallback, "chunk_size", lambda parameters: next(sizes))
    assert measure_differential(model, other, energy, [x]).batch_size_bound == pytest.approx(whole, rel=1e-12)


def test_one_example_has_a_bound_of_exactly_one():
    found = measure(nn.Linear(4, 2), energy, [torch.randn(1, 4)])
    assert found.batch_size_bound == 1
    assert not found.conflicting


class Sink:
    """As much of a distributed model as its sink looks at."""

    reducer, static_graph, _static_graph_delay_allreduce_enqueued = None, False, False

    def __init__(self, *, clone):
        self._ddp_sink_clone = clone


@pytest.mark.parametrize("clone", [True, False])
def test_what_a_distributed_model_puts_under_its_outputs_hands_gradients_on(clone):
    model, sink = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double(), Sink(clone=clone)

    def losses(model, batch):
        out, _ = distributed._DDPSink.apply(lambda: sink, model(batch), model[0](batch))
        return energy(lambda _: out, batch)

    engine = Engine()
    batches = [torch.randn(b, 4).double() for b in (16, 16, 5)]
    for batch in batches:
        rows = loop_gradients(model, losses, batch)
        found = batch_norms(model, losses, batch, engine=engine)
        for name, r in rows.items():
            assert torch.allclose(found.sq_norms[name], r.flatten(1).square().sum(1), rtol=1e-9), name
    (known,) = engine.known.values()
    assert known.routed
    assert not known.dormant
    assert not known.uncovered
    assert not read_graph(losses(model, batches[0]).grad_fn, dict(model.named_parameters())).opaque


def test_another_function_of_that_name_is_not_trusted():
    class _DDPSink(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient.flip(0)

    model = nn.Linear(4, 2)
    graph = read_graph(energy(lambda x: _DDPSink.apply(model(x)), torch.randn(5, 4)).grad_fn, {})
    assert graph.opaque == ("_DDPSinkBackward",)


def in_single_precision(m, batch):
    # A table that is prepared in float32, as relative coordinates often are: what it is added to keeps eight digits.
    places = m.table(torch.arange(3)).mean(1)
    single = (batch + places.unsqueeze(1)).flatten(1).float()
    # Another size is blocked in another way, and differs in its last digit.
    return m.out((single * (1 + 3e-7 * (len(batch) == 16))).double())


@pytest.mark.parametrize("coupling", [0.0, 0.05])
def test_equal_losses_are_as_equal_as_the_type_of_the_fewest_digits_makes_them(coupling):
    def forward(m, batch):
        out = in_single_precision(m, batch)
        return out + coupling * out.mean(0).detach()

    model = Fn(forward, table=nn.Embedding(3, 2), out=nn.Linear(12, 2)).double()
    batch = torch.randn(16, 3, 4).double()
    # A prepared table is a reason to compare the losses of a part of the batch with those of the whole.
    if coupling:
        with pytest.raises(ValueError, match="depends on the other examples"):
            batch_norms(model, energy, batch)
    else:
        assert len(batch_norms(model, energy, batch).sq_norms["out.weight"]) == 16
