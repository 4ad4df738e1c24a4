"""The constants that Theorems 2-10 ask for, on a given problem; each says whether it is a certificate or an estimate.

β (smoothness), μ (Polyak-Łojasiewicz), M² (second moment), D₀ = ‖w₀−w*‖² and F₀−F*. λ is the L2 coefficient of the
loss and needs no function. Certificates come from the data (generalised linear models) or from inequalities;
everything that is based on the points of a run is an estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh

from variegrad.shapes import Float64
from variegrad.theory.arguments import non_negative, positive, whole_number
from variegrad.theory.files import opened
from variegrad.theory.rows import Survey
from variegrad.theory.spectral import WeightedGram, largest_eigenvalue

if TYPE_CHECKING:
    from torch import Tensor, nn

    Losses = Callable[[nn.Module, Any], Tensor]

TOLERANCE = 0.03  # residual of an estimated eigenvalue, relative: its error is of second order in it


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A number with its standing.

    Attributes:
        value: the number.
        certified: whether it provably bounds what it names; otherwise it is an estimate.
        basis: what it is based on, in words.
    """

    value: float
    certified: bool
    basis: str

    def __str__(self) -> str:
        return f"{self.value:.6g} ({'certificate' if self.certified else 'estimate'}: {self.basis})"


def glm_smoothness(
    X: Any, *, curvature: float, l2: float = 0.0, tolerance: float = 0.01, failure_probability: float = 1e-9
) -> Constant:
    """β ≤ sup ℓ″·σ²_max(X)/n + λ of a GLM's mean loss, with σ_max certified from above.

    Args:
        X: n × d, one row per example; a matrix or a file, as for `glm_bound`.
        curvature: sup ℓ″: 1/4 for the logistic loss, 1 for ½(x·w−y)², ½ for softmax.
        l2: λ of a term (λ/2)‖w‖² in the loss.
        tolerance: relative width of the interval of σ²_max.
        failure_probability: allowed if signed data need a random start.

    Returns:
        β.

    Raises:
        ValueError: if a number is out of range, or X is malformed.

    Source: Definition 1.
    """
    positive(curvature=curvature)
    non_negative(l2=l2)
    with opened(X) as rows:
        survey = Survey(rows)
        largest = float(survey.sq_norms.max())
        if largest == 0:
            return Constant(value=l2, certified=True, basis="all features are zero")
        top = largest_eigenvalue(
            WeightedGram(rows, np.full(rows.rows, 1 / largest), "bounding σ²"),
            non_negative=survey.non_negative,
            summands=survey.longest_row + int(survey.degrees.max()),
            tolerance=tolerance,
            failure_probability=failure_probability,
            seed=0,
            basis_bytes=1 << 28,
        )
        return Constant(
            value=curvature * top.high * largest / rows.rows + l2,
            certified=True,
            basis=f"sup ℓ″ = {curvature:g} times σ²_max(X)/n; {top.certificate}",
        )


def glm_second_moment(X: Any, *, slope: float) -> Constant:
    """M² ≤ (sup|ℓ′|)²·(1/n)Σ‖x_i‖² of a GLM, over all weights.

    Args:
        X: n × d, one row per example; a matrix or a file.
        slope: sup |ℓ′|: 1 for the logistic and the hinge loss, √2 for softmax.

    Returns:
        M².

    Raises:
        ValueError: if the slope is out of range, or X is malformed.

    Source: Section 4.2, M²(w) ≤ M².
    """
    positive(slope=slope)
    with opened(X) as rows:
        mean = float(Survey(rows).sq_norms.sum()) / rows.rows
    return Constant(value=slope**2 * mean, certified=True, basis=f"sup |ℓ′| = {slope:g} and the mean squared row norm")


