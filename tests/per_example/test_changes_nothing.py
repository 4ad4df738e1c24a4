"""What a call leaves behind: nothing, or what one evaluation and one backward pass of the user would.

Each model keeps something that measuring could spoil; each entry is compared by a photograph of it before and after.
"""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import variegrad as vg
from variegrad.per_example import loop_gradients

pytestmark = pytest.mark.filterwarnings("ignore")


def photograph(model):
    """All that a user could notice: gradients (which object, layout, values), buffers, attributes, modes, hooks."""
    seen = {}
    for name, p in model.named_parameters():
        g = p.grad
        seen["grad", name] = None if g is None else (id(g), g.layout, () if g.is_sparse else g.stride(), *values(g))
        seen["parameter", name] = (id(p), p.requires_grad, p._version, *values(p))
        seen["hooks", name] = [list(hooks or {}) for hooks in (p._backward_hooks, p._post_accumulate_grad_hooks)]
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key.endswith("hooks"):
                seen[key, name] = list(value)
            elif key not in ("_parameters", "_buffers", "_modules"):
                seen[key, name] = (id(value), *values(value)) if isinstance(value, torch.Tensor) else value
        for key, buffer in module._buffers.items():
            seen["buffer", name, key] = (id(buffer), *values(buffer))
    return seen | generators()


def values(tensor):
    tensor = tensor.detach()
    return tuple((tensor.to_dense() if tensor.is_sparse else tensor).flatten().tolist())


def generators():
    # Not Python's: the type checks of the tests draw from it.
    state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (state["key"].tobytes(), state["pos"]),
    }


class Kept(nn.Module):
    """Rebinds a buffer, writes to another, sets a plain attribute, and draws from two generators."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("ema", torch.zeros(()))
        self.register_buffer("calls", torch.zeros(()))
        self.last = None

    def forward(self, x):
        h = F.dropout(torch.tanh(self.a(x)), 0.3, self.training)
        self.ema = 0.9 * self.ema + h.detach().mean()
        self.calls += 1
        self.last = h.detach()
        return self.b(h) * (1 + 0.1 * np.random.rand())  # noqa: NPY002


class Looked(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4, sparse=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.table((x[:, :3] * 3).long().abs() % 9).mean(1))


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6))
        self.norm, self.b = nn.BatchNorm1d(6).eval(), nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x):
        return self.b(checkpoint(lambda h: torch.tanh(self.norm(h)), self.a(x), use_reentrant=False))


class Images(nn.Module):
    """Channels last, with frozen parts."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1).to(memory_format=torch.channels_last)
        self.head = nn.Linear(4, 3)
        self.head.bias.requires_grad_(False)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x[:, :, None, None].expand(-1, -1, 3, 3)[:, :2])).mean((2, 3)))


class Twice(torch.autograd.Function):
    """Differentiates inside its backward pass, and accumulates into `.grad` on the way."""

    @staticmethod
    def forward(ctx, x, block):
        ctx.block = block
        ctx.save_for_backward(x)
        return block(x).detach()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            torch.autograd.backward(ctx.block(x), g)
        return x.grad, None


class Reversible(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.c(Twice.apply(torch.tanh(self.a(x)), self.b))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.core, self.head = nn.LSTM(2, 5, batch_first=True, dropout=0.2, num_layers=2), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.core(x.unflatten(1, (2, 2)))[0][:, -1])


MODELS = {kind.__name__.lower(): kind for kind in (Kept, Looked, Normalised, Images, Reversible, Recurrent)}


