"""Do the layouts hold on this batch? One weighted pass more, compared in sums over every entry of each example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import Node

from variegrad.per_example.ownership import Layout, pass_to, repeats_exactly, weights_of
from variegrad.shapes import Bool, Float

# An example whose gradient is this small beside the largest may underflow under its weight.
NEGLIGIBLE = 1e-12


def block_sums(gradient: Tensor, layout: Layout, count: int) -> Float[Tensor, "b 2"]:
    """For each example, the projection of its entries onto a fixed direction, and their norm."""
    rows = layout.split(gradient.detach(), count).reshape(count, -1)
    if rows.is_complex():
        rows = torch.view_as_real(rows).flatten(1)
    rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
    places = torch.arange(rows.shape[1], dtype=rows.dtype, device=rows.device).cos_()
    return torch.stack(((rows @ places).double(), torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)), 1)


class Trial:
    """Whether layouts hold on every entry of this batch: sums of each example under weights against those without.

    Args:
        per_example: the losses; their graph is kept.
        layouts: node → layout.
        edges: the parameters below them.
        dtype: the coarsest type of the graph.
        passes: weighted backward passes; None for as many as tell any two examples apart.
    """

    def __init__(
        self,
        per_example: Float[Tensor, " b"],
        layouts: Mapping[Node, Layout],
        edges: Sequence[Tensor],
        dtype: torch.dtype,
        key: int = 0,
    ) -> None:
        self._per_example, self._layouts, self._edges, self.count = per_example, layouts, edges, len(per_example)
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(self.count + 1000 * key))
        _, _, self._weights = weights_of(per_example, dtype, order.to(per_example.device))
        self._weighted = [self._pass(weight) for weight in self._weights]

    def _pass(self, weight: Tensor) -> dict[Node, Tensor]:
        sums: dict[Node, Tensor] = {}

        def reduce(node: Node, gradient: Tensor | None) -> None:
            if gradient is not None and self._cuts(node, gradient):
                sums[node] = block_sums(gradient, self._layouts[node], self.count)

        handles = [node.register_prehook(lambda g, node=node: reduce(node, g[0])) for node in self._layouts]
        try:
            pass_to(self._edges, self._per_example, weight)
        finally:
            for handle in handles:
                handle.remove()
        return sums

    def _cuts(self, node: Node, gradient: Tensor) -> bool:
        layout = self._layouts[node]
        return layout.dim < gradient.dim() and gradient.shape[layout.dim] % self.count == 0

    def unweighted(self) -> dict[Node, Tensor]:
        """The sums without weights, by a pass of its own."""
        return self._pass(torch.ones_like(self._per_example))

    def failed(self, base: Mapping[Node, Tensor]) -> set[Node]:
        """The nodes where some entry is not its example's own.

        Args:
            base: node → its `block_sums` under weights of one.
        """
        flags = self._flags(base)
        bad = torch.stack([*flags.values()]).tolist() if flags else []
        return {node for node, is_bad in zip(flags, bad, strict=True) if is_bad}

    def broken(self, base: Mapping[Node, Tensor]) -> Bool[Tensor, ""]:
        """Whether there is such a node, on the device."""
        none = torch.zeros((), dtype=torch.bool, device=self._per_example.device)
        return torch.stack([none, *self._flags(base).values()]).any()

    def _flags(self, base: Mapping[Node, Tensor]) -> dict[Node, Tensor]:
        # Scaling by powers of two is exact, so on one processor sums agree to the last bit; elsewhere order may differ.
        tolerance = 1e-7 if repeats_exactly(self._per_example) else 1e-4
        flags: dict[Node, Tensor] = {}
        for scale, weighted in zip(self._weights, self._weighted, strict=True):
            scaled = scale.double()
            for node in {**base, **weighted}:
                if node not in base or node not in weighted:
                    bad = torch.ones((), dtype=torch.bool, device=scale.device)
                else:
                    norms = base[node][:, 1]
                    off = (weighted[node] - base[node] * scaled.unsqueeze(1)).abs().amax(1)
                    allowed = tolerance * (norms + NEGLIGIBLE * norms.amax() + 1e-300) * scaled
                    bad = (~(off <= allowed) | ~off.isfinite()).any()
                flags[node] = flags[node] | bad if node in flags else bad
        return flags
