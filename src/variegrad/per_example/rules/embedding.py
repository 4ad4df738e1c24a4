"""Embeddings: g_i has the rows of the tokens of example i, each the sum of the output gradients where it stands.

‖g_i‖² needs repeated tokens of one example to be added before squaring; tokens of different examples never meet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.graph import Node

from variegrad.per_example.ownership import Layout
from variegrad.per_example.rules.contribution import Contribution, NotCovered, Summed

SUM, MEAN = 0, 1


@dataclass(frozen=True)
class Lookup(Contribution):
    """g_i = Σ_t e_{token(i,t)} ⊗ δ_it.

    Attributes:
        tokens: the rows that were read, −1 where none was (padding).
        gradients: the gradients at what was read.
        vocabulary: V, the number of rows of the table.
    """

    tokens: Int[Tensor, "b t"]
    gradients: Float[Tensor, "b t d"]
    vocabulary: int

    @property
    def count(self) -> int:  # type: ignore[override]
        return len(self.tokens)

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return torch.Size((self.vocabulary, self.gradients.shape[2]))

    def rows(self, start: int, stop: int) -> Tensor:
        tokens, gradients = self.tokens[start:stop], self.gradients[start:stop]
        width = gradients.shape[2]
        table = gradients.new_zeros(stop - start, self.vocabulary + 1, width)  # one row more: where padding goes
        at = torch.where(tokens < 0, self.vocabulary, tokens).unsqueeze(2).expand(-1, -1, width)
        return table.scatter_add_(1, at, gradients)[:, : self.vocabulary]

    def subset(self, examples: Tensor) -> Lookup:
        return Lookup(self.tokens[examples], self.gradients[examples], self.vocabulary)

    def merged(self, other: Contribution) -> Lookup | None:
        if not isinstance(other, Lookup) or other.shape != self.shape:
            return None
        return Lookup(
            torch.cat((self.tokens, other.tokens), 1), torch.cat((self.gradients, other.gradients), 1), self.vocabulary
        )

    def summed(self, *, total: bool = True) -> Summed:
        example = torch.arange(self.count, device=self.tokens.device).unsqueeze(1).expand_as(self.tokens)
        kept = self.tokens >= 0
        tokens, example = self.tokens[kept], example[kept]
        gradients = self.gradients[kept]
        keys, place = torch.unique(example * self.vocabulary + tokens, return_inverse=True)
        rows = gradients.new_zeros(len(keys), gradients.shape[1]).index_add_(0, place, gradients)
        norms = torch.zeros(self.count, dtype=torch.float64, device=rows.device)
        norms.index_add_(0, keys // self.vocabulary, rows.double().square().sum(1))
        if not total:
            return Summed(norms, None)
        return Summed(norms, rows.new_zeros(self.shape).index_add_(0, keys % self.vocabulary, rows))


def embedding(node: Node, slot: int, gradient: Tensor, layout: Layout, count: int, shape: torch.Size) -> Contribution:
    """Y = W[tokens].

    Args:
        node: the look-up.
        slot: 0, the table.
        gradient: the gradient at its output, (…, d).
        layout: where its examples are.
        count: b.
        shape: (V, d).

    Returns:
        The contribution.

    Raises:
        NotCovered: with `scale_grad_by_freq`, which couples the examples, or where examples run along d.
    """
    if node._saved_scale_grad_by_freq:  # type: ignore[attr-defined]
        raise NotCovered("scale_grad_by_freq, which divides by counts over the whole batch")
    if layout.dim == gradient.dim() - 1:
        raise NotCovered("a table whose columns belong to examples")
    tokens: Tensor = node._saved_indices  # type: ignore[attr-defined]
    # A negative padding index is stored as an unsigned number in some versions: it never equals a token.
    tokens = torch.where(tokens == _signed(node._saved_padding_idx), -1, tokens)  # type: ignore[attr-defined]
    return Lookup(
        layout.split(tokens, count).reshape(count, -1),
        layout.split(gradient, count).reshape(count, -1, gradient.shape[-1]),
        shape[0],
    )


def embedding_bag(
    node: Node, slot: int, gradient: Tensor, layout: Layout, count: int, shape: torch.Size
) -> Contribution:
    """Y[bag] = Σ or mean of W[tokens of the bag], weighted on request.

    Args:
        node: the look-up.
        slot: 0, the table.
        gradient: the gradient at its output, (bags, d).
        layout: where its examples are.
        count: b.
        shape: (V, d).

    Returns:
        The contribution.

    Raises:
        NotCovered: for the maximum, for `scale_grad_by_freq`, for the weights of the tokens, or where several bags
            make one example.
    """
    mode = int(node._saved_mode)  # type: ignore[attr-defined]
    bags = len(gradient)
    if slot != 0 or mode not in (SUM, MEAN) or node._saved_scale_grad_by_freq or bags != count or layout.dim != 0:  # type: ignore[attr-defined]
        raise NotCovered("an EmbeddingBag of another form than one bag an example, summed or averaged")
    tokens: Tensor = node._saved_indices  # type: ignore[attr-defined]
    offsets: Tensor = node._saved_offsets  # type: ignore[attr-defined]
    bag = torch.bucketize(torch.arange(len(tokens), device=tokens.device), offsets[:bags], right=True) - 1
    kept = tokens != _signed(node._saved_padding_idx)  # type: ignore[attr-defined]
    sizes = torch.zeros(bags, dtype=torch.long, device=tokens.device).index_add_(0, bag, kept.long())
    longest = int(torch.bincount(bag, minlength=bags).max()) if len(tokens) else 0
    place = torch.arange(len(tokens), device=tokens.device) - offsets[:bags][bag]
    padded = tokens.new_full((bags, longest), -1)
    padded[bag, place] = torch.where(kept, tokens, -1)
    factor = gradient.new_zeros(bags, longest)
    weights: Tensor | None = node._saved_per_sample_weights  # type: ignore[attr-defined]
    values = torch.ones_like(tokens, dtype=gradient.dtype) if weights is None else weights
    factor[bag, place] = values / sizes[bag].clamp(min=1) if mode == MEAN else values
    return Lookup(padded, gradient.unsqueeze(1) * factor.unsqueeze(2), shape[0])


def _signed(index: int) -> int:
    return index - (1 << 64) if index >= 1 << 63 else index