def losses(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def batch_of(count=12):
    return torch.randn(count, 4), torch.randint(3, (count,))


def watched(model, batch):
    monitor = vg.Monitor(model, every=1)
    per_example = losses(model, batch)
    monitor.watch(per_example)
    per_example.mean().backward()
    monitor.close()


# What a call may leave: nothing; or what `losses(model, batch)` alone leaves; or that and a backward pass.
NOTHING: dict[str, Callable] = {
    "measure": lambda m, b: vg.measure(m, losses, [b]),
    "estimate": lambda m, b: vg.estimate(m, losses, b),
    "sign_probe": lambda m, b: vg.sign_probe(m, losses, b),
    "explain": lambda m, b: vg.explain(m, losses, b),
}
EVALUATED: dict[str, Callable] = {
    "example_gradients": lambda m, b: list(vg.example_gradients(m, losses, b)),
    "loop_gradients": lambda m, b: list(loop_gradients(m, losses, b)),
}
STEPPED: dict[str, Callable] = {
    "example_sq_norms": lambda m, b: vg.example_sq_norms(m, losses, b),
    "of a few": lambda m, b: vg.example_sq_norms(m, losses, b, examples=[1, 2]),
    "watch": watched,
}


def made(kind):
    """A model with gradients that were there before."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    model = MODELS[kind]().train()
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.ones_like(p)
    return model


@pytest.mark.parametrize("entry", NOTHING)
@pytest.mark.parametrize("kind", MODELS)
def test_what_only_looks_leaves_nothing(kind, entry) -> None:
    model, batch = made(kind), batch_of()
    for _ in range(3):
        before = photograph(model)
        NOTHING[entry](model, batch)
        assert changes(before, photograph(model)) == []


@pytest.mark.parametrize("entry", EVALUATED)
@pytest.mark.parametrize("kind", MODELS)
def test_generators_of_gradients_leave_what_one_evaluation_does(kind, entry) -> None:
    compare(kind, EVALUATED[entry], losses)


@pytest.mark.parametrize("entry", STEPPED)
@pytest.mark.parametrize("kind", MODELS)
def test_norms_leave_what_one_step_does(kind, entry) -> None:
    def step(model, batch):
        per_example = losses(model, batch)
        (per_example.mean() if entry == "watch" else per_example.sum()).backward()

    compare(kind, STEPPED[entry], step)


def compare(kind, call, plain):
    """Three calls on one model, and what they may leave on its twin: the same values, in the same objects as before."""
    model = made(kind)
    twin = copy.deepcopy(model)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        q.grad = None if p.grad is None else p.grad.clone()
    for _ in range(3):
        batch, start = batch_of(), generators()
        before = photograph(model)
        call(model, batch)
        after, end = photograph(model), generators()
        restore(start)
        theirs = photograph(twin)
        plain(twin, batch)
        assert generators() == end
        left = photograph(twin)
        assert set(changes(before, after)) == set(changes(theirs, left))
        for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
            assert p.grad is None or torch.allclose(p.grad.to_dense(), q.grad.to_dense(), rtol=1e-4, atol=1e-6), name
            assert p.grad is None or before["grad", name][:3] == after["grad", name][:3]  # in place
        for (name, b), c in zip(model.named_buffers(), twin.buffers(), strict=True):
            assert torch.allclose(b, c, rtol=1e-5), name


def changes(before, after):
    return sorted(str(key) for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def restore(state):
    torch.set_rng_state(torch.frombuffer(bytearray(state["torch"]), dtype=torch.uint8))
    key, place = state["numpy"]
    np.random.set_state(("MT19937", np.frombuffer(key, dtype=np.uint32), place, 0, 0.0))  # noqa: NPY002


@pytest.mark.parametrize("layout", ["flat buffer", "channels last", "sparse", "none"])
def test_gradients_are_added_where_they_are(layout) -> None:
    """Views of one buffer (as of data-parallel training), other strides, sparse ones, and none at all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4, 3))
    if layout == "sparse":
        model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(12, 3))
        batches = [(torch.randint(9, (6, 3)), torch.randint(3, (6,))) for _ in range(3)]
    else:
        batches = [(torch.randn(6, 2, 3, 3), torch.randint(3, (6,))) for _ in range(3)]
    twin, flat = copy.deepcopy(model), torch.zeros(sum(p.numel() for p in model.parameters()))
    start = 0
    for p in model.parameters():
        if layout == "flat buffer":
            p.grad = flat[start : start + p.numel()].view_as(p)
            start += p.numel()
        elif layout == "channels last" and p.dim() == 4:
            p.grad = torch.zeros_like(p).to(memory_format=torch.channels_last)
    places = [p.grad if p.grad is None else (id(p.grad), p.grad.stride()) for p in model.parameters()]
    for batch in batches:
        vg.example_sq_norms(model, losses, batch)
        losses(twin, batch).sum().backward()
    for p, q, place in zip(model.parameters(), twin.parameters(), places, strict=True):
        assert place is None or place == (id(p.grad), p.grad.stride())
        assert p.grad.layout == q.grad.layout
        assert torch.allclose(p.grad.to_dense(), q.grad.to_dense(), rtol=1e-4, atol=1e-6)
    if layout == "flat buffer":
        assert torch.allclose(flat, torch.cat([q.grad.flatten() for q in twin.parameters()]), rtol=1e-4, atol=1e-6)


HOOKS = ("post-accumulate", "parameter", "activation", "forward", "full backward")


def counted(model):
    """Hooks of every kind that count their calls; those of parameters and activations are linear."""
    calls = dict.fromkeys(HOOKS, 0)

    def count(kind, value=None):
        calls[kind] += 1
        return value

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda _: count("post-accumulate"))
    model[2].weight.register_hook(lambda g: count("parameter", g * 0.5))
    model[0].register_forward_hook(lambda *_: count("forward"))
    model[0].register_full_backward_hook(lambda *_: count("full backward"))
    model[1].register_forward_hook(lambda _, __, h: h.register_hook(lambda g: count("activation", g * 0.5)) and None)
    return calls


@pytest.mark.parametrize("entry", [*NOTHING, *EVALUATED, *STEPPED])
def test_which_hooks_of_the_user_run_and_how_often(entry) -> None:
    """Hooks that step an optimizer never do; those that are a part of the model or its backward pass do, once a pass.

    A hook of a parameter is applied to the gradient of each example, and to their sum when it is checked; hooks of
    modules and activations may change what passes through them, and so run whenever the model does.
    """
    torch.manual_seed(0)
    model, batch = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), batch_of()
    calls = counted(model)
    call = {**NOTHING, **EVALUATED, **STEPPED}[entry]
    for _ in range(5):
        call(model, batch)
    own = 5 * 4 if entry == "watch" else 0  # the user's own backward passes
    assert calls["post-accumulate"] == own
    calls.update(dict.fromkeys(HOOKS, 0))
    call(model, batch)  # the 6th batch: no check is due
    if entry in ("example_sq_norms", "of a few"):
        # A full backward hook is a node that may do anything: the batch is tried by one pass more.
        assert calls == {"post-accumulate": 0, "parameter": 12, "activation": 2, "forward": 1, "full backward": 2}
        model[2].weight._backward_hooks.clear()
        for _ in range(5):
            call(model, batch)
        calls.update(dict.fromkeys(HOOKS, 0))
        call(model, batch)
        assert calls == {"post-accumulate": 0, "parameter": 0, "activation": 2, "forward": 1, "full backward": 2}
    assert all(p._post_accumulate_grad_hooks for p in model.parameters())
    assert model[0]._forward_hooks
    assert model[0]._backward_hooks
