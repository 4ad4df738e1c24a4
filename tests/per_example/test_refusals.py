"""Examples that are coupled are refused, with what to do; and everything is left as it was found."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cases import classify, energy
from reference import loop_gradients
from variegrad.per_example import Engine, example_gradients, example_sq_norms
from variegrad.per_example.norms import batch_norms

X, Y = torch.randn(8, 3, 6, 6), torch.arange(8) % 3


def convnet(norm):
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def test_batch_norm_in_training_mode_is_refused_by_name():
    with pytest.raises(ValueError, match=r"BatchNorm2d '1' uses the statistics of the batch.*eval\(\).*sign_probe"):
        example_sq_norms(convnet(nn.BatchNorm2d(4)).train(), classify, (X, Y))


def test_batch_norm_without_running_statistics_is_refused_in_evaluation_mode_too():
    model = convnet(nn.BatchNorm2d(4, track_running_stats=False)).eval()
    with pytest.raises(ValueError, match="statistics of the batch"):
        example_sq_norms(model, classify, (X, Y))


def test_batch_norm_without_parameters_of_its_own_is_refused():
    with pytest.raises(ValueError, match="BatchNorm2d '1'"):
        example_sq_norms(convnet(nn.BatchNorm2d(4, affine=False)).train(), classify, (X, Y))


def test_batch_norm_as_the_only_trained_layer_is_refused():
    model = convnet(nn.BatchNorm2d(4)).train()
    model.requires_grad_(False)
    model[1].requires_grad_(True)
    with pytest.raises(ValueError, match="statistics of the batch"):
        example_sq_norms(model, classify, (X, Y))


def test_hand_written_batch_statistics_are_refused():
    class Centred(nn.Module):
        def forward(self, x):
            return x - x.mean(0, keepdim=True)

    with pytest.raises(ValueError, match="depends on the other examples"):
        example_sq_norms(convnet(Centred()), classify, (X, Y))


def test_contrastive_losses_are_refused():
    def contrast(model, batch):
        z = F.normalize(model(batch[0]), dim=1)
        return F.cross_entropy(z @ z.t() * 5, torch.arange(len(z)), reduction="none")

    with pytest.raises(ValueError, match="depends on the other examples"):
        example_sq_norms(nn.Sequential(nn.Flatten(), nn.Linear(108, 4)), contrast, (X, Y))


def test_coupling_under_dropout_is_refused():
    model = convnet(nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(4))).train()
    with pytest.raises(ValueError, match="statistics of the batch"):
        example_sq_norms(model, classify, (X, Y))


def test_embedding_scaled_by_frequency_over_the_batch_is_refused():
    model = nn.Embedding(5, 4, scale_grad_by_freq=True)
    with pytest.raises(ValueError, match="scale_grad_by_freq=True"):
        example_sq_norms(model, energy, torch.randint(0, 5, (6, 7)))


def test_a_backward_pass_that_is_not_linear_is_refused_or_right():
    class SignGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g.sign()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.b(SignGradient.apply(self.a(x)))

    model, x = Model(), torch.randn(6, 4)
    rows = loop_gradients(model, energy, x)
    try:
        found = example_sq_norms(model, energy, x)
    except (RuntimeError, ValueError):
        return
    assert torch.allclose(found, sum(r.double().reshape(6, -1).square().sum(1) for r in rows.values()), rtol=1e-4)


def test_nothing_is_left_behind_after_a_refusal():
    model = convnet(nn.BatchNorm2d(4)).train()
    before = {k: v.clone() for k, v in model.named_buffers()}
    with pytest.raises(ValueError, match="statistics"):
        from variegrad import measure

        measure(model, classify, [(X, Y)])
    assert all(torch.equal(v, before[k]) for k, v in model.named_buffers())
    assert all(p.grad is None and not p._backward_hooks for p in model.parameters())
    assert all(not m._forward_hooks and not m._backward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert model.training


def test_after_an_exception_inside_the_losses_the_next_call_is_right():
    model = nn.Linear(4, 3)
    x = torch.randn(6, 4)

    def broken(model, batch):
        energy(model, batch)
        raise KeyError("column")

    with pytest.raises(KeyError):
        example_sq_norms(model, broken, x)
    rows = loop_gradients(model, energy, x)
    expected = sum(r.double().reshape(6, -1).square().sum(1) for r in rows.values())
    assert torch.allclose(example_sq_norms(model, energy, x), expected, rtol=1e-5)


def test_grad_accumulates_as_backward_does():
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), torch.randn(6, 4)
    energy(model, x).sum().backward()
    once = [p.grad.clone() for p in model.parameters()]
    example_sq_norms(model, energy, x)
    assert all(
        torch.allclose(p.grad, 2 * g, rtol=1e-5, atol=1e-6) for p, g in zip(model.parameters(), once, strict=True)
    )


def test_nested_use_inside_the_losses():
    inner = nn.Linear(3, 2)
    outer, x = nn.Linear(4, 3), torch.randn(6, 4)

    def losses(model, batch):
        hidden = model(batch)
        weight = example_sq_norms(inner, energy, hidden.detach()).to(hidden)
        return hidden.square().sum(1) * (1 + weight)

    rows = loop_gradients(outer, losses, x)
    expected = sum(r.double().reshape(6, -1).square().sum(1) for r in rows.values())
    assert torch.allclose(example_sq_norms(outer, losses, x), expected, rtol=1e-5)


def test_several_threads_at_once():
    results = {}

    def work(k):
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 3)), X[: 4 + k]
        found = example_sq_norms(model, energy, x)
        rows = loop_gradients(model, energy, x)
        results[k] = torch.allclose(
            found, sum(r.double().reshape(len(x), -1).square().sum(1) for r in rows.values()), rtol=1e-4
        )

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(4), True)


def test_lengths_that_vary_from_batch_to_batch():
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    for b, t in ((4, 4), (3, 7), (6, 1), (6, 5), (1, 4), (2, 9)):
        x = torch.randn(b, t, 8)
        rows = loop_gradients(model, energy, x)
        expected = sum(r.double().reshape(b, -1).square().sum(1) for r in rows.values())
        assert torch.allclose(batch_total(model, x), expected, rtol=1e-4), (b, t)


def batch_total(model, x):
    return sum(batch_norms(model, energy, x).sq_norms.values())


def test_rows_that_are_sorted_by_data_are_followed():
    class Sorted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            order = x[:, 0].argsort()
            out = torch.tanh(self.layer(x[order]))
            back = torch.empty_like(out)
            back[order] = out
            return back

    model = Sorted()
    for seed in range(3):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
        if seed == 0:
            x = x[x[:, 0].argsort()]  # the first batch happens to be in order
        rows = loop_gradients(model, energy, x)
        expected = sum(r.double().reshape(6, -1).square().sum(1) for r in rows.values())
        assert torch.allclose(batch_total(model, x), expected, rtol=1e-4)


def test_a_model_that_changes_its_structure_is_followed():
    class Early(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.b(torch.tanh(self.a(x))) if x.sum() > 0 else self.b(x)

    model = Early()
    for sign in (1, -1, 1):
        x = sign * torch.rand(5, 4)
        rows = loop_gradients(model, energy, x)
        expected = sum(r.double().reshape(5, -1).square().sum(1) for r in rows.values())
        assert torch.allclose(batch_total(model, x), expected, rtol=1e-4)


def test_a_subset_gives_the_norms_of_those_and_the_sum_of_all():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    rows = loop_gradients(model, energy, X)
    whole = sum(r.double().reshape(8, -1).square().sum(1) for r in rows.values())
    for examples in ([0, 1, 2], [5, 1, 7], range(2, 6)):
        model.zero_grad()
        found = example_sq_norms(model, energy, X, examples=examples)
        assert torch.allclose(found, whole[list(examples)], rtol=1e-4)
        for name, p in model.named_parameters():
            assert torch.allclose(p.grad, rows[name].sum(0), rtol=1e-4, atol=1e-4), name


@pytest.mark.parametrize("chunk_size", [1, 3, None])
def test_example_gradients_are_the_loops(chunk_size):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    rows = loop_gradients(model, energy, X.double())
    chunks = list(example_gradients(model, energy, X.double(), chunk_size=chunk_size))
    for name in rows:
        assert torch.allclose(torch.cat([c[name] for c in chunks]), rows[name], rtol=1e-10, atol=1e-12)
    assert all(p.grad is None for p in model.parameters())


def test_every_variant_of_every_rule_agrees():
    """What the plan chooses is a matter of speed alone."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten(2), nn.Linear(16, 5)).double()
    x = X.double()
    engine = Engine()
    expected = batch_norms(model, energy, x, engine=engine)
    for key in engine.plan.seconds:
        for way in engine.plan.seconds[key]:
            engine.plan.chosen[key] = way
            found = batch_norms(model, energy, x, engine=engine)
            for name in expected.sq_norms:
                assert torch.allclose(found.sq_norms[name], expected.sq_norms[name], rtol=1e-10), (key, way)
                assert torch.allclose(found.total[name], expected.total[name], rtol=1e-9, atol=1e-12), (key, way)
    assert len(engine.plan.seconds) >= 3


