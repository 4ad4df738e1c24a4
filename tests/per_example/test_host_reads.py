"""A steady call reads the host twice at most, whatever the depth, and runs one backward pass more at most.

On a GPU each read waits for all that was queued. `torch` shows reads in two places: functions of a tensor that give
Python values, and operations whose result has a size that depends on data.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import variegrad as vg
from adversaries import ADVERSARIES
from variegrad.per_example.norms import engine_of

# Functions that hand values to Python without an operation of their own (`numpy` refuses tensors of a GPU) …
TO_PYTHON = {"tolist", "cpu"}
# … and operations whose results have as many entries as the data say, or that wait for a value.
BY_DATA = {
    "_local_scalar_dense", "nonzero", "_unique", "_unique2", "unique_dim", "unique_consecutive", "masked_select",
    "bincount", "is_nonzero", "repeat_interleave", "equal",
}  # fmt: skip
MOST = 2


class _Functions(TorchFunctionMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in TO_PYTHON or (name == "to" and len(args) > 1 and isinstance(args[1], str)):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").partition(".")[0]
        masked = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if name in BY_DATA or masked:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def reads(function):
    """What in a call reads the host."""
    found = []
    with _Functions(found), _Operations(found):
        function()
    return found


def classify(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        q, k, v = (t.unflatten(2, (2, -1)).transpose(1, 2) for t in self.qkv(self.norms[0](x)).chunk(3, 2))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class GPT(nn.Module):
    def __init__(self, layers, tied):
        super().__init__()
        self.token, self.place = nn.Embedding(64, 16), nn.Embedding(12, 16)
        self.blocks, self.head = nn.Sequential(*(Block(16) for _ in range(layers))), nn.Linear(16, 64, bias=False)
        if tied:
            self.head.weight = self.token.weight

    def forward(self, tokens):
        x = self.token(tokens) + self.place(torch.arange(tokens.shape[1]))
        return self.head(self.blocks(x)).transpose(1, 2)


def next_token(model, tokens):
    return F.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], reduction="none").mean(1)


class Residual(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU()) for _ in range(blocks)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


class Texts(nn.Module):
    """Bags of tokens of different lengths, or sequences through an LSTM, packed or not."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.table = nn.EmbeddingBag(50, 8, mode="mean") if kind == "bag" else nn.Embedding(50, 8, padding_idx=0)
        self.core, self.head = nn.LSTM(8, 6, batch_first=True), nn.Linear(8 if kind == "bag" else 6, 3)

    def forward(self, tokens, lengths):
        if self.kind == "bag":
            return self.head(self.table(tokens, lengths))
        x = self.table(tokens)
        if self.kind == "packed":
            x = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.core(x)[1][0][-1])


def of_texts(model, batch):
    return F.cross_entropy(model(*batch[:2]), batch[2], reduction="none")


def labels(count):
    return torch.randint(3, (count,))


def images(count=8):
    return torch.randn(count, 3, 8, 8), labels(count)


def texts(kind, count=8):
    lengths = torch.randint(1, 6, (count,))
    if kind == "bag":
        return torch.randint(50, (int(lengths.sum()),)), lengths.cumsum(0) - lengths, labels(count)
    return torch.randint(50, (count, 5)), torch.cat((torch.tensor([5]), lengths[1:])), labels(count)


def by_index(model, batch):
    return -model(batch[0]).log_softmax(1)[torch.arange(len(batch[1])), batch[1]]


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 9), nn.Tanh(), nn.Linear(9, 3)), classify, images),
    "nll by index": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), by_index, images),
    "cnn": (lambda: Residual(1), classify, images),
    "resnet": (lambda: Residual(6), classify, images),
    "gpt": (lambda: GPT(2, tied=False), next_token, lambda: torch.randint(64, (6, 13))),
    "deep gpt": (lambda: GPT(6, tied=False), next_token, lambda: torch.randint(64, (6, 13))),
    "tied gpt": (lambda: GPT(2, tied=True), next_token, lambda: torch.randint(64, (6, 13))),
    **{
        kind: (lambda kind=kind: Texts(kind), of_texts, lambda kind=kind: texts(kind))
        for kind in ("bag", "lstm", "packed")
    },
}


