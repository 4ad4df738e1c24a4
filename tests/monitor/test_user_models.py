"""Models as people bring them: compiled, Hugging Face's with their own loss, accumulated as their trainer does."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from one_step import gram, last, moments
from variegrad import Monitor

IGNORED = -100


def test_a_compiled_model_is_watched_through_its_original():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(12, 6).double(), torch.arange(12) % 3
    compiled = torch.compile(model, backend="eager")
    try:
        compiled(x)
    except Exception as error:  # whatever a machine without a compiler raises
        pytest.skip(f"torch.compile does not work here: {type(error).__name__}")
    monitor = Monitor(compiled, every=1, examples=64)
    per_example = F.cross_entropy(compiled(x), y, reduction="none")
    monitor.watch(per_example)
    per_example.mean().backward()

    def losses(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    assert last(monitor) == pytest.approx(moments(gram(model, losses, (x, y))), rel=1e-9)
    assert monitor.latest.source == "12 of 12 examples"


def language_model(kind):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 19, "n_positions": 8}
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **dropout))
    else:
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=19))
    return model.double()


def sequences(seed=0, count=6):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 19, (count, 8), generator=g)
    labels = ids.clone()
    labels[0, 3:] = labels[2, :5] = labels[count - 1, 2] = IGNORED  # padded, a prompt, a gap
    return ids, labels


def tokens_of(labels):
    return int((labels[:, 1:] != IGNORED).sum())


def by_sequence(model, batch):
    """The sum over a sequence's counted tokens, by the definition."""
    ids, labels = batch
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=IGNORED).sum(1)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_token_mean_of_a_language_model_is_one_of_its_sequences(kind):
    model, (ids, labels) = language_model(kind), sequences()
    monitor = Monitor(model, every=1, examples=64)
    for _ in range(2):
        out = model(input_ids=ids, labels=labels, use_cache=False)
        monitor.watch(out.loss, output=out.logits)
        out.loss.backward()
        model.zero_grad()
    found, expected = last(monitor), moments(gram(model, by_sequence, (ids, labels)))
    assert found[0] / found[1] == pytest.approx(expected[0] / expected[1], rel=1e-6)  # their loss is in float32
    assert monitor.latest.batch_size == 6


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_micro_batches_divided_by_the_tokens_of_the_whole_step(kind):
    """As their trainer accumulates: each micro-batch's sum over the step's number of tokens."""
    model, parts = language_model(kind), [sequences(0), sequences(1)]
    whole = tuple(map(torch.cat, zip(*parts, strict=True)))
    monitor = Monitor(model, every=1, examples=64, accumulate=2)
    for _ in range(2):
        for ids, labels in parts:
            out = model(input_ids=ids, labels=labels, use_cache=False, num_items_in_batch=tokens_of(whole[1]))
            monitor.watch(out.loss, output=out.logits)
            out.loss.backward()
        model.zero_grad()
    found, expected = last(monitor), moments(gram(model, by_sequence, whole))
    assert found[0] / found[1] == pytest.approx(expected[0] / expected[1], rel=1e-6)
    assert monitor.latest.batch_size == 12
    assert monitor.latest.source.endswith("2 micro-batches")


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 3, 4, dtype=torch.cdouble) * 0.3)

    def forward(self, x):
        modes = torch.fft.rfft(x)
        out = torch.zeros_like(modes)
        out[..., :4] = torch.einsum("bix,iox->box", modes[..., :4], self.w)
        return torch.fft.irfft(out, n=x.shape[-1])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_complex_weights_are_pairs_of_real_ones(accumulate):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 3, 1), Complex(), nn.Conv1d(3, 1, 1)).double()
    monitor = Monitor(model, every=1, accumulate=accumulate, examples=64)
    for _ in range(2):
        sums = []
        for _ in range(accumulate):
            x, y = torch.randn(6, 1, 16).double(), torch.randn(6, 1, 16).double()
            losses = (model(x) - y).square().mean((1, 2))
            found = torch.autograd.grad(losses.sum(), list(model.parameters()), retain_graph=True)
            sums.append(torch.cat([torch.view_as_real(g + 0j).flatten() for g in found]))
            monitor.watch(losses)
            (losses.mean() / accumulate).backward()
        model.zero_grad()
        if accumulate == 1:  # no rule serves a complex weight
            assert monitor.latest.source == "sign probe"
            continue
        within = sum(float(s.square().sum()) for s in sums)
        product = (float(sum(sums).square().sum()) - within) / (2 * 6**2)
        assert last(monitor) == pytest.approx((product, (within - 60 * product) / 12), rel=1e-8)