def test_a_deterministic_engine_measures_nothing():
    engine = Engine(measured=False)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    first = batch_norms(model, energy, X, engine=engine)
    second = batch_norms(model, energy, X, engine=engine)
    assert not engine.plan.seconds
    assert not engine.plan.chosen
    assert all(torch.equal(first.sq_norms[n], second.sq_norms[n]) for n in first.sq_norms)


def test_autocast_to_bfloat16():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))

    def losses(model, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return classify(model, batch).float()

    rows = loop_gradients(model, losses, (X, Y))
    expected = sum(r.double().reshape(8, -1).square().sum(1) for r in rows.values())
    assert torch.allclose(example_sq_norms(model, losses, (X, Y)), expected, rtol=3e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(example_sq_norms(model, losses, (X, Y)), expected, rtol=3e-2)


def test_bfloat16_models():
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 16), nn.ReLU(), nn.Linear(16, 3)).bfloat16()
    batch = (X.bfloat16(), Y)
    rows = loop_gradients(model, classify, batch)
    expected = sum(r.double().reshape(8, -1).square().sum(1) for r in rows.values())
    assert torch.allclose(example_sq_norms(model, classify, batch), expected, rtol=3e-2)


def test_a_compiled_model_is_measured_through_its_original():
    model = nn.Linear(4, 3)
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(6, 4)
    assert torch.equal(example_sq_norms(compiled, energy, x), example_sq_norms(model, energy, x))


