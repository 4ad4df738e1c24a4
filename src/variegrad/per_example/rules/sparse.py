"""Products of sparse inputs with a weight: g_i = Σ_c x_ic e_c ⊗ δ_i has a row for each non-zero of example i.

That is a look-up of the rows c with gradients x_ic·δ_i, whatever the number of columns.
"""

from __future__ import annotations

import torch
from torch import Size, Tensor

from variegrad.per_example.graph import saved
from variegrad.per_example.rules.contribution import Contribution, Dense, NotCovered
from variegrad.per_example.rules.embedding import Lookup
from variegrad.per_example.rules.visit import Visit


def sparse_addmm(visit: Visit, slot: int, shape: Size) -> Contribution:
    """Y = β·M + α·X·W with a sparse X (`torch.sparse.mm`, `torch.sparse.addmm`): M is slot 0, W slot 2."""
    node = visit.node
    if slot == 0:
        beta = float(saved(node, "beta"))
        return Dense(visit.reduced(visit.rows(visit.gradient), shape) * beta)
    if slot != 2:
        raise NotCovered("a sparse parameter")
    return sparse_rows(visit, saved(node, "mat1"), shape, float(saved(node, "alpha")))


def sparse_rows(visit: Visit, inputs: Tensor, shape: Size, scale: float = 1.0) -> Lookup:
    """The gradient of W in Y = X·W, one row of X per example.

    Args:
        visit: the product.
        inputs: X, of any sparse layout.
        shape: of W.
        scale: α.

    Returns:
        The contribution.

    Raises:
        NotCovered: if an example has several rows, or the layout is none that has rows.
    """
    if visit.layout.dim != 0 or len(inputs) != visit.count or inputs.dim() != 2:
        raise NotCovered("a sparse product with other than one row per example")
    if inputs.layout not in (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc):
        raise NotCovered(f"a product with a factor of layout {inputs.layout}")
    coo = (inputs if inputs.layout == torch.sparse_coo else inputs.to_sparse_coo()).detach().coalesce()
    (row, column), values = coo.indices(), coo.values()
    gradient = visit.gradient[row] * (values.to(visit.gradient.dtype) * scale).unsqueeze(1)
    return Lookup(visit.place_of(row), column, gradient, visit.wanted, shape[0])
