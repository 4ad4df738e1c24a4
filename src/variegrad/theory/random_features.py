"""Remark 1 for random features: how large B_D is with high probability, with every constant written out.

X is n × d with independent zero-mean entries. Gaussian entries (any variance, which cancels): with probability at least
1 − n·e^{−x} − e^{−t²/2}, B_D ≥ n(d − 2√(dx))/(√n + √d + t)² (Laurent and Massart 2000; Davidson and Szarek 2001).
Sub-Gaussian entries need their variance v as well as their proxy σ²: a constant that depends on d alone, as the text
after Remark 1 has it, cannot exist (sparse ±1 entries).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy.optimize import brentq

from variegrad.theory.arguments import formerly

LEAST_LOG = -700.0  # smaller probabilities are not distinguished: exp(−745) is zero in float64


@formerly(rows="examples", columns="dimension")
def gaussian_bound(*, examples: int, dimension: int, failure_probability: float) -> float:
    """A bound on B_D(w) for all w that holds with probability 1 − η over n × d Gaussian features.

    n(d − 2√(dx))/(√n + √d + t)² with x = ln(2n/η), t = √(2 ln(2/η)): half of η for the norms, half for σ_max.

    Args:
        examples: n.
        dimension: d.
        failure_probability: η.

    Returns:
        The bound in examples; 0 if it says nothing (d below about 4·ln(2n/η)).

    Raises:
        ValueError: if η is not within (0, 1), or n or d is below one.

    Example:
        >>> round(gaussian_bound(examples=2000, dimension=200, failure_probability=0.05), 1)
        55.4

    Source: after Remark 1, explicit for Gaussian features.
    """
    _check(examples, dimension, failure_probability)
    log = math.log(2 * examples / failure_probability)
    t = math.sqrt(2 * math.log(2 / failure_probability))
    norms = dimension - 2 * math.sqrt(dimension * log)
    return max(0.0, examples * norms / (math.sqrt(examples) + math.sqrt(dimension) + t) ** 2)


@formerly(rows="examples", columns="dimension")
def gaussian_failure_probability(*, examples: int, dimension: int, bound: float) -> float:
    """The smallest η with `gaussian_bound` ≥ bound: the η of Theorems 9 and 10 for Gaussian features.

    Args:
        examples: n.
        dimension: d.
        bound: what B_D(w, w′) has to reach for all pairs, in examples.

    Returns:
        η; 1 if the formula certifies nothing.

    Raises:
        ValueError: if n or d is below one.

    Source: after Theorem 10.
    """
    _check(examples, dimension, 0.5)

    return _smallest(lambda eta: gaussian_bound(examples=examples, dimension=dimension, failure_probability=eta), bound)


@formerly(rows="examples", columns="dimension")
def sub_gaussian_bound(
    *, examples: int, dimension: int, variance: float, variance_proxy: float, failure_probability: float
) -> float:
    """The same for independent zero-mean σ-sub-Gaussian entries of variance v.

    n(vd − √(32·d·σ⁴·ln(2n/η)))/(8σ²((n+d)·ln 9 + ln(2/η))). Norms: a sum of non-negative variables falls s below its
    mean with probability at most exp(−s²/(2dEx⁴)), Ex⁴ ≤ 16σ⁴; σ_max: a ¼-net of both spheres.

    Args:
        examples: n.
        dimension: d.
        variance: v of one entry.
        variance_proxy: σ² with E exp(sx) ≤ exp(s²σ²/2); at least v.
        failure_probability: η.

    Returns:
        The bound in examples; 0 if it says nothing. Its constant is small: `glm_bound` measures what it guarantees.

    Raises:
        ValueError: if a number is out of range, or the proxy is below the variance.

    Source: after Remark 1, with its constants, which depend on v/σ².
    """
    _check(examples, dimension, failure_probability)
    if not 0 < variance <= variance_proxy:
        raise ValueError(
            f"variance_proxy must be at least the variance, and both positive; got variance={variance}, "
            f"variance_proxy={variance_proxy}."
        )
    norms = variance * dimension - variance_proxy * math.sqrt(
        32 * dimension * math.log(2 * examples / failure_probability)
    )
    top = 8 * variance_proxy * ((examples + dimension) * math.log(9) + math.log(2 / failure_probability))
    return max(0.0, examples * norms / top)


def sub_gaussian_failure_probability(
    *, examples: int, dimension: int, variance: float, variance_proxy: float, bound: float
) -> float:
    """The smallest η with `sub_gaussian_bound` ≥ bound: the η of Theorems 9 and 10 for sub-Gaussian features.

    Its constants are large: with n = 10,000 and v = σ² the bound is 0 below d = 413 at η = 0.05.

    Args:
        examples: n.
        dimension: d.
        variance: v of one entry.
        variance_proxy: σ².
        bound: what B_D(w, w′) has to reach for all pairs, in examples.

    Returns:
        η; 1 if the formula certifies nothing.

    Raises:
        ValueError: if a number is out of range.

    Source: after Theorem 10, with the constants of `sub_gaussian_bound`.
    """

    def certified(eta: float) -> float:
        return sub_gaussian_bound(
            examples=examples, dimension=dimension, variance=variance, variance_proxy=variance_proxy,
            failure_probability=eta,
        )  # fmt: skip

    return _smallest(certified, bound)


def _smallest(certified: Callable[[float], float], bound: float) -> float:
    """The smallest η whose certified bound, which grows with η, reaches `bound`; 1 if none below 1 does."""

    def excess(log_eta: float) -> float:
        return certified(math.exp(log_eta)) - bound

    largest = -1e-12
    if excess(largest) < 0:
        return 1.0
    if excess(LEAST_LOG) >= 0:
        return math.exp(LEAST_LOG)
    return math.exp(brentq(excess, LEAST_LOG, largest, xtol=1e-12))


@formerly(rows="examples", columns="dimension")
def gaussian_limit(*, examples: int, dimension: int) -> float:
    """What n/σ²_max of normalised Gaussian rows tends to as both sides grow: d/(1 + √(d/n))².

    Args:
        examples: n.
        dimension: d.

    Returns:
        The limit in examples.

    Raises:
        ValueError: if n or d is below one.

    Source: Remark 1, row-normalised; Marchenko and Pastur.
    """
    _check(examples, dimension, 0.5)
    return dimension / (1 + math.sqrt(dimension / examples)) ** 2


def _check(examples: int, dimension: int, failure_probability: float) -> None:
    if examples < 1 or dimension < 1:
        raise ValueError(f"examples and dimension must be at least 1; got {examples} × {dimension}.")
    if not 0 < failure_probability < 1:
        raise ValueError(f"failure_probability must lie between 0 and 1; got {failure_probability}.")
