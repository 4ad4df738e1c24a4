"""A table that is read and multiplied with: the cross term of look-up and product, against the loop."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cases import Fn
from reference import loop_gradients
from variegrad.per_example import explain
from variegrad.per_example.engine import Engine
from variegrad.per_example.norms import batch_norms, engine_of, example_gradients
from variegrad.per_example.rules.embedding import Lookup
from variegrad.per_example.rules.matmul import Outer
from variegrad.per_example.rules.tied import Tied

WAYS = ["by their inner products", "by rows of the table"]


def next_token(model, tokens):
    return F.cross_entropy(model(tokens)[:, :-1].transpose(1, 2).float(), tokens[:, 1:], reduction="none").mean(1)


def tied(vocabulary, width, *, padding=None, turned=False):
    def forward(m, tokens):
        hidden = torch.tanh(m.mix(m.table(tokens)))
        return (m.table.weight @ hidden.transpose(1, 2)).transpose(1, 2) if turned else F.linear(hidden, m.table.weight)

    torch.manual_seed(0)
    return Fn(forward, table=nn.Embedding(vocabulary, width, padding_idx=padding), mix=nn.Linear(width, width))


def expected(model, losses, batch):
    rows = loop_gradients(model, losses, batch)
    return {name: r.double().reshape(len(r), -1) for name, r in rows.items()}


def agrees(found, rows, examples=None, rtol=1e-9):
    for name, r in rows.items():
        wanted = r.square().sum(1)
        wanted = wanted if examples is None else wanted[examples]
        assert torch.allclose(found.sq_norms[name], wanted, rtol=rtol), name
        whole = r.sum(0)
        off = (found.total[name].double().flatten() - whole).norm()
        assert off <= rtol * r.norm(), name


@pytest.mark.parametrize("examples", [None, [3, 0], [1]])
@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("turned", [False, True])
def test_each_way_equals_the_loop(way, padding, examples, turned):
    model, tokens = tied(50, 6, padding=padding, turned=turned).double(), torch.randint(0, 5, (16, 7))
    rows = expected(copy.deepcopy(model), next_token, tokens)
    engine = Engine()
    batch_norms(model, next_token, tokens, engine=engine, examples=examples)
    for key, ways in engine.plan.seconds.items():
        if key[0][0][0] == "tied" and way in ways:
            engine.plan.chosen[key] = way
    agrees(batch_norms(model, next_token, tokens, engine=engine, examples=examples), rows, examples)
    assert ("tied", way) in engine.plan.agreed


def test_no_way_forms_the_gradients_of_a_tied_table_through_its_uses():
    model, tokens = tied(50, 6), torch.randint(0, 50, (16, 7))
    served = {s.parameter: s.rule for s in explain(model, next_token, tokens).served}
    assert served["table.weight"].startswith("look-up and product together")


def test_terms_that_cancel_are_formed_instead():
    # The head's gradient is all but the negative of the look-up's: ‖g_i‖² is a millionth of its terms.
    tokens, rows = torch.arange(3).expand(16, 3), torch.randn(16, 3, 4)
    product = Outer(F.one_hot(tokens, 9).float(), -rows * (1 + 1e-3))
    whole = Tied(Lookup.of_rows(tokens, rows, 9), product)
    wanted = whole.product.rows(0, 16).double() + whole.lookup.rows(0, 16).double()
    for way in whole.variants().values():
        assert torch.allclose(whole.mended(way(whole)).sq_norms, wanted.flatten(1).square().sum(1), rtol=1e-2)


def test_bfloat16_by_its_tolerance():
    model, tokens = tied(50, 16), torch.randint(0, 50, (16, 7))
    rows = expected(copy.deepcopy(model).double(), next_token, tokens)
    agrees(batch_norms(model.bfloat16(), next_token, tokens), rows, rtol=0.05)

    def losses(model, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return next_token(model, batch)

    agrees(batch_norms(model.float(), losses, tokens), rows, rtol=0.05)


def test_the_gradients_themselves_and_the_absolute_sums():
    model, tokens = tied(50, 6).double(), torch.randint(0, 5, (16, 7))
    rows = expected(copy.deepcopy(model), next_token, tokens)
    found = batch_norms(model, next_token, tokens, l1=True)
    assert torch.allclose(found.l1_norms, sum(r.abs().sum(1) for r in rows.values()), rtol=1e-9)
    chunks = list(example_gradients(model, next_token, tokens, chunk_size=5))
    for name, r in rows.items():
        assert torch.allclose(torch.cat([chunk[name] for chunk in chunks]).flatten(1), r, atol=1e-12), name


class Largest(TorchDispatchMode):
    """Notes how many entries the tensors that are made in it have."""

    def __init__(self):
        super().__init__()
        self.tables = self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
                aliases = any(isinstance(a, torch.Tensor) and a.data_ptr() == tensor.data_ptr() for a in args)
                self.tables += tensor.numel() >= V * WIDTH and not aliases
        return made


V, WIDTH = 50_000, 64


@pytest.mark.parametrize("way", WAYS)
def test_a_large_table_is_made_once_a_batch_and_never_for_an_example(way):
    # Without head and look-up together, every example would have a table of its own: sixteen of them, or more.
    model, tokens = tied(V, WIDTH), torch.randint(0, V, (16, 4))
    engine = Engine(measured=False, verify=False)
    batch_norms(model, next_token, tokens, engine=engine)
    with torch.no_grad():
        product = Outer(torch.randn(16, 4, V), torch.randn(16, 4, WIDTH))
        whole = Tied(Lookup.of_rows(tokens, torch.randn(16, 4, WIDTH), V), product)
        with Largest() as made:
            whole.variants()[way](whole)
    assert made.largest <= V * WIDTH
    assert made.tables <= 4  # the sum, and what it is made from: not one for each example
    with Largest() as made:
        batch_norms(model, next_token, tokens, engine=engine)
    assert made.largest <= V * WIDTH
    assert made.tables <= 10  # of sixteen examples; torch 2.6 makes three temporaries more than 2.13
    assert all(not known.uncovered for known in engine.known.values())


def test_gpt2_with_its_fifty_tokens():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=24, n_layer=2, n_head=3, bos_token_id=1)
    model = transformers.GPT2LMHeadModel(config).eval().double()
    assert model.lm_head.weight is model.transformer.wte.weight

    def losses(model, tokens):
        logits = model(input_ids=tokens).logits[:, :-1]
        return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)

    tokens = torch.randint(0, 8, (16, 12))
    rows = expected(copy.deepcopy(model), losses, tokens)
    for examples in (None, None, [5, 2]):
        agrees(batch_norms(model, losses, tokens, examples=examples), rows, examples)
    assert any(key[0][0][0] == "tied" for key in engine_of(model).plan.chosen)
