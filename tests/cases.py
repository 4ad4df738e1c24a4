"""Tables of cases: every way of writing a model that per-example gradients must survive."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

B = 5


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], tuple[nn.Module, Callable, Any]]

    def __str__(self):
        return self.name


CASES: list[Case] = []


def case(function):
    CASES.append(Case(function.__name__, function))
    return function


def energy(model, batch):
    """A loss that works for any output: a fixed non-linear function of it, summed over all but the example."""
    out = model(*batch) if isinstance(batch, tuple) else model(batch)
    weights = torch.linspace(-1, 1, out[0].numel(), dtype=out.dtype).view(out.shape[1:])
    return (out * weights + 0.1 * out.square()).flatten(1).sum(1)


def classify(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none")


def on(model, *inputs, losses=energy):
    return model, losses, inputs if len(inputs) > 1 else inputs[0]


class Fn(nn.Module):
    """A module whose forward is a function of itself."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = forward

    def forward(self, *inputs):
        return self.function(self, *inputs)


def parameter(*shape):
    return nn.Parameter(torch.randn(shape) * 0.5)


@case
def linear():
    return on(nn.Linear(4, 3), torch.randn(B, 4))


@case
def linear_without_bias_on_sequences():
    return on(nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3)), torch.randn(B, 7, 4))


@case
def linear_on_four_dimensions():
    return on(nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2)), torch.randn(B, 2, 3, 4))


@case
def linear_on_long_sequences_takes_the_gram_or_not():
    return on(nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 30)), torch.randn(B, 3, 30))


@case
def token_major_sequences():
    def forward(m, x):
        return m.out(torch.tanh(m.inner(x.transpose(0, 1)))).transpose(0, 1)

    return on(Fn(forward, inner=nn.Linear(4, 6), out=nn.Linear(6, 2)), torch.randn(B, 7, 4))


@case
def weight_on_the_left():
    return on(Fn(lambda m, x: (m.w @ x.t()).t(), w=parameter(3, 4)), torch.randn(B, 4))


@case
def conv1d():
    return on(
        nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 2, 2, stride=2)), torch.randn(B, 3, 9)
    )


@case
def conv2d_stack():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 5, padding=2), nn.Flatten(), nn.Linear(256, 3)
    )
    return on(model, torch.randn(B, 3, 8, 8))


@case
def conv3d():
    return on(nn.Conv3d(2, 3, 2, padding=1, stride=(1, 2, 1)), torch.randn(B, 2, 4, 5, 3))


@case
def conv_asymmetric():
    return on(nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), torch.randn(B, 3, 9, 8))


@case
def conv_groups():
    return on(
        nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, padding=1), nn.Tanh(), nn.Conv2d(6, 6, 3, groups=6)),
        torch.randn(B, 4, 6, 6),
    )


@case
def conv_same_padding_even_kernel():
    return on(nn.Conv2d(3, 4, 4, padding="same"), torch.randn(B, 3, 6, 6))


@case
def conv_padding_modes():
    model = nn.Sequential(
        *(nn.Conv2d(3, 3, 3, padding=1, padding_mode=m) for m in ("circular", "reflect", "replicate"))
    )
    return on(model, torch.randn(B, 3, 6, 6))


@case
def conv_channels_last():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).to(memory_format=torch.channels_last)
    return on(model, torch.randn(B, 3, 6, 6).to(memory_format=torch.channels_last))


@case
def conv_transpose():
    model = nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1)
    return on(model, torch.randn(B, 3, 4, 4))


@case
def conv_transpose_groups():
    return on(nn.ConvTranspose1d(4, 6, 3, groups=2, dilation=2), torch.randn(B, 4, 6))


@case
def frames_of_an_example_in_the_batch_of_a_convolution():
    def forward(m, x):
        return m.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)

    return on(Fn(forward, conv=nn.Conv2d(3, 4, 3)), torch.randn(B, 2, 3, 5, 5))


@case
def embedding():
    return on(nn.Embedding(11, 4), torch.randint(0, 11, (B, 9)))


@case
def embedding_with_sparse_gradients():
    return on(nn.Embedding(11, 4, sparse=True), torch.randint(0, 11, (B, 9)))


@case
def embedding_with_padding():
    return on(nn.Embedding(6, 4, padding_idx=0), torch.randint(0, 6, (B, 9)))


@case
def embedding_scaled_by_frequency_of_one_token():
    return on(nn.Embedding(50, 4), torch.arange(B).unsqueeze(1))


@case
def embedding_bag_mean():
    return on(nn.EmbeddingBag(7, 4, mode="mean"), torch.randint(0, 7, (B, 6)))


@case
def embedding_bag_sum_padded():
    return on(nn.EmbeddingBag(7, 4, mode="sum", padding_idx=1), torch.randint(0, 7, (B, 6)))


