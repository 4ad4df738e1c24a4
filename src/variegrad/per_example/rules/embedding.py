"""Embeddings: g_i has the rows of the tokens of example i, each the sum of the output gradients where it stands.

‖g_i‖² needs repeated tokens of one example to be added before squaring; tokens of different examples never meet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Size, Tensor
from torch.autograd.graph import Node

from variegrad.per_example.graph import saved
from variegrad.per_example.rules.contribution import Contribution, NotCovered, Summed, sq_norms
from variegrad.per_example.rules.visit import Visit
from variegrad.shapes import Float, Int

SUM, MEAN = 0, 1


@dataclass(frozen=True)
class Lookup(Contribution):
    """g_i = Σ_{n of i} e_{token(n)} ⊗ δ_n.

    Attributes:
        examples: which example reads it; b if no single example does.
        tokens: the row that was read, −1 where none was (padding).
        gradients: the gradient at what was read.
        count: b.
        vocabulary: V, the number of rows of the table.
        each: how many readings every example has, if all have the same number.
        sparse: whether autograd would give the table a sparse gradient: then Σg_i is one, of the rows that were read.
    """

    examples: Int[Tensor, " n"]
    tokens: Int[Tensor, " n"]
    gradients: Float[Tensor, "n d"]
    count: int
    vocabulary: int
    each: int | None = None
    sparse: bool = False

    @classmethod
    def of_rows(cls, tokens: Int[Tensor, "b t"], gradients: Float[Tensor, "b t d"], vocabulary: int) -> Lookup:
        """Every example has read the same number of rows."""
        count, each = tokens.shape
        examples = torch.arange(count, device=tokens.device).repeat_interleave(each, output_size=count * each)
        return cls(examples, tokens.flatten(), gradients.flatten(0, 1), count, vocabulary, each)

    @property
    def way(self) -> str:
        return "tokens of each example, once"

    @property
    def working_bytes(self) -> int:
        return self.gradients.numel() * self.gradients.element_size()

    @property
    def shape(self) -> Size:  # type: ignore[override]
        return Size((self.vocabulary, self.gradients.shape[1]))

    def first(self, count: int) -> Lookup:
        """The same for the first few examples."""
        count = min(count, self.count)
        own = self.examples < count if self.each is None else slice(0, count * self.each)
        examples, tokens, gradients = self.examples[own], self.tokens[own], self.gradients[own]
        return replace(self, examples=examples, tokens=tokens, gradients=gradients, count=count)

    @cached_property
    def padded(self) -> tuple[Int[Tensor, "b t"], Float[Tensor, "b t d"]]:
        """Tokens and gradients example by example; reads the longest example from the device if lengths differ."""
        if self.each is not None:
            return tuple(t.unflatten(0, (self.count, self.each)) for t in (self.tokens, self.gradients))
        sizes = _counts(self.examples, self.count + 1)
        examples, order = self.examples.sort(stable=True)
        place = torch.arange(len(examples), device=sizes.device) - (sizes.cumsum(0) - sizes)[examples]
        own = examples < self.count
        at = examples[own], place[own]
        longest = int(sizes[:-1].max()) if self.count else 0
        tokens = self.tokens.new_full((self.count, longest), -1)
        gradients = self.gradients.new_zeros(self.count, longest, self.gradients.shape[1])
        tokens[at], gradients[at] = self.tokens[order[own]], self.gradients[order[own]]
        return tokens, gradients

    def rows(self, start: int, stop: int) -> Tensor:
        tokens, gradients = (part[start:stop] for part in self.padded)
        width = gradients.shape[2]
        wide = gradients.to(torch.promote_types(gradients.dtype, torch.float32))  # in 16 bits sums stop growing
        table = wide.new_zeros(stop - start, self.vocabulary + 1, width)  # one row more: where padding goes
        at = torch.where(tokens < 0, self.vocabulary, tokens).unsqueeze(2).expand(-1, -1, width)
        return table.scatter_add_(1, at, wide)[:, : self.vocabulary].to(gradients.dtype)

    def merged(self, other: Contribution) -> Lookup | None:
        if not isinstance(other, Lookup) or other.shape != self.shape:
            return None
        (tokens, gradients), (others, theirs) = self.padded, other.padded
        joint = Lookup.of_rows(torch.cat((tokens, others), 1), torch.cat((gradients, theirs), 1), self.vocabulary)
        return replace(joint, sparse=self.sparse and other.sparse)

    def summed(self, *, total: bool = True) -> Summed:
        # Equal keys are made neighbours, and get one row together: as many rows as readings, however many are used.
        key, order = (self.examples * (self.vocabulary + 1) + self.tokens).sort(stable=True)
        first = torch.ones_like(key)
        first[1:] = key[1:] != key[:-1]
        row = first.cumsum(0) - 1
        place = torch.empty_like(row).scatter_(0, order, row)
        wide = torch.promote_types(self.gradients.dtype, torch.float32)
        gradients = self.gradients.masked_fill((self.tokens < 0).unsqueeze(1), 0).to(wide)
        rows = gradients.new_zeros(gradients.shape).index_add_(0, place, gradients)
        owner = torch.full_like(row, self.count).scatter_(0, place, self.examples)
        norms = rows.new_zeros(self.count + 1, dtype=torch.float64).index_add_(0, owner, sq_norms(rows))[:-1]
        if not total:
            return Summed(norms, None)
        if self.sparse:
            return Summed(norms, self._sparse_total())
        table = gradients.new_zeros(self.shape).index_add_(0, self.tokens.clamp(min=0), gradients)
        return Summed(norms, table.to(self.gradients.dtype))

    def _sparse_total(self) -> Tensor:
        # As autograd's own: padding takes no part, repeated rows are not yet added.
        kept = self.tokens >= 0
        return torch.sparse_coo_tensor(
            self.tokens[kept].unsqueeze(0), self.gradients[kept], self.shape, check_invariants=False
        )


def embedding(visit: Visit, slot: int, shape: Size) -> Contribution:  # noqa: ARG001
    """Y = W[tokens]."""
    node = visit.node
    _refuse_frequencies(node)
    if visit.layout.dim == visit.gradient.dim() - 1:
        raise NotCovered("a table whose columns belong to examples")
    tokens = visit.rows(saved(node, "indices")).flatten(1)
    tokens = tokens.masked_fill(tokens == saved(node, "padding_idx"), -1)
    found = Lookup.of_rows(tokens, visit.rows(visit.gradient).reshape(*tokens.shape, -1), shape[0])
    return replace(found, sparse=bool(saved(node, "sparse")))


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
    kept = torch.ne(tokens, saved(node, "padding_idx"))
    weights: Tensor | None = saved(node, "per_sample_weights")
    factor = torch.ones_like(tokens, dtype=gradient.dtype) if weights is None else weights.to(gradient.dtype)
    if mode == MEAN:
        factor = factor / _counts(bag, bags, kept).clamp(min=1)[bag]
    wanted = visit.place_of(bag)
    return Lookup(
        wanted, tokens.masked_fill(~kept, -1), gradient[bag] * factor.unsqueeze(1), visit.wanted, shape[0],
        sparse=bool(saved(node, "sparse")),
    )  # fmt: skip


def _counts(values: Tensor, size: int, weights: Tensor | None = None) -> Tensor:
    """How often each of 0 … size−1 occurs; unlike `bincount`, without a read of the device."""
    ones = torch.ones_like(values) if weights is None else weights.to(values.dtype)
    return values.new_zeros(size).index_add_(0, values, ones)


def _refuse_frequencies(node: Node) -> None:
    if saved(node, "scale_grad_by_freq"):
        raise ValueError(
            "an embedding with scale_grad_by_freq=True divides gradients by how often a token occurs in the whole "
            "batch, which couples the examples: there is no gradient of one example alone. Set it to False."
        )
