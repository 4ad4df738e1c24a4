"""A table that is read and multiplied with: tied embedding and output head, as in GPT-2.

g_i = E_i + P_i with E_i = Σ_t e_{token(i,t)} ⊗ D_t from the look-up and P_i = Σ_u U_u ⊗ H_u from the product (U the
gradient at the logits, H what met the table), so that ‖g_i‖² = ‖E_i‖² + ‖P_i‖² + 2Σ_{t,u} U_{u,token(t)}⟨D_t, H_u⟩.
With the Gram for ‖P_i‖² no gradient of one example is formed; otherwise some rows of the table of it at a time are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Size, Tensor

from variegrad.per_example.plan import Ways, choose, chosen
from variegrad.per_example.rules import contribution
from variegrad.per_example.rules.contribution import TILE_BYTES, Contribution, Summed, Together, sq_norms
from variegrad.per_example.rules.embedding import Lookup
from variegrad.per_example.rules.matmul import GRAM_FLOOR, Outer
from variegrad.per_example.rules.rounding import sums_apart
from variegrad.shapes import Float


@dataclass(frozen=True)
class Tied(Contribution):
    """g_i = E_i + P_i.

    Attributes:
        lookup: the uses as a table.
        product: the uses as a factor, turned so that its left rows are the gradients at the logits.
    """

    lookup: Lookup
    product: Outer

    @property
    def count(self) -> int:  # type: ignore[override]
        return self.lookup.count

    @property
    def shape(self) -> Size:  # type: ignore[override]
        return self.lookup.shape

    @property
    def way(self) -> str:
        return f"look-up and product together, {chosen(self, True) or next(iter(self.variants()))}"

    @property
    def working_bytes(self) -> int:
        return min(super().working_bytes, TILE_BYTES)

    @property
    def family(self) -> tuple[Hashable, ...]:
        return ("tied", self.shape, self._dtype, self.product.left.device, self.product.formed)

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.product.left.shape[1], 1 + len(self.lookup.tokens) // max(1, self.count))

    def first(self, count: int) -> Tied:
        return Tied(self.lookup.first(count), self.product.first(count))

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self.lookup.gradients.dtype, self.product.left.dtype)

    def rows(self, start: int, stop: int) -> Tensor:
        return self.product.rows(start, stop) + self.lookup.rows(start, stop)

    def summed(self, *, total: bool = True) -> Summed:
        witness: Ways[Tied, Summed] = {"by rows of the table": lambda tied: tied._by_rows(total)}
        return choose(self, self.variants(total=total), Tied._apart, total, witness)

    def _apart(self, one: Summed, other: Summed) -> float:
        bound = self._bound(self.lookup.summed(total=False).sq_norms)
        return sums_apart(self.mended(one), self.mended(other), bound, self.product.left.dtype)

    def _bound(self, looked_up: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return looked_up + self.product.bound()

    def variants(self, *, total: bool = True) -> Ways[Tied, Summed]:
        """The exact ways to the same sums, cheapest by the count of operations first."""
        t, (v, d) = self.product.left.shape[1], self.shape
        direct, gram = 2 * t * v * d, 2 * t * t * (v + d) + 2 * t * v * d * total
        ways: dict[str, Callable[[Tied], Summed]] = {}
        if (
            not self.product.formed
            and self._dtype in GRAM_FLOOR
            and self.product.left.dtype == self._dtype
            and gram < 3 * direct
        ):
            ways["by their inner products"] = lambda tied: tied._by_products(total)
        if direct < 8 * gram or not ways:
            ways["by rows of the table"] = lambda tied: tied._by_rows(total)
        return dict(sorted(ways.items(), key=lambda way: gram > direct and way[0].endswith("products")))

    def _by_products(self, total: bool) -> Summed:
        looked_up = self.lookup.summed(total=False).sq_norms
        squares = looked_up + self.product.scale**2 * self.product.gram_sq_norms() + 2 * self._inner_products()
        # Where terms cancel, what is left is rounding; where they overflow, nothing.
        lost = ~(squares >= GRAM_FLOOR[self._dtype] * self._bound(looked_up)) | squares.isinf()
        return Summed(squares, self._total() if total else None, lost)

    def _inner_products(self) -> Float[Tensor, " b"]:
        """⟨E_i, P_i⟩ = Σ_{t,u} U_{u,token(t)}⟨D_t, H_u⟩: the columns of U that were read, never a table."""
        (tokens, gradients), rows = self.lookup.padded, self.product.left.shape[1]
        found = []
        step = max(1, TILE_BYTES // (4 * max(1, tokens.shape[1]) * rows))
        for start in range(0, self.count, step):
            tile = slice(start, start + step)
            at = tokens[tile].clamp(min=0).unsqueeze(1).expand(-1, rows, -1)
            product = self.product.left[tile].gather(2, at)
            product *= torch.bmm(self.product.right[tile], gradients[tile].transpose(1, 2))
            product.masked_fill_((tokens[tile] < 0).unsqueeze(1), 0.0)
            found.append(product.flatten(1).sum(1, dtype=torch.float64))
        return self.product.scale * torch.cat(found)

    def _total(self) -> Float[Tensor, "v d"]:
        whole = torch.mm(self.product.left.flatten(0, 1).t(), self.product.right.flatten(0, 1))
        whole = (whole if self.product.scale == 1 else whole.mul_(self.product.scale)).to(self._dtype)
        padding = (self.lookup.tokens < 0).unsqueeze(1)
        gradients = self.lookup.gradients.masked_fill(padding, 0).to(self._dtype)
        return whole.index_add_(0, self.lookup.tokens.clamp(min=0), gradients)

    def _by_rows(self, total: bool) -> Summed:
        """Some rows of the table of some examples at a time, squared and added while they are in cache."""
        v, d = self.shape
        wide = torch.promote_types(self._dtype, torch.float32)
        norms = torch.zeros(self.count, dtype=torch.float64, device=self.lookup.tokens.device)
        whole = torch.zeros(self.shape, dtype=wide, device=norms.device) if total else None
        high = min(v, max(1, TILE_BYTES // (4 * d)))
        step = max(1, TILE_BYTES // (4 * d * v))
        for start in range(0, self.count, step):
            at = slice(start, start + step)
            left, right = self.product.left[at], self.product.right[at]
            tokens, gradients = (part[at] for part in self.lookup.padded)
            example = torch.arange(len(tokens), device=norms.device).unsqueeze(1)
            for low in range(0, v, high):
                columns = left[:, :, low : low + high]
                block = torch.bmm(columns.transpose(1, 2), right).to(wide).mul_(self.product.scale)
                inside = (tokens >= low) & (tokens < low + block.shape[1])
                flat = example * block.shape[1] + (tokens - low).clamp(0, block.shape[1] - 1)
                read = gradients.masked_fill(~inside.unsqueeze(2), 0).to(wide)
                block.view(-1, d).index_add_(0, flat.flatten(), read.flatten(0, 1))
                norms[start : start + step] += sq_norms(block)
                if whole is not None:
                    whole[low : low + high] += block.sum(0)
        return Summed(norms, None if whole is None else whole.to(self._dtype))


def combine(parts: Sequence[Contribution]) -> Contribution:
    """The sum of several uses of one parameter, in one shape."""
    whole = contribution.combine(parts)
    if isinstance(whole, Together):
        match sorted(whole.parts, key=lambda part: type(part).__name__):
            case [Lookup() as lookup, Outer() as product]:
                return Tied(lookup, product)
    return whole
