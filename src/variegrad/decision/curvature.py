"""Gradients and curvature of one batch: what the limits of a step are made of.

A quarter of the batch gives curvature: its examples have Hessians H_i. The rest is cut into K parts with mean gradients
ĝ_k. The two are disjoint: nothing is multiplied by its own noise. With P a diagonal preconditioner (1 for SGD) and
s = (1/K)Σ Pĝ_k,

    gram[k, j] = ⟨ĝ_k, Pĝ_j⟩     own[k, i] = ⟨Pĝ_k, H_i Pĝ_k⟩     mean[i] = ⟨s, H_i s⟩     across[k] = ⟨Pĝ_k, H s⟩.

Curvature per example comes from losses alone, by second differences over a step of the length in use, t = η:

    ℓ_i(w+tv) + ℓ_i(w−tv) − 2ℓ_i(w) = t²·vᵀH_iv + O(t⁴).

The kinks of ReLU count at that length, while the derivatives that autograd takes miss them. On a ReLU network early in
training real steps lost 0.26 of their progress; autograd's derivatives gave 0.15, second differences 0.39 [0.32, 0.45]
(decision 0019): too cautious, but not too bold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from variegrad.shapes import Float

Tensors = list[Tensor]
# Second differences as a share of the mean loss: smaller ones drown in float32, larger ones are far from local.
SMALL, LARGE = 3e-5, 0.1
LENGTHS = 8  # that are tried
CHUNK = 1 << 16  # elements of each vector in a product of pairs: what stays in the cache


class Curvature(NamedTuple):
    """What the parts of a batch say of ‖G‖², GᵀHG, E gᵀHg and λ_max; all in float64.

    Attributes:
        gram, own, mean, across: as above.
        sizes: examples per gradient part.
        ritz: θ = vᵀHv along the top Ritz vector v of P^½HP^½, ‖v‖ = 1, in the examples that v was fitted to.
        fresh: vᵀH_iv in other examples: their mean is not above λ_max in expectation.
        residual: ‖Hv − θv‖.
    """

    gram: Float[Tensor, "K K"]
    own: Float[Tensor, "K a"]
    mean: Float[Tensor, " a"]
    across: Float[Tensor, " K"]
    sizes: Float[Tensor, " K"]
    ritz: float
    fresh: Float[Tensor, " f"]
    residual: float


def curvature_of(
    model: nn.Module,
    losses: Callable[[nn.Module, Any], Tensor],
    gradient_parts: Sequence[Any],
    curvature_part: Any,
    fresh_part: Any,
    weights: Sequence[nn.Parameter],
    *,
    preconditioner: Sequence[Tensor] | None,
    learning_rate: float,
    steps: int,
) -> Curvature:
    """Measure them all; the model's state is the caller's affair.

    Raises:
        ValueError: if an operation of the model has no second derivative.
    """
    sizes, rows = [], []
    for part in gradient_parts:
        per_example = losses(model, part)
        rows.append(_dense(torch.autograd.grad(per_example.mean(), weights, allow_unused=True), weights))
        sizes.append(len(per_example))
    scaled = rows if preconditioner is None else [_times(preconditioner, row) for row in rows]
    gram = _products(rows, scaled)
    mean = [sum(parts) / len(scaled) for parts in zip(*scaled, strict=True)]
    along = _Lines(model, losses, curvature_part, weights)
    own, reached = [], learning_rate
    for vector in scaled:  # what was too short or too long for one part is so for the next
        found, reached = along.curvature(vector, reached)
        own.append(found)
    along_mean, _ = along.curvature(mean, reached)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
        hessian = _Hessian(losses(model, curvature_part), weights)
    image = hessian.times(mean)
    root = None if preconditioner is None else [p.sqrt() for p in preconditioner]
    gradient = mean if root is None else [sum(parts) / len(rows) for parts in zip(*rows, strict=True)]
    vector, ritz, residual = _top_vector(hessian, _times(root, gradient), _times(root, image), root, steps)
    length = 1e-3 * float(_dot(weights, weights)) ** 0.5
    fresh, _ = _Lines(model, losses, fresh_part, weights).curvature(_times(root, vector), length)
    return Curvature(
        gram=gram,
        own=torch.stack(own),
        mean=along_mean,
        across=_along(scaled, image),
        sizes=torch.tensor(sizes, dtype=torch.float64),
        ritz=ritz,
        fresh=fresh,
        residual=residual,
    )


class _Lines:
    """Losses of one part of the batch along straight lines through the weights."""

    def __init__(self, model: nn.Module, losses: Callable[..., Tensor], part: Any, weights: Sequence[nn.Parameter]):
        self.model, self.losses, self.part, self.weights = model, losses, part, weights
        self.here = self._losses()

    def curvature(self, vector: Sequence[Tensor], t: float) -> tuple[Float[Tensor, " a"], float]:
        """vᵀH_iv of each example i at the length t unless it is too short or too long to tell; the length taken."""
        scale = max(float(self.here.abs().mean()), 1e-12)
        for attempt in range(LENGTHS):
            second = self._at(vector, t) + self._at(vector, -t) - 2 * self.here
            share = float(second.abs().mean()) / scale
            if SMALL <= share <= LARGE or attempt == LENGTHS - 1:
                break
            wanted = 10 * SMALL if share < SMALL else LARGE / 10
            t *= min(30.0, max(1 / 30, (wanted / max(share, 1e-30)) ** 0.5))
        return second / t**2, t

    @torch.no_grad()
    def _at(self, vector: Sequence[Tensor], t: float) -> Float[Tensor, " a"]:
        found = [p.data for p in self.weights]
        try:
            for p, data, v in zip(self.weights, found, vector, strict=True):
                p.data = torch.add(data, v, alpha=t)
            return self._losses()
        finally:  # the same storage again: not a bit of the weights has changed
            for p, data in zip(self.weights, found, strict=True):
                p.data = data

    @torch.no_grad()
    def _losses(self) -> Float[Tensor, " a"]:
        found: Tensor = self.losses(self.model, self.part)
        return found.double().cpu()


class _Hessian:
    """∇² of the mean loss of a part, as a product with a vector: the first derivative is kept with its graph."""

    def __init__(self, per_example: Tensor, weights: Sequence[nn.Parameter]) -> None:
        self.weights = weights
        try:
            gradients = torch.autograd.grad(per_example.mean(), weights, create_graph=True, allow_unused=True)
        except RuntimeError as error:
            raise _no_second_derivative(error) from error
        # autograd gives None for a parameter that the loss does not use
        if any(g is not None and g.layout != torch.strided for g in gradients):  # type: ignore[redundant-expr]
            raise _no_second_derivative(RuntimeError("a table with sparse gradients (sparse=True)."))
        # A loss that is linear in a parameter has no curvature along it.
        self.curved = {k: g for k, g in enumerate(gradients) if g is not None and g.requires_grad}  # type: ignore[redundant-expr]

    def times(self, vector: Sequence[Tensor]) -> Tensors:
        """H v."""
        if not self.curved:
            return [torch.zeros_like(p) for p in self.weights]
        try:
            found = torch.autograd.grad(
                list(self.curved.values()),
                self.weights,
                [vector[k] for k in self.curved],
                retain_graph=True,
                allow_unused=True,
            )
        except RuntimeError as error:
            raise _no_second_derivative(error) from error
        return _dense(found, self.weights)


def _no_second_derivative(error: Exception) -> ValueError:
    return ValueError(
        "step limits need second derivatives, which an operation of this model does not have: "
        f"{str(error).splitlines()[0]} Use vg.estimate for the noise limit alone."
    )


def _top_vector(
    hessian: _Hessian, start: Tensors, product: Tensors, root: Sequence[Tensor] | None, steps: int
) -> tuple[Tensors, float, float]:
    """The top Ritz vector after a few Lanczos steps, its value and its residual; `product` is H·start."""
    basis: list[Tensors] = []
    matrix = torch.zeros(steps, steps, dtype=torch.float64)
    vector, norm = start, float(_dot(start, start)) ** 0.5
    while norm > 0 and len(basis) < steps:
        vector = list(torch._foreach_div(vector, norm))
        basis.append(vector)
        k = len(basis)
        image = [p / norm for p in product] if k == 1 else _times(root, hessian.times(_times(root, vector)))
        matrix[:k, k - 1] = matrix[k - 1, :k] = _along(basis, image)
        for _ in range(2):  # once leaves rounding behind
            for weight, earlier in zip(_along(basis, image).tolist(), basis, strict=True):
                torch._foreach_sub_(image, earlier, alpha=weight)
        vector, norm = image, float(_dot(image, image)) ** 0.5
        if norm <= 1e-6 * float(matrix.abs().max()):
            norm = 0.0
    if not basis:
        return start, 0.0, 0.0
    values, vectors = torch.linalg.eigh(matrix[: len(basis), : len(basis)])
    largest = int(values.abs().argmax())
    ritz = vectors[:, largest]
    top = [torch.zeros_like(v) for v in start]
    for weight, direction in zip(ritz.tolist(), basis, strict=True):
        torch._foreach_add_(top, direction, alpha=weight)
    return top, float(values[largest]), norm * abs(float(ritz[-1]))


def _times(root: Sequence[Tensor] | None, vector: Sequence[Tensor]) -> Tensors:
    return list(vector) if root is None else list(torch._foreach_mul(list(root), list(vector)))


def _dense(gradients: Sequence[Tensor | None], weights: Sequence[nn.Parameter]) -> Tensors:
    return [
        torch.zeros_like(p) if g is None else g.detach().to_dense() for g, p in zip(gradients, weights, strict=True)
    ]


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Float[Tensor, ""]:
    return _along([list(a)], b)[0]


@torch.no_grad()
def _along(rows: Sequence[Sequence[Tensor]], vector: Sequence[Tensor]) -> Float[Tensor, " K"]:
    """⟨row_k, vector⟩ for each row: in the parameters' type within a tensor, in float64 across tensors."""
    total = torch.zeros(len(rows), dtype=torch.float64)
    for parts in zip(*rows, vector, strict=True):
        other = parts[-1].flatten()
        total += torch.stack([torch.dot(part.flatten(), other) for part in parts[:-1]]).double().cpu()
    return total


@torch.no_grad()
def _products(a: Sequence[Tensors], b: Sequence[Tensors]) -> Float[Tensor, "K K"]:
    """⟨a_k, b_j⟩ for all pairs, reading each vector once."""
    total = torch.zeros(len(a), len(b), dtype=torch.float64)
    for left, right in zip(zip(*a, strict=True), zip(*b, strict=True), strict=True):
        ours, theirs = [part.flatten() for part in left], [part.flatten() for part in right]
        chunks = []
        for start in range(0, len(ours[0]), CHUNK):
            one = torch.stack([part[start : start + CHUNK] for part in ours])
            other = one if a is b else torch.stack([part[start : start + CHUNK] for part in theirs])
            chunks.append(one @ other.T)
        if chunks:  # one read per parameter
            total += torch.stack(chunks).double().sum(0).cpu()
    return total