@case
def embedding_bag_mean_padded():
    return on(nn.EmbeddingBag(7, 4, mode="mean", padding_idx=1), torch.randint(0, 7, (B, 6)))


@case
def embedding_bag_max():
    return on(nn.EmbeddingBag(7, 4, mode="max"), torch.randint(0, 7, (B, 6)))


@case
def embedding_bag_offsets():
    class Bags(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag = nn.EmbeddingBag(7, 4, mode="sum")

        def forward(self, tokens, offsets):
            return self.bag(tokens, offsets)

    return on(Bags(), torch.randint(0, 7, (11,)), torch.tensor([0, 2, 2, 6, 9]))


@case
def norms():
    model = nn.Sequential(
        nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.LayerNorm(6, bias=False), nn.RMSNorm(6), nn.Linear(6, 2)
    )
    return on(model, torch.randn(B, 3, 4))


@case
def layer_norm_of_two_dimensions():
    return on(nn.Sequential(nn.LayerNorm((3, 4)), nn.LayerNorm(4, elementwise_affine=False)), torch.randn(B, 3, 4))


@case
def group_and_instance_norm():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.GroupNorm(3, 6), nn.ReLU(), nn.InstanceNorm2d(6, affine=True), nn.PReLU(6)
    )
    return on(model, torch.randn(B, 3, 6, 6))


@case
def prelu_shared():
    return on(nn.Sequential(nn.Linear(4, 3), nn.PReLU()), torch.randn(B, 4))


@case
def batch_norm_with_running_statistics():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6)
    )
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    return on(model.eval(), torch.randn(B, 3, 6, 6))


@case
def one_module_used_twice():
    return on(Fn(lambda m, x: m.l(torch.tanh(m.l(x))), l=nn.Linear(4, 4)), torch.randn(B, 4))


@case
def one_convolution_used_twice():
    return on(Fn(lambda m, x: m.c(torch.tanh(m.c(x))), c=nn.Conv2d(3, 3, 3, padding=1)), torch.randn(B, 3, 5, 5))


@case
def one_convolution_at_two_scales():
    return on(Fn(lambda m, x: m.c(torch.tanh(m.c(x))), c=nn.Conv2d(3, 3, 3)), torch.randn(B, 3, 7, 7))


@case
def tied_embedding_and_head():
    def forward(m, tokens):
        return F.linear(torch.tanh(m.mix(m.embedding(tokens))), m.embedding.weight)

    return on(Fn(forward, embedding=nn.Embedding(9, 4), mix=nn.Linear(4, 4)), torch.randint(0, 9, (B, 6)))


@case
def position_embedding_without_batch():
    def forward(m, x):
        return m.out(torch.tanh(x + m.position[:, : x.shape[1]]))

    return on(Fn(forward, position=parameter(1, 9, 4), out=nn.Linear(4, 2)), torch.randn(B, 6, 4))


@case
def position_embedding_looked_up():
    def forward(m, x):
        return m.out(torch.tanh(x + m.position(torch.arange(x.shape[1]))))

    return on(Fn(forward, position=nn.Embedding(9, 4), out=nn.Linear(4, 2)), torch.randn(B, 6, 4))


@case
def relative_position_bias():
    index = torch.randint(0, 5, (6, 6))

    def forward(m, x):
        scores = (x @ x.transpose(1, 2)).unsqueeze(1) + m.table[index].permute(2, 0, 1).unsqueeze(0)
        return scores.softmax(-1) @ x.unsqueeze(1)

    return on(Fn(forward, table=parameter(5, 2)), torch.randn(B, 6, 4))


@case
def class_token():
    def forward(m, x):
        return m.out(torch.cat((m.token.expand(len(x), -1, -1), x), 1))[:, 0] + m.out(x).mean(1)

    return on(Fn(forward, token=parameter(1, 1, 4), out=nn.Linear(4, 2)), torch.randn(B, 6, 4))


@case
def bare_parameters():
    def forward(m, x):
        return torch.tanh(x * m.scale + m.shift) / m.divisor.exp() - m.offset * m.temperature

    parts = {"scale": parameter(4), "shift": parameter(3, 1), "divisor": parameter(4), "offset": parameter(3, 4)}
    return on(Fn(forward, temperature=parameter(), **parts), torch.randn(B, 3, 4))


@case
def functional_linear_on_another_modules_weight():
    def forward(m, x):
        return F.linear(torch.tanh(m.l(x)), m.l.weight.t())

    return on(Fn(forward, l=nn.Linear(4, 3)), torch.randn(B, 4))


@case
def chunks_of_one_weight():
    def forward(m, x):
        q, k, v = m.w.chunk(3)
        return torch.tanh(F.linear(x, q)) * F.linear(x, k) + F.linear(x, v)

    return on(Fn(forward, w=parameter(9, 4)), torch.randn(B, 2, 4))


