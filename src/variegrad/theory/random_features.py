"""Remark 1 for random features: how large B_D is with high probability, with every constant written out.

X is n × d with independent zero-mean entries. Gaussian entries (any variance, which cancels): with probability at least
1 − n·e^{−x} − e^{−t²/2}, B_D ≥ n(d − 2√(dx))/(√n + √d + t)² (Laurent and Massart 2000; Davidson and Szarek 2001).
Sub-Gaussian entries need their variance v as well as their proxy σ²: a constant that depends on d alone, as the text
after Remark 1 has it, cannot exist (sparse ±1 entries).
"""

from __future__ import annotations

import math


def gaussian_bound(*, rows: int, columns: int, failure_probability: float) -> float:
    """A bound on B_D(w) for all w that holds with probability 1 − η over n × d Gaussian features.

    n(d − 2√(dx))/(√n + √d + t)² with x = ln(2n/η), t = √(2 ln(2/η)): half of η for the norms, half for σ_max.

    Args:
        rows: n.
        columns: d.
        failure_probability: η.

    Returns:
        The bound in examples; 0 where it says nothing (d below about 4·ln(2n/η)).

    Raises:
        ValueError: if η is not within (0, 1), or n or d is below one.

    Example:
        >>> round(gaussian_bound(rows=2000, columns=200, failure_probability=0.05), 1)
        55.4

    Source: after Remark 1, explicit for Gaussian features.
    """
    _check(rows, columns, failure_probability)
    log = math.log(2 * rows / failure_probability)
    t = math.sqrt(2 * math.log(2 / failure_probability))
    return max(0.0, rows * (columns - 2 * math.sqrt(columns * log)) / (math.sqrt(rows) + math.sqrt(columns) + t) ** 2)


def gaussian_failure_probability(*, rows: int, columns: int, bound: float) -> float:
    """The smallest η with `gaussian_bound` ≥ bound: the η of Theorems 9 and 10 for Gaussian features.

    Args:
        rows: n.
        columns: d.
        bound: what B_D(w, w′) has to reach for all pairs, in examples.

    Returns:
        η; 1 where the formula certifies nothing.

    Raises:
        ValueError: if n or d is below one.

    Source: after Theorem 10.
    """
    _check(rows, columns, 0.5)

    def reaches(log_eta: float) -> bool:
        return gaussian_bound(rows=rows, columns=columns, failure_probability=math.exp(log_eta)) >= bound

    low, high = -700.0, -1e-12
    if not reaches(high):
        return 1.0
    if reaches(low):
        return math.exp(low)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return math.exp(high)


def sub_gaussian_bound(
    *, rows: int, columns: int, variance: float, variance_proxy: float, failure_probability: float
) -> float:
    """The same for independent zero-mean σ-sub-Gaussian entries of variance v.

    n(vd − √(32·d·σ⁴·ln(2n/η)))/(8σ²((n+d)·ln 9 + ln(2/η))). Norms: a sum of non-negative variables falls s below its
    mean with probability at most exp(−s²/(2dEx⁴)), Ex⁴ ≤ 16σ⁴; σ_max: a ¼-net of both spheres.

    Args:
        rows: n.
        columns: d.
        variance: v of one entry.
        variance_proxy: σ² with E exp(sx) ≤ exp(s²σ²/2); at least v.
        failure_probability: η.

    Returns:
        The bound in examples; 0 where it says nothing. Its constant is small: `glm_bound` measures what it guarantees.

    Raises:
        ValueError: if a number is out of range, or the proxy is below the variance.

    Source: after Remark 1, with its constants, which depend on v/σ².
    """
    _check(rows, columns, failure_probability)
    if not 0 < variance <= variance_proxy:
        raise ValueError(
            f"variance_proxy must be at least the variance, and both positive; got variance={variance}, "
            f"variance_proxy={variance_proxy}."
        )
    norms = variance * columns - variance_proxy * math.sqrt(32 * columns * math.log(2 * rows / failure_probability))
    top = 8 * variance_proxy * ((rows + columns) * math.log(9) + math.log(2 / failure_probability))
    return max(0.0, rows * norms / top)


def gaussian_limit(*, rows: int, columns: int) -> float:
    """What n/σ²_max of normalised Gaussian rows tends to as both sides grow: d/(1 + √(d/n))².

    Args:
        rows: n.
        columns: d.

    Returns:
        The limit in examples.

    Raises:
        ValueError: if n or d is below one.

    Source: Remark 1, row-normalised; Marchenko and Pastur.
    """
    _check(rows, columns, 0.5)
    return columns / (1 + math.sqrt(columns / rows)) ** 2


def _check(rows: int, columns: int, failure_probability: float) -> None:
    if rows < 1 or columns < 1:
        raise ValueError(f"rows and columns must be at least 1; got {rows} × {columns}.")
    if not 0 < failure_probability < 1:
        raise ValueError(f"failure_probability must lie between 0 and 1; got {failure_probability}.")
