"""What a mechanism does to one update, in numbers with their units: on the sum, on the mean gradient, on the weights.

Noise is given as the root mean square over coordinates of the standard deviation that the mechanism adds. One draw for
each of B examples adds B·Σtr Var m(g_i)/n on the sum. One draw per worker has a different distribution: it acts on the
sum s of b = B/P examples, and E‖s‖² = b·M² + b(b−1)·‖∇F‖² multiplies the mean part as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

from variegrad.moments import Diversity, Law


class Described(Law, Protocol):
    """What of a mechanism a description speaks of."""

    needs_l1_norms: ClassVar[bool]

    @property
    def adds_noise(self) -> bool:
        """Whether m(g) − g does not depend on g."""
        ...

    def variance_in_words(self, diversity: Diversity | None) -> list[str]:
        """What is to be said of this mechanism alone."""
        ...


@dataclass(frozen=True, kw_only=True)
class Description:
    """A mechanism in numbers; None if what they depend on was not given.

    Attributes:
        mechanism: as written.
        granularity: "example" or "worker".
        batch_size: B.
        workers: P.
        mean_scale: c in E m(g) = c·g.
        relative_variance: t = Σtr Var m(g_i)/(c²Σ‖g_i‖²).
        noise_on_sum: what is added on a coordinate of the summed update, standard deviation.
        noise_on_mean: the same on the mean gradient: divided by B.
        noise_on_weights: the same on the weights after one step: multiplied by γ.
        words: what else is to be said.
    """

    mechanism: str
    granularity: str
    batch_size: int
    workers: int
    mean_scale: float
    relative_variance: float | None
    noise_on_sum: float | None
    noise_on_mean: float | None
    noise_on_weights: float | None
    words: tuple[str, ...]

    def __str__(self) -> str:
        each = "example" if self.granularity == "example" else f"worker ({self.workers} of them)"
        lines = [f"{self.mechanism}, one draw for each {each}, B = {self.batch_size}", *self.words]
        lines.append(f"mean: {self.mean_scale:.6g} × the gradient")
        numbers = [
            ("added variance t, relative to Σ‖g_i‖²", self.relative_variance),
            ("noise on a coordinate of the summed update", self.noise_on_sum),
            ("noise on a coordinate of the mean gradient", self.noise_on_mean),
            ("noise on a coordinate of the weights, one step", self.noise_on_weights),
        ]
        lines += [f"{what}: {value:.4g}" for what, value in numbers if value is not None]
        return "\n".join(lines)


def described(
    mechanism: Described,
    batch_size: int,
    step_size: float | None,
    diversity: Diversity | None,
    granularity: str,
    workers: int,
) -> Description:
    """Put a mechanism into numbers (`Mechanism.describe`).

    Args:
        mechanism: m.
        batch_size: B.
        step_size: γ.
        diversity: what was measured.
        granularity: "example" or "worker".
        workers: P.

    Returns:
        The description.

    Raises:
        ValueError: if a number is out of its range.
    """
    if batch_size < 1 or not 1 <= workers <= batch_size:
        raise ValueError(f"describe needs 1 ≤ workers ≤ batch_size; got {workers} and {batch_size}.")
    if step_size is not None and not step_size > 0:
        raise ValueError(f"step_size must be positive; got {step_size}.")
    if granularity not in ("example", "worker"):
        raise ValueError(f'granularity must be "example" or "worker"; got {granularity!r}.')
    words = list(mechanism.variance_in_words(diversity))
    t = noise = None
    if granularity == "worker":
        words.append(
            "One draw per worker's sum is not distributed as one per example: its variance grows with the squared "
            "norm of the sum, so B_DIM and B_eff of the mechanism do not hold."
        )
    if diversity is not None and diversity.sum_sq_norms > 0:
        enough = not mechanism.needs_l1_norms or diversity.sum_l1_l2_norms is not None
        if enough:
            t = _relative_variance(mechanism, diversity)
        if granularity == "example" and t is not None:
            words.append(
                f"B_D = {diversity.batch_size_bound:.4g} becomes B_DIM = {diversity.bound_with(mechanism):.4g} "
                f"(one draw per example) and B_eff = {diversity.effective_bound_with(mechanism):.4g} (fresh draws)."
            )
            added = t * mechanism.mean_scale**2 * diversity.sum_sq_norms / diversity.count
            noise = math.sqrt(batch_size * added / diversity.dimension)
        elif granularity == "worker" and not mechanism.needs_l1_norms:
            b = batch_size / workers
            of_sum = b * diversity.mean_sq_norm + b * (b - 1) * diversity.sq_norm_of_mean
            sums = Diversity(
                count=workers, dimension=diversity.dimension, sum_sq_norms=workers * of_sum, sq_norm_of_sum=0.0
            )
            t = _relative_variance(mechanism, sums)
            noise = math.sqrt(t * mechanism.mean_scale**2 * sums.sum_sq_norms / diversity.dimension)
    elif mechanism.adds_noise:
        alone = Diversity(count=1, dimension=1, sum_sq_norms=0.0, sq_norm_of_sum=0.0)
        draws = batch_size if granularity == "example" else workers
        noise = math.sqrt(draws * mechanism.expected_sq_norm(alone))
    return Description(
        mechanism=str(mechanism),
        granularity=granularity,
        batch_size=batch_size,
        workers=workers,
        mean_scale=mechanism.mean_scale,
        relative_variance=t,
        noise_on_sum=noise,
        noise_on_mean=None if noise is None else noise / batch_size,
        noise_on_weights=None if noise is None or step_size is None else noise * step_size,
        words=tuple(words),
    )


def _relative_variance(mechanism: Described, sums: Diversity) -> float:
    kept = mechanism.mean_scale**2 * sums.sum_sq_norms
    return (mechanism.expected_sq_norm(sums) - kept) / kept
