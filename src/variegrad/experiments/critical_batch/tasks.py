"""The tasks of the adjudication: data and a network each, from a word; the text is Python's own documentation."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, relu

from variegrad.experiments import data
from variegrad.experiments.networks import network
from variegrad.per_example.evaluate import Losses
from variegrad.problems import DataNotFound, logistic_regression
from variegrad.problems.classification import logistic_losses, softmax_losses
from variegrad.problems.subset import permutation
from variegrad.shapes import Float, Int

TEXT = "python-docs"
LETTERS = 64  # the most frequent ones; all others are one letter
NORMALISING = (nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained.

    Attributes:
        model: at its starting weights; a run copies them.
        losses: one per example.
        train: features and labels of all training examples.
        evaluated: those on which the loss is evaluated.
    """

    model: nn.Module
    losses: Losses
    train: tuple[Tensor, Tensor]
    evaluated: tuple[Tensor, Tensor]

    def norm_layers(self) -> frozenset[str]:
        """Names of the parameters of its normalisation layers."""
        return frozenset(
            f"{layer}.{name}"
            for layer, module in self.model.named_modules()
            if isinstance(module, NORMALISING)
            for name, _ in module.named_parameters(recurse=False)
        )


def settled(settings: Mapping[str, Any], *, required: bool = False) -> tuple[Mapping[str, Any], str]:
    """Settings whose data are there: tasks whose files are missing are left out; each of the others has its digest.

    Args:
        settings: of a profile.
        required: raise if files are missing, instead.

    Returns:
        The settings, and a sentence about the data.

    Raises:
        DataNotFound: if files are missing and required.
    """
    digests, said = {}, []
    for name, task in settings["tasks"].items():
        try:
            digest = _digest(task["source"], task["max_examples"])
        except DataNotFound as missing:
            if required:
                raise
            said.append(f"{name} is left out: {missing}")
            continue
        digests[name] = digest
        said.append(f"{name}: {task['source']}, at most {task['max_examples']:,} examples, digest {digest}.")
    return {**settings, "data": digests}, " ".join(said)


@lru_cache(maxsize=2)
def task(source: str, max_examples: int, word: str, pool: int, evaluated: int) -> Task:
    """The task of a setting.

    Args:
        source: a built-in problem of tensors, or `python-docs`.
        max_examples: training examples that are used.
        word: `logistic`, `groupnorm-cnn:CHANNELS`, `gpt:LAYERSxWIDTH`, or one of `experiments.networks`.
        pool: images are averaged over squares of this side; for a text, the letters of an example.
        evaluated: examples on which the loss is evaluated.

    Returns:
        The task.
    """
    if source == TEXT:
        x, y = _letters(pool, max_examples)
    else:
        x, y = data.tensors(source, max_examples).tensors
        if pool > 1:
            x = avg_pool2d(x, pool)
    binary = word == "logistic" and source != TEXT and int(y.max()) == 1
    classes = LETTERS if source == TEXT else int(y.max()) + 1
    rows = permutation(len(x), seed=1)[:evaluated]
    losses: Losses = logistic_losses if binary else _mean_over_letters if source == TEXT else softmax_losses
    return Task(
        model=_model(word, tuple(x.shape[1:]), classes), losses=losses, train=(x, y), evaluated=(x[rows], y[rows])
    )


def _model(word: str, inputs: tuple[int, ...], classes: int) -> nn.Module:
    kind, _, sizes = word.partition(":")
    if kind == "logistic":
        return logistic_regression(math.prod(inputs), classes, seed=0)
    if kind not in ("groupnorm-cnn", "gpt"):
        return network(word, inputs, classes, seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        if kind == "gpt":
            layers, width = map(int, sizes.split("x"))
            return CharacterGPT(layers, width, inputs[0])
        return _groupnorm_cnn(inputs, classes, int(sizes))


def _groupnorm_cnn(inputs: tuple[int, ...], classes: int, channels: int) -> nn.Module:
    def block(ins: int, outs: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(ins, outs, 3, padding=1), nn.GroupNorm(max(1, outs // 8), outs), nn.ReLU(), nn.MaxPool2d(2)

    left = (inputs[1] // 4) * (inputs[2] // 4)
    return nn.Sequential(
        *block(inputs[0], channels),
        *block(channels, 2 * channels),
        nn.Flatten(),
        nn.Linear(2 * channels * left, classes),
    )


class CharacterGPT(nn.Module):
    """A decoder-only transformer over letters: pre-norm, four heads, ReLU, learned positions.

    Args:
        layers: how many.
        width: of the residual stream, a multiple of four.
        length: letters of an example.
    """

    def __init__(self, layers: int, width: int, length: int) -> None:
        super().__init__()
        self.letter = nn.Embedding(LETTERS, width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        self.layers = nn.ModuleList(_Layer(width, length) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, LETTERS)

    def forward(self, letters: Int[Tensor, "b t"]) -> Float[Tensor, "b t letters"]:
        """Logits of the next letter at each place."""
        hidden = self.letter(letters) + self.place
        for layer in self.layers:
            hidden = layer(hidden)
        logits: Tensor = self.out(self.norm(hidden))
        return logits


class _Layer(nn.Module):
    HEADS = 4

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.back = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.register_buffer("later", torch.full((length, length), -1e9).triu(1), persistent=False)

    def forward(self, hidden: Float[Tensor, "b t w"]) -> Float[Tensor, "b t w"]:
        """Attention, then a perceptron; each is added to the stream."""
        b, t, w = hidden.shape
        parts = self.qkv(self.first(hidden)).reshape(b, t, 3, self.HEADS, w // self.HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = parts[0], parts[1], parts[2]
        seen = (q @ k.transpose(-1, -2) / (w // self.HEADS) ** 0.5 + self.later).softmax(-1) @ v
        hidden = hidden + self.back(seen.transpose(1, 2).reshape(b, t, w))
        out: Tensor = hidden + self.down(relu(self.up(self.second(hidden))))
        return out


def _mean_over_letters(model: nn.Module, batch: Any) -> Float[Tensor, " b"]:
    letters, following = batch
    logits = model(letters)
    return cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="none").reshape(following.shape).mean(1)


def _letters(length: int, most: int) -> tuple[Tensor, Tensor]:
    """Windows of the text at places that do not overlap, in random order, and each letter's successor."""
    text = _text()
    known = {letter: k for k, (letter, _) in enumerate(Counter(text).most_common(LETTERS - 1))}
    codes = torch.tensor([known.get(letter, LETTERS - 1) for letter in text])
    count = (len(codes) - 1) // length
    starts = permutation(count, seed=0)[:most, None] * length + torch.arange(length)
    return codes[starts], codes[starts + 1]


@lru_cache(maxsize=1)
def _text() -> str:
    from pydoc_data.topics import topics  # noqa: PLC0415 - half a megabyte

    return "\n".join(topics[name] for name in sorted(topics))


def _digest(source: str, max_examples: int) -> str:
    if source == TEXT:
        return hashlib.blake2b(_text().encode(), digest_size=8).hexdigest()
    return data.digest(source, max_examples)