@case
def overlapping_slices_of_one_weight():
    return on(
        Fn(lambda m, x: F.linear(x, m.w[:3]) + torch.tanh(F.linear(x, m.w[1:])), w=parameter(4, 4)), torch.randn(B, 4)
    )


@case
def multihead_attention():
    m = nn.MultiheadAttention(8, 2, batch_first=True)
    return on(Fn(lambda s, x: s.m(x, x, x)[0], m=m), torch.randn(B, 4, 8))


@case
def multihead_attention_across_token_major():
    m = nn.MultiheadAttention(8, 2, kdim=6, vdim=6)

    def forward(s, x, memory):
        x, memory = x.transpose(0, 1), memory.transpose(0, 1)
        return s.m(x, memory, memory, need_weights=False)[0].transpose(0, 1)

    return on(Fn(forward, m=m), torch.randn(B, 4, 8), torch.randn(B, 3, 6))


@case
def cross_attention_chunks_in_proj():
    m = nn.MultiheadAttention(8, 2, batch_first=True)
    return on(Fn(lambda s, x, y: s.m(x, y, y)[0], m=m), torch.randn(B, 4, 8), torch.randn(B, 3, 8))


@case
def transformer_encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return on(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(B, 4, 8))


@case
def transformer_encoder_token_major():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, norm_first=True)
    return on(Fn(lambda m, x: m.l(x.transpose(0, 1)).transpose(0, 1), l=layer), torch.randn(B, 4, 8))


@case
def transformer_decoder():
    layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return on(layer, torch.randn(B, 4, 8), torch.randn(B, 3, 8))


@case
def bilinear():
    return on(nn.Bilinear(3, 4, 2), torch.randn(B, 3), torch.randn(B, 4))


@case
def lstm():
    m = nn.LSTM(3, 4, num_layers=2, batch_first=True)
    return on(Fn(lambda s, x: s.m(x)[0], m=m), torch.randn(B, 5, 3))


@case
def lstm_bidirectional_token_major():
    m = nn.LSTM(3, 4, bidirectional=True)
    return on(Fn(lambda s, x: s.m(x.transpose(0, 1))[0].transpose(0, 1), m=m), torch.randn(B, 5, 3))


@case
def gru():
    m = nn.GRU(3, 4, batch_first=True)
    return on(Fn(lambda s, x: s.m(x)[1][0], m=m), torch.randn(B, 5, 3))


@case
def rnn_and_cells():
    def forward(s, x):
        hidden = s.rnn(x)[0]
        state = hidden[:, 0]
        for t in range(3):
            state = s.cell(hidden[:, t], state)
        return state

    return on(Fn(forward, rnn=nn.RNN(3, 4, batch_first=True), cell=nn.GRUCell(4, 4)), torch.randn(B, 4, 3))


@case
def lora_product_of_activations():
    def forward(m, x):
        return m.base(x) + (x @ m.a.t()) @ m.b.t() * 0.5

    base = nn.Linear(4, 3)
    base.requires_grad_(False)
    return on(Fn(forward, base=base, a=parameter(2, 4), b=parameter(3, 2)), torch.randn(B, 6, 4))


@case
def lora_merged_into_the_weight():
    def forward(m, x):
        return F.linear(torch.tanh(x), m.base.weight + 0.5 * m.b @ m.a, m.base.bias)

    return on(Fn(forward, base=nn.Linear(4, 3), a=parameter(2, 4), b=parameter(3, 2)), torch.randn(B, 6, 4))


@case
def partly_frozen():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2))
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return on(model, torch.randn(B, 4))


@case
def weight_normalised():
    return on(
        nn.Sequential(weight_norm(nn.Linear(4, 5)), nn.Tanh(), weight_norm(nn.Conv1d(3, 3, 2))), torch.randn(B, 3, 4)
    )


@case
def spectrally_normalised():
    return on(nn.Sequential(spectral_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 2)).eval(), torch.randn(B, 4))


@case
def masked_weight():
    mask = (torch.rand(3, 4) > 0.5).to(torch.get_default_dtype())
    return on(Fn(lambda m, x: F.linear(x, m.w * mask.to(m.w.dtype)), w=parameter(3, 4)), torch.randn(B, 4))


@case
def checkpointed():
    def forward(m, x):
        return m.b(checkpoint(lambda t: torch.tanh(m.a(t)), x, use_reentrant=False))

    return on(Fn(forward, a=nn.Linear(4, 5), b=nn.Linear(5, 2)), torch.randn(B, 4))


