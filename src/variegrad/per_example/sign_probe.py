"""The balanced sign probe: Σ‖∇f_i‖² from one more backward pass, on any architecture, with an interval.

Draw ε ∈ {±1}^b with exactly b/2 of each sign and take S = ‖Σ_i ε_i ∇f_i‖². Since E ε_iε_j = −1/(b−1) for i ≠ j,
E S = (b·Σ‖∇f_i‖² − ‖Σ∇f_i‖²)/(b−1), so ((b−1)·S + ‖Σ∇f_i‖²)/b is unbiased for Σ‖∇f_i‖². Balance takes the mean
gradient out of S, which is what makes one probe useful where independent signs are not. For odd b one random example
sits out a probe, and is accounted for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.stats import t as student
from torch import Tensor, nn

from variegrad.batches import Batch
from variegrad.keys import generator
from variegrad.per_example.evaluate import Losses, evaluate, trained_parameters, unwrap
from variegrad.per_example.rules.contribution import sq_norms


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
    """

    count: int
    probes: int
    sum_sq_norms: float
    low: float
    high: float
    confidence: float
    sq_norm_of_sum: float
    values: tuple[float, ...]


def sign_probe(
    model: nn.Module,
    losses: Losses,
    batch: Batch,
    *,
    probes: int = 8,
    seed: int = 0,
    step: int = 0,
    confidence: float = 0.95,
) -> SignProbe:
    """Estimate Σ‖∇f_i‖² of a batch by balanced random signs; works where examples have no gradient of their own too.

    With few examples or few probes the estimate takes few values, and the interval covers less than its nominal level.
    With batch statistics (BatchNorm in training mode) the ∇f_i are those of the coupled losses within this batch.

    Args:
        model: the model, in the mode it is to be measured in.
        losses: `losses(model, batch) → (b,)`, b ≥ 2.
        batch: any nesting of tensors whose first dimension is the example.
        probes: how many backward passes to spend, ≥ 2 for an interval.
        seed: of the signs.
        step: a further key of the signs, such as the step of training.
        confidence: nominal level of the interval.

    Returns:
        The estimate with a Student interval over the probes.

    Raises:
        ValueError: if b < 2, `probes` < 2 or `confidence` is not in (0, 1), or `losses` is refused.
    """
    if probes < 2:
        raise ValueError(f"probes must be at least 2, or there is no interval; got {probes}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1); got {confidence}.")
    model = unwrap(model)
    parameters = trained_parameters(model)
    per_example = evaluate(model, losses, batch)
    count = len(per_example)
    if count < 2:
        raise ValueError(f"the sign probe needs a batch of at least 2 examples; got {count}.")
    whole = _gradient(per_example, torch.ones_like(per_example), parameters)
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
    half = float(student.ppf(0.5 + confidence / 2, probes - 1)) * float(sample.std()) / probes**0.5
    return SignProbe(
        count=count, probes=probes, sum_sq_norms=mean, low=max(0.0, mean - half), high=mean + half,
        confidence=confidence, sq_norm_of_sum=_sq_norm(whole), values=tuple(values),
    )  # fmt: skip


def balanced_signs(count: int, seed: int, *key: int) -> Float[Tensor, " b"]:
    """⌊b/2⌋ signs +1, as many −1 and, for odd b, one 0, in random order; a function of its key.

    Args:
        count: b.
        seed: of the draw.
        *key: what the draw is for.

    Returns:
        The signs.
    """
    half = count // 2
    signs = torch.zeros(count, dtype=torch.float64)
    order = torch.from_numpy(generator(seed, "signs", *key).permutation(count))
    signs[order[:half]], signs[order[half : 2 * half]] = 1.0, -1.0
    return signs


def _gradient(per_example: Tensor, weights: Tensor, parameters: Mapping[str, nn.Parameter]) -> list[Tensor]:
    found = torch.autograd.grad(
        [per_example], list(parameters.values()), [weights], retain_graph=True, allow_unused=True
    )
    # torch gives None, whatever its annotation says, where the losses do not depend on a parameter.
    maybe: tuple[Tensor | None, ...] = found
    return [g for g in maybe if g is not None]


def _sq_norm(gradient: list[Tensor]) -> float:
    parts = [sq_norms((g.to_dense() if g.is_sparse else g).unsqueeze(0))[0] for g in gradient]
    return float(torch.stack([part.to(parts[0].device) for part in parts]).sum()) if parts else 0.0
