"""The balanced sign probe: Σ‖∇f_i‖² from a few more backward passes, on any model, and B_D from groups of losses.

Draw ε ∈ {±1}^b with exactly b/2 of each sign and take S = ‖Σ_i ε_i ∇f_i‖². Since E ε_iε_j = −1/(b−1) for i ≠ j,
E S = (b·Σ‖∇f_i‖² − ‖Σ∇f_i‖²)/(b−1), so ((b−1)·S + ‖Σ∇f_i‖²)/b is unbiased for Σ‖∇f_i‖². Balance takes the mean
gradient out of S, which is what makes one probe useful when independent signs are not. For odd b one random example
is left out of a probe, and is accounted for.

Probes of one batch estimate Σ‖∇f_i‖² of *this batch*. How B_D varies with the drawn examples is estimated from random
groups of the losses: their K mean gradients, one backward pass each, are treated like those of K workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from variegrad.batches import Batch
from variegrad.estimators.batch_size_estimate import MINIMUM_WORKERS, BatchSizeEstimate
from variegrad.estimators.example_gram import sketch
from variegrad.estimators.workers import estimate_from_workers
from variegrad.keys import balanced_signs, generator
from variegrad.per_example.evaluate import Losses, evaluate, trained_parameters, unwrap
from variegrad.per_example.passes import gradients
from variegrad.per_example.rules.contribution import sq_norms
from variegrad.per_example.rules.gram import real_rows, with_exact_sums
from variegrad.per_example.state import left_as_found


@dataclass(frozen=True, kw_only=True)
class SignProbe:
    """An estimate of Σ‖∇f_i‖² over the b examples of a batch; ‖Σ∇f_i‖² is exact.

    Attributes:
        count: b.
        probes: how many sign vectors were drawn.
        sum_sq_norms: the estimate of Σ‖∇f_i‖², the mean over probes.
        low: lower end of its interval.
        high: upper end.
        confidence: the nominal level of the interval, over the draws of the signs.
        sq_norm_of_sum: ‖Σ∇f_i‖².
        values: the estimate of each probe.
        bound: B_D with its interval over groups of losses; None if there are fewer than 8 examples.
    """

    count: int
    probes: int
    sum_sq_norms: float
    low: float
    high: float
    confidence: float
    sq_norm_of_sum: float
    values: tuple[float, ...]
    bound: BatchSizeEstimate | None = None

    def in_words(self) -> str:
        """B_D in one sentence, if the batch is large enough."""
        if self.bound is None:
            return f"no B_D: {self.count} examples are too few for groups of them. Pass at least 8."
        return f"{self.bound.in_words()} (from {self.bound.count} groups of losses within one batch)"

    def __str__(self) -> str:
        return (
            f"SignProbe(b={self.count}): Σ‖g‖² = {self.sum_sq_norms:.4g} [{self.low:.4g}, {self.high:.4g}] "
            f"({self.confidence:.0%}, over {self.probes} probes). {self.in_words()}"
        )


def sign_probe(
    model: nn.Module,
    losses: Losses,
    batch: Batch,
    *,
    probes: int = 8,
    groups: int = 8,
    population: int | None = None,
    seed: int = 0,
    step: int = 0,
    confidence: float = 0.95,
) -> SignProbe:
    """Estimate Σ‖∇f_i‖² by balanced random signs and B_D by random groups of losses; works with BatchNorm.

    With batch statistics (BatchNorm in training mode) ∇f_i is the gradient of loss i within this batch, through the
    statistics of all its examples: B_D is then that of batches of this size. The losses of such a batch are not
    independent, although the interval treats them as if they were. With few examples or few probes, the estimate of
    Σ‖∇f_i‖² takes few values, and its interval covers less than its nominal level. Cost: probes + groups backward
    passes over one graph. Memory: two gradients, and 32 kB per group.

    Args:
        model: the model, in the mode in which to measure it.
        losses: `losses(model, batch) → (b,)`, b ≥ 2.
        batch: any nesting of tensors whose first dimension is the example.
        probes: backward passes for Σ‖∇f_i‖², ≥ 2 for an interval.
        groups: K, backward passes for B_D, ≥ 4, but at most half the number of examples. 0 for no B_D.
        population: size of the data set that the batch was drawn from; None for fresh or augmented data.
        seed: of the signs.
        step: a second key for the signs, such as the training step.
        confidence: nominal level of both intervals.

    Returns:
        The estimate with a Student interval over the probes, and `bound`, with a jackknife interval over the groups.

    Raises:
        ValueError: if b < 2, `probes` < 2, `groups` is 1 to 3, `confidence` is not in (0, 1), or `losses` is refused.
    """
    if probes < 2:
        raise ValueError(f"probes must be at least 2, or there is no interval; got {probes}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1); got {confidence}.")
    if groups and groups < MINIMUM_WORKERS:
        raise ValueError(f"groups must be 0 (no B_D) or at least {MINIMUM_WORKERS}, for an interval; got {groups}.")
    model = unwrap(model)
    parameters = trained_parameters(model)
    with left_as_found(model):
        per_example = evaluate(model, losses, batch)
        count = len(per_example)
        if count < 2:
            raise ValueError(f"the sign probe needs a batch of at least 2 examples; got {count}.")
        whole = _gradient(per_example, torch.ones_like(per_example), parameters)
        bound = None
        if groups and count >= 2 * MINIMUM_WORKERS:
            random = generator(seed, "groups", step).permutation(count)
            bound = _bound(per_example, parameters, random, min(groups, count // 2), population, confidence)
        values = []
        for k in range(probes):
            signs = balanced_signs(count, seed, step, k).to(per_example)
            probed = _gradient(per_example, signs, parameters)
            if count % 2 == 0:
                values.append(((count - 1) * _sq_norm(probed) + _sq_norm(whole)) / count)
                continue
            # b odd: over the m = b−1 examples with a sign, ((m−1)S + ‖Σ_m‖²)/m estimates their sum; scale it up to b.
            taking_part = signs.abs()
            part = _gradient(per_example, taking_part, parameters)
            m = count - 1
            values.append(((m - 1) * _sq_norm(probed) + _sq_norm(part)) / m * count / m)
    sample = torch.tensor(values, dtype=torch.float64)
    mean = float(sample.mean())
    from scipy.stats import t as student  # noqa: PLC0415 - only if an interval is made

    half = float(student.ppf(0.5 + confidence / 2, probes - 1)) * float(sample.std()) / probes**0.5
    return SignProbe(
        count=count, probes=probes, sum_sq_norms=mean, low=max(0.0, mean - half), high=mean + half,
        confidence=confidence, sq_norm_of_sum=_sq_norm(whole), values=tuple(values), bound=bound,
    )  # fmt: skip


def _bound(
    per_example: Tensor,
    parameters: Mapping[str, nn.Parameter],
    order: np.ndarray,
    groups: int,
    population: int | None,
    confidence: float,
) -> BatchSizeEstimate:
    """B_D from K random groups: their norms and products with the whole exactly, other products by a sketch."""
    device = per_example.device
    members = [torch.as_tensor(part, device=device) for part in np.array_split(order, groups)]
    means = torch.zeros(groups, len(per_example), dtype=per_example.dtype, device=device)
    for k, mine in enumerate(members):
        means[k, mine] = 1 / len(mine)
    whole = _rows(_gradient(per_example, means.sum(0), parameters))
    norms, along, sketches = [], [], []
    for weights in means:
        rows = _rows(_gradient(per_example, weights, parameters))
        norms.append(_total(row.double().square().sum() for row in rows))
        along.append(_total((row.double() * every.double()).sum() for row, every in zip(rows, whole, strict=True)))
        sketches.append(_total(sketch(row, str(k))[0].double() for k, row in enumerate(rows)))
    stacked = torch.stack(sketches)
    gram = with_exact_sums(stacked @ stacked.T, torch.stack(norms), torch.stack(along))
    sizes = [len(mine) for mine in members]
    return estimate_from_workers(gram, sizes, population=population, confidence=confidence)


def _rows(gradients: list[Tensor]) -> list[Tensor]:
    return [real_rows((g.to_dense() if g.is_sparse else g).unsqueeze(0)) for g in gradients]


def _total(parts: Iterable[Tensor]) -> Tensor:
    first, *others = parts
    return sum((part.to(first.device) for part in others), start=first)


def _gradient(per_example: Tensor, weights: Tensor, parameters: Mapping[str, nn.Parameter]) -> list[Tensor]:
    return [g for g in gradients(per_example, weights, parameters.values(), hooks=True) if g is not None]


def _sq_norm(gradient: list[Tensor]) -> float:
    parts = [sq_norms((g.to_dense() if g.is_sparse else g).unsqueeze(0))[0] for g in gradient]
    return float(torch.stack([part.to(parts[0].device) for part in parts]).sum()) if parts else 0.0