def least_squares_pl(X: Any) -> Constant:
    """μ = σ²_min,>0(X)/n of the mean loss (1/n)Σ½(x_iᵀw − y_i)²: the smallest non-zero squared singular value.

    Args:
        X: n × d with min(n, d) ≤ 4096; a matrix or a file.

    Returns:
        μ.

    Raises:
        ValueError: if X is larger, malformed, or zero.

    Source: Definition 3.
    """
    with opened(X) as rows:
        if min(rows.rows, rows.columns) > 4096:
            raise ValueError(f"least_squares_pl needs min(n, d) ≤ 4096; got {rows.rows} × {rows.columns}.")
        Survey(rows)
        eigenvalues = np.linalg.eigvalsh(WeightedGram(rows, np.ones(rows.rows), "factoring").dense())
        resolved = eigenvalues[eigenvalues > max(rows.rows, rows.columns) * np.finfo(float).eps * eigenvalues[-1]]
        if not eigenvalues[-1] > 0:
            raise ValueError(f"{rows.name} holds only zeros: the loss is constant, and there is no μ.")
        return Constant(
            value=float(resolved[0]) / rows.rows,
            certified=True,
            basis="smallest non-zero singular value, up to rounding",
        )


def smoothness(model: nn.Module, losses: Losses, batches: Iterable[Any], *, steps: int = 20, seed: int = 0) -> Constant:
    """An estimate of β: the largest |eigenvalue| of ∇²F at the model's weights, by ARPACK on Hessian-vector products.

    It is a Ritz value, hence not above the true one at these weights, and it says nothing about other weights: take the
    largest over the checkpoints of a run.

    Args:
        model: at the weights to look at.
        losses: one loss for each example.
        batches: the data; F is the mean over all their examples. It is read once for each product, of which there are
            about `steps` in each round of ARPACK; one to three rounds are usual.
        steps: dimensions of the Krylov space.
        seed: of the start.

    Returns:
        The estimate.

    Raises:
        ValueError: if there are no examples, or no steps.

    Source: Definition 1, locally.
    """
    import torch  # noqa: PLC0415 - only if a model is differentiated

    whole_number(steps=steps)
    batches = list(batches)
    trained = [p for p in model.parameters() if p.requires_grad]
    dimension = sum(p.numel() for p in trained)
    products = 0

    def times(v: Float64[np.ndarray, " d"]) -> Float64[np.ndarray, " d"]:
        nonlocal products
        products += 1
        return _hessian_product(model, losses, batches, trained, torch.from_numpy(v).ravel()).numpy()

    if dimension <= steps + 1:  # ARPACK wants more dimensions than vectors
        value = float(np.abs(np.linalg.eigvalsh(np.stack([times(row) for row in np.eye(dimension)]))).max())
    else:
        start = np.random.default_rng(seed).standard_normal(dimension)
        operator = LinearOperator((dimension, dimension), matvec=times, dtype=np.float64)
        # A flat loss leaves ARPACK without a second vector.
        found = (
            [0.0]
            if not times(start).any()
            else eigsh(operator, k=1, which="LM", v0=start, ncv=steps + 1, tol=TOLERANCE, return_eigenvectors=False)
        )
        value = abs(float(found[0]))
    return Constant(value=value, certified=False, basis=f"{products} Hessian-vector products at one point")


def _hessian_product(
    model: nn.Module, losses: Losses, batches: Sequence[Any], trained: list[nn.Parameter], v: Tensor
) -> Tensor:
    """∇²F·v in float64, F the mean loss of all examples."""
    import torch  # noqa: PLC0415

    parts = [
        part.view_as(p).to(p) for part, p in zip(torch.split(v, [p.numel() for p in trained]), trained, strict=True)
    ]
    total = torch.zeros_like(v)
    count = 0
    for batch in batches:
        per_example = losses(model, batch)
        count += len(per_example)
        gradients = torch.autograd.grad(per_example.sum(), trained, create_graph=True, allow_unused=True)
        # autograd gives None for a parameter the loss does not use
        used = [(g * part).sum() for g, part in zip(gradients, parts, strict=True) if g is not None]  # type: ignore[redundant-expr]
        slope = torch.stack(used).sum()
        if not slope.requires_grad:
            continue  # a loss that is linear in the weights has no curvature
        product = torch.autograd.grad(slope, trained, allow_unused=True)
        total += torch.cat(
            [
                torch.zeros(p.numel(), dtype=torch.float64) if h is None else h.detach().double().cpu().ravel()  # type: ignore[redundant-expr]
                for h, p in zip(product, trained, strict=True)
            ]
        )
    if count == 0:
        raise ValueError("batches must hold at least one example; got none.")
    return total / count


