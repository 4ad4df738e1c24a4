"""The six models of the benchmarks: (name, batch size) → model, losses(model, batch) and a batch."""

import torch
import torch.nn.functional as F
from torch import nn

from variegrad.problems.models import cuda_convnet, mlp, mnist_cnn, resnet20


class Block(nn.Module):
    """A pre-norm transformer block with fused attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x):
        q, k, v = self.qkv(self.norm_1(x)).chunk(3, dim=-1)
        split = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
        q, k, v = (t.view(split).transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class GPT(nn.Module):
    """A small decoder-only language model."""

    def __init__(self, vocabulary: int = 512, width: int = 256, length: int = 128, layers: int = 4) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens):
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.token(tokens) + self.place(places))))


def classify(model, batch):
    """Cross entropy, one value for each example."""
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def next_token(model, batch):
    """Mean cross entropy of the next token, one value for each sequence."""
    logits = model(batch[0])
    return F.cross_entropy(logits.transpose(1, 2), batch[1], reduction="none").mean(1)


def _images(count, *shape, classes=10):
    return torch.randn(count, *shape), torch.randint(0, classes, (count,))


def _tokens(count, length=128, vocabulary=512):
    tokens = torch.randint(0, vocabulary, (count, length + 1))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


MODELS = {
    "logistic": lambda: (nn.Linear(3072, 2), classify, _images(128, 3072, classes=2)),
    "mnist-cnn": lambda: (mnist_cnn(), classify, _images(128, 1, 28, 28)),
    "cuda-convnet": lambda: (cuda_convnet(), classify, _images(128, 3, 32, 32)),
    "resnet-20": lambda: (resnet20(), classify, _images(64, 3, 32, 32)),
    "gpt": lambda: (GPT(), next_token, _tokens(16)),
    "mlp": lambda: (mlp([784, 2048, 2048, 10]), classify, _images(256, 784)),
}
