"""DropConnect on gradients (Section 4.4): keep each coordinate of ∇f_i with probability 1−p, independently."""

from __future__ import annotations

from dataclasses import dataclass

from variegrad.mechanisms.law import Mechanism
from variegrad.moments import NormSums


@dataclass(frozen=True)
class DropConnect(Mechanism):
    """m(g) = D·g with D diagonal, Bernoulli(1−p); divided by 1−p where `rescale` (unbiased, the default).

    1/B_DIM = (1−p)/B_D + p/n and B_eff = B_D/(1−p), with or without rescaling. `rescale=False` is the paper's form,
    whose mean is (1−p)·g: a step size keeps its meaning only with rescaling.

    Attributes:
        p: the drop probability, 0 ≤ p < 1.
        rescale: whether kept coordinates are divided by 1−p.

    Raises:
        ValueError: if p is outside [0, 1).
    """

    p: float
    rescale: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.p < 1:
            raise ValueError(f"DropConnect: the drop probability p must lie in [0, 1); got {self.p}.")

    @property
    def mean_scale(self) -> float:
        return 1.0 if self.rescale else 1 - self.p

    def expected_sq_norm(self, norms: NormSums) -> float:
        return norms.sum_sq_norms * (self.mean_scale**2 / (1 - self.p))

    def __str__(self) -> str:
        return f"DropConnect({self.p:g}{'' if self.rescale else ', unscaled'})"