@case
def checkpointed_between_other_layers():
    def forward(m, x):
        hidden = torch.relu(m.z(x))
        for block in (m.a, m.b):
            hidden = hidden + checkpoint(lambda t, block=block: torch.tanh(block(t)), hidden, use_reentrant=False)
        return m.out(hidden)

    block = [nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)) for _ in range(2)]
    return on(Fn(forward, z=nn.Linear(4, 6), a=block[0], b=block[1], out=nn.Linear(6, 2)), torch.randn(B, 3, 4))


@case
def checkpointed_reentrant():
    def forward(m, x):
        return m.b(checkpoint(lambda t: torch.tanh(m.a(t)), m.z(x), use_reentrant=True))

    return on(Fn(forward, a=nn.Linear(4, 5), b=nn.Linear(5, 2), z=nn.Linear(4, 4)), torch.randn(B, 4))


@case
def in_place_residuals():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.relu = (
                nn.Conv2d(3, 3, 3, padding=1),
                nn.Conv2d(3, 3, 3, padding=1),
                nn.ReLU(inplace=True),
            )

        def forward(self, x):
            out = self.b(self.relu(self.a(x)))
            out += x
            return self.relu(out)

    return on(nn.Sequential(Block(), Block()), torch.randn(B, 3, 5, 5))


@case
def dict_batch():
    model = nn.Linear(4, 3)

    def losses(model, batch):
        return F.cross_entropy(model(batch["inputs"]["x"]), batch["y"], reduction="none") * batch["weight"]

    return model, losses, {"inputs": {"x": torch.randn(B, 4)}, "y": torch.arange(B) % 3, "weight": torch.rand(B)}


@case
def experts():
    def forward(m, x):
        hidden = torch.einsum("btd,edh->bteh", x, m.inner)
        gate = m.gate(x).softmax(-1)
        return torch.einsum("bteh,ehd,bte->btd", torch.relu(hidden), m.outer, gate)

    return on(
        Fn(forward, inner=parameter(3, 4, 5), outer=parameter(3, 5, 4), gate=nn.Linear(4, 3)), torch.randn(B, 6, 4)
    )


@case
def routed_tokens():
    def forward(m, x):
        flat = x.flatten(0, 1)
        chosen = flat[:, 0] > 0
        out = torch.zeros_like(flat)
        out[chosen] = m.a(flat[chosen])
        out[~chosen] = m.b(flat[~chosen])
        return out.view_as(x)

    return on(Fn(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4)), torch.randn(B, 6, 4))


@case
def modulated_convolution():
    def forward(m, x, style):
        b = len(x)
        weight = m.w.unsqueeze(0) * m.affine(style).view(b, 1, -1, 1, 1)
        out = F.conv2d(x.reshape(1, -1, *x.shape[2:]), weight.flatten(0, 1), padding=1, groups=b)
        return out.view(b, -1, *x.shape[2:])

    return on(Fn(forward, w=parameter(4, 3, 3, 3), affine=nn.Linear(2, 3)), torch.randn(B, 3, 5, 5), torch.randn(B, 2))


@case
def custom_function():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x**3 * w

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            return 3 * g * x**2 * w, (g * x**3).sum(0)

    return on(Fn(lambda m, x: Cube.apply(m.l(x), m.w), l=nn.Linear(4, 3), w=parameter(3)), torch.randn(B, 4))


@case
def unused_parameter():
    return on(Fn(lambda m, x: m.a(x), a=nn.Linear(4, 2), b=nn.Linear(4, 2)), torch.randn(B, 4))


@case
def zero_gradient_of_some_examples():
    return on(nn.Linear(4, 3), torch.randn(B, 4), losses=lambda m, x: energy(m, x) * torch.tensor([1, 0, 2, 0, 1.0]))


@case
def addmm_with_factors():
    return on(
        Fn(lambda m, x: torch.addmm(m.c, x, m.w, beta=0.5, alpha=2.0), c=parameter(3), w=parameter(4, 3)),
        torch.randn(B, 4),
    )


@case
def dropout_in_training():
    return on(nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 3)).train(), torch.randn(B, 4))


@case
def lstm_below_dropout_in_training():
    m = nn.LSTM(3, 4, batch_first=True)
    return on(Fn(lambda s, x: F.dropout(s.m(x)[0], 0.5, s.training), m=m).train(), torch.randn(B, 5, 3))


@case
def complex_spectrum_of_a_weight():
    return on(
        Fn(lambda m, x: torch.fft.irfft(torch.fft.rfft(x) * torch.view_as_complex(m.w), n=6), w=parameter(4, 2)),
        torch.randn(B, 6),
    )


@case
def scaled_dot_product_with_learnt_query():
    def forward(m, x):
        query = m.q.expand(len(x), -1, -1)
        return F.scaled_dot_product_attention(query, m.k(x), x)

    return on(Fn(forward, q=parameter(2, 4), k=nn.Linear(4, 4)), torch.randn(B, 5, 4))
