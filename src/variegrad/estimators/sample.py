"""B_D from m gradients of single examples: fresh data, or a sample without replacement of a population of n."""

from __future__ import annotations

import torch
from torch import Tensor

from variegrad.estimators.batch_size_estimate import BatchSizeEstimate, estimate_from_coherence
from variegrad.estimators.coherence import coherence_from_gram, coherence_from_norms
from variegrad.shapes import Float


def estimate_from_gram(
    gram: Float[Tensor, "m m"], *, population: int | None = None, confidence: float = 0.95
) -> BatchSizeEstimate:
    """B̂_D from the Gram matrix K_ij = ⟨g_i, g_j⟩ of m gradients: its coverage is in docs/understand/intervals.md.

    Args:
        gram: K, m×m.
        population: n if the m examples are distinct members of a data set of n; None for fresh data, and for
            sampling with replacement.
        confidence: nominal level of the two-sided interval. For K estimates that must all hold at once, ask for
            1 − (1−confidence)/K.

    Returns:
        The estimate; no interval ("cannot tell") below 8 examples.

    Raises:
        ValueError: for fewer than two gradients, more gradients than the population has, or a value that is not finite.
    """
    _check(gram, population)
    return estimate_from_coherence(
        coherence_from_gram(gram),
        population=population,
        confidence=confidence,
        sampled_fraction=len(gram) / population if population else 0.0,
    )


def estimate_from_norms(
    sq_norms: Float[Tensor, " m"],
    products_with_sum: Float[Tensor, " m"],
    *,
    population: int | None = None,
    confidence: float = 0.95,
) -> BatchSizeEstimate:
    """B̂_D from a_i = ‖g_i‖² and c_i = ⟨g_i, Σg⟩ alone, if there is no Gram matrix.

    The interval is the jackknife's without the second-order variance: too narrow if gradients vary in only a few
    dimensions and m is near B_D (docs/understand/intervals.md). c_i costs one forward-mode derivative of the losses
    along Σg.

    Args:
        sq_norms: a_i.
        products_with_sum: c_i.
        population: see `estimate_from_gram`.
        confidence: see `estimate_from_gram`.

    Returns:
        The estimate.

    Raises:
        ValueError: as `estimate_from_gram`.
    """
    _check(torch.stack([sq_norms, products_with_sum], dim=-1), population)
    return estimate_from_coherence(
        coherence_from_norms(sq_norms, products_with_sum),
        population=population,
        confidence=confidence,
        sampled_fraction=len(sq_norms) / population if population else 0.0,
    )


def _check(rows: Float[Tensor, "m k"], population: int | None) -> None:
    if population is not None and not len(rows) <= population:
        raise ValueError(
            f"population must be at least the number of examples it was sampled from; got population={population} for "
            f"{len(rows)} examples. Pass len(dataset), or None for fresh or augmented data."
        )
    if len(rows) < 2:
        raise ValueError(
            f"an estimate needs at least 2 examples (8 for an interval); got {len(rows)}. Pass a larger batch."
        )
    if not rows.isfinite().all():
        first = int((~rows.isfinite()).any(-1).nonzero()[0])
        raise ValueError(
            f"gradients must be finite; that of example {first} is not. "
            "Look for NaN inputs or an overflow under autocast, and skip this batch."
        )
