"""Certified intervals for σ²_max of a data matrix with scaled rows: the upper end makes a printed bound valid.

Three certificates, each for A = XᵀWX with W diagonal and non-negative:

- the Gram matrix of a small side, deterministic;
- Collatz-Wielandt, for X ≥ 0, deterministic: λ_max(A) ≤ max_c (Av)_c/v_c for every v > 0;
- Lanczos from a random start, for signed X: λ_max(A) ≤ θ_k/(1−ε) with probability at least 1−η,
  √ε = ln(1.648·√N/η)/(2k−1) (Kuczyński and Woźniakowski 1992).

Any vector gives the lower end, by its Rayleigh quotient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh_tridiagonal
from scipy.sparse import issparse

from variegrad.shapes import Float64
from variegrad.theory.rows import Array, Block, Rows, transposed

EXACT_SIDE = 256  # up to this many rows or columns the Gram matrix costs no more than the iterations
GRAM_SIDE = 1024  # for signed data Lanczos needs well over a hundred passes, so a larger Gram matrix pays
UNIT = 2.0**-53
Operator = Callable[[Array], Array]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """low ≤ λ_max ≤ high, and what it is based on.

    Attributes:
        low: lower end, deterministic up to rounding.
        high: upper end; rounding is added to it.
        certificate: what the upper end is based on, in words.
        failure_probability: of the upper end; 0 if it is deterministic.
        iterations: passes over the data (products with A).
    """

    low: float
    high: float
    certificate: str
    failure_probability: float = 0.0
    iterations: int = 0


class WeightedGram:
    """A = XᵀWX as a product, in one pass over the rows: the scaling is folded in, X is neither copied nor changed."""

    def __init__(self, rows: Rows, weights: Float64[np.ndarray, " n"], stage: str) -> None:
        """Remember the factors.

        Args:
            rows: X.
            weights: the diagonal of W; 1/‖x_i‖² normalises the rows.
            stage: what the passes are for, in words.
        """
        self.rows, self.weights, self.stage = rows, weights, stage

    def __call__(self, v: Array) -> Array:
        """A·v."""
        product = np.zeros(self.rows.columns)
        for first, block in self.rows.blocks(self.stage):
            scaled = self.weights[first : first + block.shape[0]] * (block @ v)
            product += transposed(block) @ scaled
        return product

    def dense(self) -> Array:
        """A itself if there are few columns, or else W^½XXᵀW^½, which has the same largest eigenvalue."""
        n, d = self.rows.rows, self.rows.columns
        if d <= n:
            total = np.zeros((d, d))
            for first, block in self.rows.blocks(self.stage):
                total += _outer(block.T, block, self.weights[first : first + block.shape[0]])
            return total
        total = np.zeros((n, n))
        root = np.sqrt(self.weights)
        for i, left in self.rows.blocks(self.stage):
            for j, right in self.rows.blocks(self.stage):
                total[i : i + left.shape[0], j : j + right.shape[0]] = _outer(left, right.T, np.ones(right.shape[1]))
        total *= root[:, None] * root
        return total


def _outer(left: Block, right: Block, weights: Array) -> Array:
    """left·diag(weights)·right as a dense array."""
    if issparse(right):
        product: Array = (left @ right.multiply(weights[:, None]).tocsr()).toarray()
    else:
        product = left @ (weights[:, None] * right)
    return product


def gram(matrix: WeightedGram) -> Interval:
    """λ_max from the Gram matrix of the smaller side, with a bound on the rounding of its entries.

    Args:
        matrix: A = XᵀWX, of a small side N = min(n, d).

    Returns:
        An interval of relative width about N·(n+d)·2⁻⁵³.
    """
    dense = matrix.dense()
    top = float(np.linalg.eigvalsh(dense)[-1])
    # |fl(A) − A| ≤ m·u·(|X|ᵀ|X|) entrywise with m summands, whose norm the trace bounds; eigvalsh adds N·u·‖A‖.
    slack = 4 * ((matrix.rows.rows + matrix.rows.columns) + 16) * UNIT * float(np.trace(dense))
    certificate = "deterministic: all eigenvalues of the Gram matrix of the smaller side, rounding included"
    return Interval(low=max(top - slack, 0.0), high=top + slack, certificate=certificate, iterations=1)


def collatz_wielandt(matrix: WeightedGram, *, summands: int, tolerance: float, iterations: int) -> Interval:
    """λ_max(A) ∈ [vᵀAv/vᵀv, max_c (Av)_c/v_c] for X ≥ 0, by power iteration with v > 0.

    Args:
        matrix: A = XᵀWX with X ≥ 0.
        summands: the most terms that are summed for one entry of A·v, for the bound on rounding.
        tolerance: stop as soon as high ≤ (1 + tolerance)·low.
        iterations: stop after this many products in any case; every prefix is valid.

    Returns:
        The interval.

    Source: the Collatz-Wielandt formula, sup over v of the minimum and inf over v of the maximum of (Av)_c/v_c.
    """
    v = np.ones(matrix.rows.columns)
    low, high = 0.0, math.inf
    done = 0
    while done < iterations and high > (1 + tolerance) * low:
        image = matrix(v)
        done += 1
        low = max(low, float(v @ image) / float(v @ v))
        high = min(high, float((image / v).max()))
        # Any positive vector is allowed: the floor keeps components that decay apart from zero.
        v = np.maximum(image / image.max(), 1e-150)
    # Non-negative terms: each entry of A·v has a relative error of at most the number of its summands, times 2⁻⁵³.
    slack = (summands + 16) * UNIT
    return Interval(
        low=low * (1 - slack),
        high=high * (1 + slack),
        certificate="deterministic: Collatz-Wielandt for non-negative data, rounding included",
        iterations=done,
    )


def lanczos_steps(side: int, tolerance: float, failure_probability: float) -> int:
    """The steps k after which λ_max ≤ (1 + tolerance)·θ_k except with the given probability.

    Args:
        side: N, the size of the operator.
        tolerance: relative width of the interval.
        failure_probability: η.

    Returns:
        k = ⌈(ln(1.648·√N/η)/√ε + 1)/2⌉ with 1/(1−ε) = 1 + tolerance.
    """
    root = math.sqrt(tolerance / (1 + tolerance))
    return math.ceil((math.log(1.648 * math.sqrt(side) / failure_probability) / root + 1) / 2)


def lanczos(
    product: Operator, *, side: int, tolerance: float, failure_probability: float, seed: int, basis_bytes: int
) -> Interval:
    """λ_max of a positive semi-definite operator with λ_max ≤ θ_k/(1−ε), by Lanczos with full reorthogonalisation.

    Args:
        product: v ↦ A·v.
        side: N.
        tolerance: decides the number of steps (`lanczos_steps`).
        failure_probability: η, over the random start.
        seed: of the start.
        basis_bytes: how much memory the basis may take; fewer steps give a wider interval, not a wrong one.

    Returns:
        The interval; the Ritz value θ_k is its lower end.

    Source: Kuczyński and Woźniakowski 1992.
    """
    steps = min(lanczos_steps(side, tolerance, failure_probability), max(8, basis_bytes // (8 * side)), side)
    start = np.random.default_rng(seed).standard_normal(side)
    basis = np.empty((steps, side))
    diagonal, coupling = np.empty(steps), np.empty(steps)
    v = start / np.linalg.norm(start)
    done = 0
    while done < steps:
        basis[done] = v
        image = product(v)
        diagonal[done] = v @ image
        for _ in range(2):  # twice is enough for orthogonality to working precision
            image -= basis[: done + 1].T @ (basis[: done + 1] @ image)
        coupling[done] = np.linalg.norm(image)
        done += 1
        if coupling[done - 1] <= 1e-13 * np.abs(diagonal[:done]).max():
            break  # the start's Krylov space is exhausted: the top Ritz value is the largest eigenvalue
        v = image / coupling[done - 1]
    theta = float(eigh_tridiagonal(diagonal[:done], coupling[: done - 1], eigvals_only=True)[-1])
    exhausted = done == side or coupling[done - 1] <= 1e-13 * theta
    root = 0.0 if exhausted else math.log(1.648 * math.sqrt(side) / failure_probability) / (2 * done - 1)
    high = theta / (1 - root**2) if root < 1 else math.inf
    return Interval(
        low=theta * (1 - 1e-10),
        high=high * (1 + 1e-10),
        certificate=f"Lanczos from a random start, {done} steps: holds except with probability {failure_probability:g}",
        failure_probability=failure_probability,
        iterations=done,
    )


def largest_eigenvalue(
    matrix: WeightedGram,
    *,
    non_negative: bool,
    summands: int,
    tolerance: float,
    failure_probability: float,
    seed: int,
    basis_bytes: int,
) -> Interval:
    """λ_max(XᵀWX), by the cheapest certificate that applies.

    Args:
        matrix: A = XᵀWX.
        non_negative: whether X ≥ 0.
        summands: the most terms that are summed for one entry of A·v.
        tolerance: the relative width to reach.
        failure_probability: allowed if only a random start gives a certificate.
        seed: of that start.
        basis_bytes: memory for the basis of Lanczos.

    Returns:
        The interval.
    """
    n, d = matrix.rows.rows, matrix.rows.columns
    side = min(n, d)
    if side <= EXACT_SIDE:
        return gram(matrix)
    interval: Interval | None = None
    if non_negative:
        interval = collatz_wielandt(matrix, summands=summands, tolerance=tolerance, iterations=40)
        if interval.high <= (1 + tolerance) * interval.low:
            return interval
    if side <= GRAM_SIDE:
        return gram(matrix)
    # Almost equal leading eigenvalues: Collatz-Wielandt crawls, and a random start does not care.
    other = lanczos(
        matrix,
        side=d,
        tolerance=tolerance,
        failure_probability=failure_probability,
        seed=seed,
        basis_bytes=basis_bytes,
    )
    if interval is not None and interval.high <= other.high:
        return interval
    return other