def test_a_wrapper_of_data_parallel_training_is_measured_locally(tmp_path):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, x = nn.Linear(4, 3), torch.randn(6, 4)
        wrapped = nn.parallel.DistributedDataParallel(model)
        for _ in range(2):
            found = example_sq_norms(wrapped, energy, x)
            energy(wrapped, x).sum().backward()
        assert torch.equal(found, example_sq_norms(model, energy, x))
    finally:
        dist.destroy_process_group()


def test_the_graph_is_freed():
    """No reference cycle keeps activations alive until the garbage collector runs."""
    import gc
    import weakref

    kept = []

    class Remember(nn.Module):
        def forward(self, x):
            out = torch.tanh(x)
            kept.append(weakref.ref(out))
            return out

    model = nn.Sequential(nn.Linear(4, 5), Remember(), nn.Linear(5, 2))
    gc.disable()
    try:
        for _ in range(3):
            example_sq_norms(model, energy, torch.randn(6, 4))
        assert kept[-1]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("examples", [[], [0, 0], [8], [-1]])
def test_examples_that_are_not_in_the_batch_are_refused(examples):
    with pytest.raises(ValueError, match="different indices from 0 to 7"):
        example_sq_norms(nn.Sequential(nn.Flatten(), nn.Linear(108, 3)), classify, (X, Y), examples=examples)


def test_a_subset_where_uses_are_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.mix = nn.Embedding(9, 4), nn.Linear(4, 4)

        def forward(self, tokens):
            return F.linear(torch.tanh(self.mix(self.mix(self.embedding(tokens)))), self.embedding.weight)

    model, tokens = Tied(), torch.randint(0, 9, (6, 5))
    rows = loop_gradients(model, energy, tokens)
    whole = sum(r.double().reshape(6, -1).square().sum(1) for r in rows.values())
    assert torch.allclose(example_sq_norms(model, energy, tokens, examples=[4, 1]), whole[[4, 1]], rtol=1e-4)
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, rows[name].sum(0), rtol=1e-4, atol=1e-4), name
