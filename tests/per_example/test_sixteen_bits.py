"""In 16 bits, rows are those of float64 up to rounding, parameter by parameter; the loop in 16 bits is not always.

`torch` adds long sums of bfloat16 in bfloat16 in some kernels of the CPU (embeddings, normalisations): they stop
growing, and the loop on the same graph is off by a factor. The reference of the check adds in 32 bits.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from variegrad.per_example import loop_gradients
from variegrad.per_example.norms import batch_norms
from variegrad.per_example.rules import RULES, elementwise
from variegrad.per_example.rules.contribution import Dense

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")

T = 1024


class Model(nn.Module):
    def __init__(self, forward, **parts):
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def head():
    return nn.Linear(16, 3)


def sequence(*parts):
    return Model(lambda m, x: m.o(m.body(x).mean(1)), body=nn.Sequential(*parts), o=head())


def numbers(*shape):
    return lambda: torch.randn(4, *shape)


def tokens(kinds, length):
    return lambda: torch.randint(kinds, (4, length))


class Add(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.p, self.g = nn.Parameter(torch.randn(*shape)), nn.Parameter(torch.ones(()))

    def forward(self, x):
        return torch.tanh(x + self.p) * self.g


MODELS = {
    "a token repeated": (lambda: sequence(nn.Embedding(9, 16)), tokens(1, T)),
    "two tokens, padding": (lambda: sequence(nn.Embedding(9, 16, padding_idx=0)), tokens(2, T)),
    "bags": (lambda: nn.Sequential(nn.EmbeddingBag(9, 16), nn.Linear(16, 3)), tokens(2, T)),
    "positions": (lambda: sequence(nn.Linear(8, 16), nn.Tanh()), numbers(T, 8)),
    "layer norm": (lambda: sequence(nn.Linear(8, 16), nn.LayerNorm(16)), numbers(T // 2, 8)),
    "rms norm": (lambda: sequence(nn.Linear(8, 16), nn.RMSNorm(16)), numbers(T // 2, 8)),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 16, 5), nn.GroupNorm(2, 16), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), head()
        ),
        numbers(3, T),
    ),
    "place and scale": (lambda: sequence(nn.Linear(8, 16), Add(64, 16)), numbers(64, 8)),
    "attention": (lambda: sequence(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)), numbers(32, 16)),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 16)), nn.Tanh(), head()),
        numbers(8),
    ),
    "fallback": (lambda: Model(lambda m, x: m.bi(x, x), bi=nn.Bilinear(8, 8, 3)), numbers(8)),
}


def losses(model, batch):
    out = model(batch[0])
    return F.cross_entropy(out if out.dtype == torch.float64 else out.float(), batch[1], reduction="none")


def in_autocast(model, batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(batch[0])
    return F.cross_entropy(out.float(), batch[1], reduction="none")


def as_type(batch, dtype):
    return tuple(t.to(dtype) if t.is_floating_point() else t for t in batch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, None], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_norms_of_each_parameter_are_those_of_double_precision(name, dtype) -> None:
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    model = make() if dtype is None else make().to(dtype)
    exact = copy.deepcopy(model).double()
    for _ in range(3):
        batch = as_type((inputs(), torch.randint(3, (4,))), dtype or torch.float32)
        rows = list(loop_gradients(exact, losses, as_type(batch, torch.float64)))
        expected = {n: torch.stack([r[n].square().sum() for r in rows]) for n in rows[0]}
        whole = sum(expected.values())
        found = batch_norms(model, losses if dtype else in_autocast, batch).sq_norms
        for n, each in expected.items():
            # 8 bits of mantissa, through a few layers; what cancels is rounded relative to the whole.
            assert ((found[n] - each).abs() <= 0.1 * each + 1e-3 * whole).all(), n


def test_the_loop_in_sixteen_bits_is_no_reference() -> None:
    torch.manual_seed(0)
    make, inputs = MODELS["a token repeated"]
    model, batch = make().bfloat16(), (inputs(), torch.randint(3, (4,)))
    exact = next(loop_gradients(copy.deepcopy(model).double(), losses, batch))["body.0.weight"].square().sum()
    stalled = next(loop_gradients(model, losses, batch))["body.0.weight"].double().square().sum()
    assert stalled < 0.5 * exact
    assert batch_norms(model, losses, batch).sq_norms["body.0.weight"][0] == pytest.approx(float(exact), rel=0.05)


@pytest.mark.parametrize("factor", [0.0, 0.7, 1.4])
def test_a_small_parameter_that_is_wrong_is_refused_by_name(factor, monkeypatch) -> None:
    torch.manual_seed(0)
    model = sequence(nn.Linear(8, 16), Add(64, 16)).bfloat16()
    add = elementwise.mul
    monkeypatch.setitem(
        RULES,
        "MulBackward0",
        lambda visit, slot, shape: Dense(add(visit, slot, shape).gradients * factor),
    )
    batch = (torch.randn(16, 64, 8).bfloat16(), torch.randint(3, (16,)))
    with pytest.raises(RuntimeError, match=r"parameter 'body\.1\.g' differ"):
        batch_norms(model, losses, batch)