# In these the data decide where an example goes: each batch is tried.
BY_DATA_ROUTED = ["pool_mask", "expand_pair", "index_select0", "scatter_examples", "near_pairs"]


def steady(name, way=None):
    torch.manual_seed(0)
    if name in MODELS:
        make, losses, batch = MODELS[name]
        model = make()
    else:
        torch.set_default_dtype(torch.float64)
        model, losses, (first, *_) = ADVERSARIES[name]()
        torch.set_default_dtype(torch.float32)
        model, batch = model.double(), lambda: first
    for _ in range(5):
        vg.example_sq_norms(model, losses, batch())
    chosen = engine_of(model).plan.chosen
    for key, ways in engine_of(model).plan.seconds.items():
        chosen[key] = next((each for each in ways if way and way in each), chosen[key])
    batches = [batch() for _ in range(3)]
    return model, losses, batches


WAYS = [(name, way) for name in MODELS for way in ((None, "direct", "gram", "products") if "gpt" in name else (None,))]


@pytest.mark.parametrize(("name", "way"), [*WAYS, *((name, None) for name in BY_DATA_ROUTED)])
def test_a_steady_call_reads_the_host_twice_at_most(name, way) -> None:
    model, losses, batches = steady(name, way)
    for batch in batches[:2]:  # the 6th and 7th batch: no check is due
        own = reads(lambda batch=batch: losses(model, batch).sum().backward())
        found = reads(lambda batch=batch: vg.example_sq_norms(model, losses, batch))
        assert len(found) - len(own) <= MOST, found


@pytest.mark.parametrize("name", [*MODELS, *BY_DATA_ROUTED])
def test_a_steady_call_runs_one_backward_pass_more_at_most(name, monkeypatch) -> None:
    model, losses, batches = steady(name)
    passes, of = [], torch.autograd.grad

    def counted(outputs, *args, **kwargs):
        passes.append(isinstance(outputs[0], torch.Tensor))  # a chain of a parameter is no pass
        return of(outputs, *args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    vg.example_sq_norms(model, losses, batches[0])
    assert sum(passes) == (2 if name in BY_DATA_ROUTED or name == "packed" else 1)


def test_a_batch_that_breaks_an_assumption_is_redone_exactly_and_without_a_trace() -> None:
    """Positions that repeat, and rows of others: after the checks, with dropout, and with a buffer that counts."""

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.place, self.drop, self.head = nn.Embedding(9, 4), nn.Dropout(0.3), nn.Linear(4, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x, places):
            self.calls += 1
            return self.head(self.drop(x + self.place(places)) ** 2).square().sum((1, 2))

    def losses(model, batch):
        return model(*batch)

    torch.manual_seed(0)
    model = Positions().double()
    for _ in range(10):
        vg.example_sq_norms(model, losses, (torch.randn(6, 3, 4).double(), torch.arange(3)))
    for places in (torch.tensor([2, 2, 5]), torch.tensor([1, 4, 3]), torch.tensor([0, 0, 0])):
        batch = torch.randn(6, 3, 4).double(), places
        torch.manual_seed(3)
        before = float(model.calls)
        found = vg.example_sq_norms(model, losses, batch)
        assert float(model.calls) == before + 1
        after = torch.get_rng_state()
        torch.manual_seed(3)
        per_example = losses(model, batch)
        assert torch.equal(torch.get_rng_state(), after)
        for i, loss in enumerate(per_example):
            rows = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            assert torch.allclose(found[i], sum(r.square().sum() for r in rows))
    assert next(iter(engine_of(model).known.values())).formed == {"place.weight"}