def pl_along(sq_gradient_norms: Sequence[float], values: Sequence[float], *, minimum: float) -> Constant:
    """An estimate of μ: the smallest ½‖∇F(w_k)‖²/(F(w_k) − F*) over the points of a run.

    Args:
        sq_gradient_norms: ‖∇F(w_k)‖².
        values: F(w_k).
        minimum: F*, or the smallest value that is known.

    Returns:
        The estimate; inf if no value exceeds the minimum.

    Raises:
        ValueError: if the sequences differ in length.

    Source: Definition 3, at the points of a run.
    """
    if len(sq_gradient_norms) != len(values):
        raise ValueError(f"one value for each gradient; got {len(values)} and {len(sq_gradient_norms)}.")
    ratios = [g / (2 * (f - minimum)) for g, f in zip(sq_gradient_norms, values, strict=True) if f > minimum]
    return Constant(
        value=min(ratios, default=math.inf), certified=False, basis=f"smallest ratio over {len(ratios)} points of a run"
    )


def second_moment_along(second_moments: Sequence[float], *, margin: float = 1.0) -> Constant:
    """An estimate of M²: the largest (1/n)Σ‖∇f_i(w_k)‖² over the points of a run, times a margin.

    Args:
        second_moments: M²(w_k).
        margin: a factor of at least 1 for what lay between the points.

    Returns:
        The estimate.

    Raises:
        ValueError: if there are no points, or the margin is below 1.

    Source: Section 4.2, M²(w) ≤ M².
    """
    if len(second_moments) == 0 or not margin >= 1:
        raise ValueError(f"at least one point and a margin of at least 1; got {len(second_moments)} and {margin}.")
    return Constant(
        value=margin * max(second_moments),
        certified=False,
        basis=f"largest over {len(second_moments)} points of a run, times {margin:g}",
    )


def initial_gap(value: float, *, lower_bound: float = 0.0) -> Constant:
    """F(w₀) − F* ≤ F(w₀) − F_lb; F_lb = 0 serves every loss that is not negative.

    Args:
        value: F(w₀).
        lower_bound: F_lb ≤ F*.

    Returns:
        The gap.

    Raises:
        ValueError: if F(w₀) is below the lower bound.

    Source: Theorems 2 and 3.
    """
    if not value >= lower_bound:
        raise ValueError(f"F(w₀) must be at least the lower bound of the loss; got {value} < {lower_bound}.")
    return Constant(value=value - lower_bound, certified=True, basis=f"F(w₀) and F* ≥ {lower_bound:g}")


def sq_distance(*, strong_convexity: float, gap: float, sq_gradient_norm: float) -> Constant:
    """D₀ = ‖w₀−w*‖² ≤ min{2(F₀−F*)/λ, ‖∇F(w₀)‖²/λ²} where F is λ-strongly convex.

    Args:
        strong_convexity: λ.
        gap: F(w₀) − F*, or a bound on it.
        sq_gradient_norm: ‖∇F(w₀)‖².

    Returns:
        D₀.

    Raises:
        ValueError: if a number is out of range.

    Source: Definition 2, for Theorems 4 and 5.
    """
    positive(strong_convexity=strong_convexity)
    non_negative(gap=gap, sq_gradient_norm=sq_gradient_norm)
    return Constant(
        value=min(2 * gap / strong_convexity, sq_gradient_norm / strong_convexity**2),
        certified=True,
        basis="strong convexity: the smaller of 2(F₀−F*)/λ and ‖∇F(w₀)‖²/λ²",
    )
