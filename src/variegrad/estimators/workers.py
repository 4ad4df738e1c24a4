"""B_D from the gradients of P workers or micro-batches, each the mean over b_j examples.

ρ_w = Û_w/S_small of the worker means, with Û_w = mean_{j≠k}⟨ḡ_j, ḡ_k⟩ and S_small = mean‖ḡ_j‖², and
B = 1 + b(1/ρ_w − 1) with b the harmonic mean of the b_j (then trΣ = (Σ‖ḡ_j‖² − PÛ_w)/Σ(1/b_j)). B is monotone in ρ_w,
so an interval of the one is an interval of the other. Per-example norms, if available, are more informative.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from variegrad.estimators.batch_size_estimate import MINIMUM_WORKERS, BatchSizeEstimate, estimate_from_coherence
from variegrad.estimators.coherence import coherence_from_gram
from variegrad.estimators.step_moments import _checked_sizes
from variegrad.shapes import Float


def estimate_from_workers(
    gram: Float[Tensor, "P P"],
    sizes: Sequence[int] | int,
    *,
    population: int | None = None,
    confidence: float = 0.95,
) -> BatchSizeEstimate:
    """B̂_D of one step from the Gram matrix of the worker *means*, with a jackknife over workers.

    Args:
        gram: ⟨ḡ_j, ḡ_k⟩ of the mean gradients.
        sizes: b_j, examples behind each mean; a single number if all are equal.
        population: n if all examples of the step are distinct members of a data set of n; None for fresh data.
        confidence: nominal level of the two-sided interval.

    Returns:
        The estimate in examples, with `count` = P; no interval ("cannot tell") below 4 workers.

    Raises:
        ValueError: for a single worker (not identifiable), sizes that do not fit, a population smaller than the step,
            or a gradient that is not finite.
    """
    gram = gram.double()
    examples = _checked_sizes([sizes] * len(gram) if isinstance(sizes, int) else sizes, len(gram))
    if population is not None and sum(examples) > population:
        raise ValueError(
            f"population must be at least the {sum(examples)} examples of the step; got {population}. "
            "Pass len(dataset), or None for fresh or augmented data."
        )
    if not gram.isfinite().all():
        bad = (~gram.diagonal().isfinite()).nonzero().flatten().tolist()
        raise ValueError(f"gradients must be finite; those of workers {bad} are not. Skip this step.")
    noise = 1 / torch.tensor(examples, dtype=torch.float64, device=gram.device)
    return estimate_from_coherence(
        coherence_from_gram(gram, noise=noise if len(set(examples)) > 1 else None),
        population=population,
        confidence=confidence,
        sampled_fraction=sum(examples) / population if population else 0.0,
        minimum=MINIMUM_WORKERS,
        examples_per_row=float(1 / noise.mean()),
    )
