"""Embeddings: g_i has the rows of the tokens of example i, each the sum of the output gradients where it stands.

‖g_i‖² needs repeated tokens of one example to be added before squaring; tokens of different examples never meet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Size, Tensor
from torch.autograd.graph import Node

from variegrad.per_example.graph import saved
from variegrad.per_example.rules.contribution import Contribution, NotCovered, Summed
from variegrad.per_example.rules.visit import Visit
from variegrad.shapes import Float, Int

SUM, MEAN = 0, 1


@dataclass(frozen=True)
class Lookup(Contribution):
    """g_i = Σ_t e_{token(i,t)} ⊗ δ_it.

    Attributes:
        tokens: the rows that were read, −1 where none was (padding).
        gradients: the gradients at what was read.
        vocabulary: V, the number of rows of the table.
        sparse: whether autograd would give the table a sparse gradient: then Σg_i is one, of the rows that were read.
    """

    tokens: Int[Tensor, "b t"]
    gradients: Float[Tensor, "b t d"]
    vocabulary: int
    sparse: bool = False

    @property
    def way(self) -> str:
        return "tokens of each example, once"

    @property
    def working_bytes(self) -> int:
        return self.gradients.numel() * self.gradients.element_size()

    @property
    def count(self) -> int:  # type: ignore[override]
        return len(self.tokens)

    @property
    def shape(self) -> Size:  # type: ignore[override]
        return Size((self.vocabulary, self.gradients.shape[2]))

    def rows(self, start: int, stop: int) -> Tensor:
        tokens, gradients = self.tokens[start:stop], self.gradients[start:stop]
        width = gradients.shape[2]
        table = gradients.new_zeros(stop - start, self.vocabulary + 1, width)  # one row more: where padding goes
        at = torch.where(tokens < 0, self.vocabulary, tokens).unsqueeze(2).expand(-1, -1, width)
        return table.scatter_add_(1, at, gradients)[:, : self.vocabulary]

    def merged(self, other: Contribution) -> Lookup | None:
        if not isinstance(other, Lookup) or other.shape != self.shape:
            return None
        return Lookup(
            torch.cat((self.tokens, other.tokens), 1),
            torch.cat((self.gradients, other.gradients), 1),
            self.vocabulary,
            self.sparse and other.sparse,
        )

    def summed(self, *, total: bool = True) -> Summed:
        example = torch.arange(self.count, device=self.tokens.device).unsqueeze(1).expand_as(self.tokens)
        kept = self.tokens >= 0
        gradients = self.gradients[kept]
        keys, place = torch.unique(example[kept] * self.vocabulary + self.tokens[kept], return_inverse=True)
        rows = gradients.new_zeros(len(keys), gradients.shape[1]).index_add_(0, place, gradients)
        norms = torch.zeros(self.count, dtype=torch.float64, device=rows.device)
        norms.index_add_(0, keys // self.vocabulary, rows.double().square().sum(1))
        if not total:
            return Summed(norms, None)
        if self.sparse:
            read, place = torch.unique(keys % self.vocabulary, return_inverse=True)
            values = rows.new_zeros(len(read), rows.shape[1]).index_add_(0, place, rows)
            table = torch.sparse_coo_tensor(
                read.unsqueeze(0), values, self.shape, is_coalesced=True, check_invariants=False
            )
            return Summed(norms, table)
        return Summed(norms, rows.new_zeros(self.shape).index_add_(0, keys % self.vocabulary, rows))


def embedding(visit: Visit, slot: int, shape: Size) -> Contribution:  # noqa: ARG001
    """Y = W[tokens]."""
    node = visit.node
    _refuse_frequencies(node)
    if visit.layout.dim == visit.gradient.dim() - 1:
        raise NotCovered("a table whose columns belong to examples")
    tokens = visit.rows(saved(node, "indices")).flatten(1)
    tokens = tokens.masked_fill(tokens == _signed(saved(node, "padding_idx")), -1)
    return Lookup(tokens, visit.rows(visit.gradient).reshape(*tokens.shape, -1), shape[0], bool(saved(node, "sparse")))


def embedding_bag(visit: Visit, slot: int, shape: Size) -> Contribution:
    """Y[bag] = Σ or mean of W[tokens of the bag], weighted on request."""
    node, gradient = visit.node, visit.gradient
    _refuse_frequencies(node)
    mode, bags = int(saved(node, "mode")), len(gradient)
    if slot != 0 or mode not in (SUM, MEAN) or bags != visit.count or visit.layout.dim != 0:
        raise NotCovered("an EmbeddingBag of another form than one bag an example, summed or averaged")
    tokens: Tensor = saved(node, "indices")
    offsets: Tensor = saved(node, "offsets")[:bags]
    places = torch.arange(len(tokens), device=tokens.device)
    bag = torch.bucketize(places, offsets, right=True) - 1
    kept = torch.ne(tokens, _signed(saved(node, "padding_idx")))
    sizes = torch.bincount(bag[kept], minlength=bags).clamp(min=1)
    longest = int(torch.bincount(bag, minlength=bags).max()) if len(tokens) else 0
    at = (bag, places - offsets[bag])
    padded = tokens.new_full((bags, longest), -1)
    padded[at] = tokens.masked_fill(~kept, -1)
    weights: Tensor | None = saved(node, "per_sample_weights")
    values = torch.ones_like(tokens, dtype=gradient.dtype) if weights is None else weights.to(gradient.dtype)
    factor = gradient.new_zeros(bags, longest)
    factor[at] = values / sizes[bag] if mode == MEAN else values
    return Lookup(
        visit.rows(padded)[:, 0], visit.rows(gradient) * visit.rows(factor).transpose(1, 2), shape[0],
        bool(saved(node, "sparse")),
    )  # fmt: skip


def _signed(index: int) -> int:
    # A negative padding index is stored as an unsigned number in some versions: it never equals a token.
    return index - (1 << 64) if index >= 1 << 63 else index


def _refuse_frequencies(node: Node) -> None:
    if saved(node, "scale_grad_by_freq"):
        raise ValueError(
            "an embedding with scale_grad_by_freq=True divides gradients by how often a token occurs in the whole "
            "batch, which couples the examples: there is no gradient of one example alone. Set it to False."
        )
