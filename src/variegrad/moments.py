"""The three sums: n, Σ‖g_i‖² and Σg_i, and every quantity that is a function of them (Definitions 4 and 5).

Convention: g_i = ∇f_i(w) is the gradient of the *unnormalised* loss of one example, and sums run over examples.
`GradientMoments` is a monoid under `+`, so that chunks, micro-batches, data shards and workers are one operation.
`Diversity` is what remains when the d-dimensional sum has been reduced to its norm. Nothing here estimates: the sums
of a sample describe that sample (for a population's bound from a sample see `variegrad.estimators`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from variegrad.advice import Advice, Limited, StepSizeRule, advise
from variegrad.shapes import Float

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import optim

# ‖Σg‖² at or below this fraction of its largest possible value n·Σ‖g‖² is rounding, not a direction.
ZERO_TOTAL = 1e-12


@runtime_checkable
class NormSums(Protocol):
    """What the law of a mechanism may depend on: sums over n gradients in d dimensions."""

    @property
    def count(self) -> int: ...
    @property
    def dimension(self) -> int: ...
    @property
    def sum_sq_norms(self) -> float: ...
    @property
    def sum_l1_l2_norms(self) -> float | None: ...


@runtime_checkable
class Law(Protocol):
    """A mechanism m as its law: E m(g) = c·g and Σ_i E‖m(g_i)‖² (theory of Section 4.4)."""

    @property
    def mean_scale(self) -> float: ...

    def expected_sq_norm(self, norms: NormSums) -> float: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientMoments:
    """n, Σ‖g_i‖² and Σg_i, by parameter; a monoid under `+` with `GradientMoments()` as its zero.

    Attributes:
        count: n, the number of examples.
        sum_sq_norms: Σ_i ‖g_i‖² of each parameter.
        gradient_sum: Σ_i g_i of each parameter, in float64 (complex128) and in the parameter's shape; sparse if the
            gradients are.
        sum_l1_l2_norms: Σ_i ‖g_i‖₁‖g_i‖₂ over all parameters together; None if it was not asked for.
    """

    count: int = 0
    sum_sq_norms: Mapping[str, float] = field(default_factory=dict)
    gradient_sum: Mapping[str, Tensor] = field(default_factory=dict)
    sum_l1_l2_norms: float | None = None

    @classmethod
    def from_gradients(cls, gradients: Float[Tensor, "n d"], name: str = "weight") -> GradientMoments:
        """The moments of n explicit gradients, one per row.

        Args:
            gradients: g_i as row i.
            name: what to call the single parameter they belong to.

        Returns:
            Their moments, Σ‖g‖₁‖g‖₂ included.
        """
        rows = gradients.detach().double()
        return cls(
            count=len(rows),
            sum_sq_norms={name: float(rows.square().sum())},
            gradient_sum={name: rows.sum(0)},
            sum_l1_l2_norms=float((rows.abs().sum(1) * rows.norm(dim=1)).sum()),
        )

    def __add__(self, other: GradientMoments) -> GradientMoments:
        """The moments of both sets of examples together.

        Raises:
            ValueError: if both are non-empty and speak of different parameters.
        """
        if not isinstance(other, GradientMoments):
            return NotImplemented
        if self.count == 0 or other.count == 0:
            return self if other.count == 0 else other
        if self.gradient_sum.keys() != other.gradient_sum.keys():
            odd = sorted(self.gradient_sum.keys() ^ other.gradient_sum.keys())
            raise ValueError(
                f"GradientMoments can only be added if their parameters are the same; {odd[:5]} are in only one of "
                "the two. Were parameters frozen or renamed in between?"
            )
        both = self.sum_l1_l2_norms is not None and other.sum_l1_l2_norms is not None
        return GradientMoments(
            count=self.count + other.count,
            sum_sq_norms={k: v + other.sum_sq_norms[k] for k, v in self.sum_sq_norms.items()},
            gradient_sum={k: v + other.gradient_sum[k] for k, v in self.gradient_sum.items()},
            sum_l1_l2_norms=self.sum_l1_l2_norms + other.sum_l1_l2_norms if both else None,  # type: ignore[operator]
        )

    @property
    def diversity(self) -> Diversity:
        """These sums with Σg_i reduced to its norm: Δ_D, B_D and what follows from them."""
        squares = _sq_norms(self.gradient_sum)
        parts = {
            name: Diversity(
                count=self.count,
                dimension=total.numel() * (2 if total.is_complex() else 1),
                sum_sq_norms=self.sum_sq_norms[name],
                sq_norm_of_sum=squares[name],
            )
            for name, total in self.gradient_sum.items()
        }
        return Diversity(
            count=self.count,
            dimension=sum(part.dimension for part in parts.values()),
            sum_sq_norms=math.fsum(part.sum_sq_norms for part in parts.values()),
            sq_norm_of_sum=math.fsum(part.sq_norm_of_sum for part in parts.values()),
            sum_l1_l2_norms=self.sum_l1_l2_norms,
            per_parameter=parts,
        )


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """Gradient diversity Δ_D(w) = Σ‖g_i‖² / ‖Σg_i‖² and the batch-size bound B_D(w) = n·Δ_D(w), exactly.

    Attributes:
        count: n, the number of examples.
        dimension: d, the number of trained coordinates; two per complex one.
        sum_sq_norms: A = Σ_i ‖g_i‖².
        sq_norm_of_sum: S = ‖Σ_i g_i‖².
        sum_l1_l2_norms: Q = Σ_i ‖g_i‖₁‖g_i‖₂, if it was asked for.
        per_parameter: the same for each parameter alone; 1/B_D = Σ_l (A_l/A)·(1/B_l).

    Source: Definitions 4 and 5 (Definition 6 if the g_i are differences of gradients).
    """

    count: int
    dimension: int
    sum_sq_norms: float
    sq_norm_of_sum: float
    sum_l1_l2_norms: float | None = None
    per_parameter: Mapping[str, Diversity] = field(default_factory=dict, repr=False)

    @property
    def undefined(self) -> bool:
        """All gradients are zero: Δ_D is 0/0, and the batch size does not matter."""
        return self.sum_sq_norms == 0

    @property
    def zero_total(self) -> bool:
        """The gradients cancel: ‖Σg‖² is zero up to rounding while its parts are not, so B_D = +inf."""
        return not self.undefined and self.sq_norm_of_sum <= ZERO_TOTAL * self.count * self.sum_sq_norms

    @property
    def conflicting(self) -> bool:
        """Σ_{i≠j}⟨g_i, g_j⟩ < 0: gradients point against each other on average, B_D > n and B_wor = +inf."""
        # Some slack for rounding in float32: mutually orthogonal gradients have B_D = n and are not in conflict.
        return self.count > 1 and not self.undefined and self.sq_norm_of_sum < self.sum_sq_norms * (1 - 1e-7)

    @property
    def diversity(self) -> float:
        """Δ_D = Σ‖g_i‖² / ‖Σg_i‖² ≥ 1/n; NaN if `undefined`, +inf if `zero_total`."""
        if self.undefined or self.count == 0:
            return math.nan
        return math.inf if self.zero_total else self.sum_sq_norms / self.sq_norm_of_sum

    @property
    def batch_size_bound(self) -> float:
        """B_D = n·Δ_D ≥ 1, in examples: 1 + the simple gradient noise scale (for sampling with replacement)."""
        bound = self.count * self.diversity
        # Below 1 only by rounding, since ‖Σg‖² ≤ n·Σ‖g‖²; a single gradient has exactly 1.
        return 1.0 if bound < 1 or (self.count == 1 and math.isfinite(bound)) else bound

    @property
    def coherence(self) -> float:
        """ρ = mean_{i≠j}⟨g_i, g_j⟩ / mean_i‖g_i‖² ∈ [−1/(n−1), 1]; NaN for a single example."""
        if self.undefined or self.count < 2:
            return math.nan
        return (self.sq_norm_of_sum - self.sum_sq_norms) / ((self.count - 1) * self.sum_sq_norms)

    @property
    def batch_size_bound_without_replacement(self) -> float:
        """B_wor = 1/ρ = (n−1)/(n/B_D − 1), in examples: the exact analogue of B_D for epochs of shuffled data.

        +inf if ρ ≤ 0, and for a single example (there is no second draw that could be redundant).
        """
        if self.undefined or self.count == 0:
            return math.nan
        if self.count == 1 or self.sq_norm_of_sum <= self.sum_sq_norms * (1 + 1e-12):
            return math.inf
        return 1 / self.coherence

    @property
    def mean_sq_norm(self) -> float:
        """M² = (1/n) Σ‖g_i‖²."""
        return self.sum_sq_norms / self.count if self.count else math.nan

    @property
    def sq_norm_of_mean(self) -> float:
        """‖∇F‖² = ‖(1/n) Σg_i‖²."""
        return self.sq_norm_of_sum / self.count**2 if self.count else math.nan

    def efficiency(self, batch_size: float) -> float:
        """Progress per example relative to very small batches, at tuned learning rates: 1/(1 + (B−1)/B_D).

        Args:
            batch_size: B ≥ 1, in examples.

        Returns:
            A number in (0, 1]; 1 if `undefined`, since the batch size does not matter then.

        Raises:
            TypeError: if the batch size is not a number.
            ValueError: if it is below one.
        """
        given: object = batch_size  # a user's value, whatever the signature says
        if isinstance(given, bool) or not isinstance(given, Real):
            raise TypeError(
                f"batch_size must be a number of examples; got {batch_size!r} ({type(batch_size).__name__})."
            )
        if not batch_size >= 1:
            raise ValueError(f"batch_size must be at least 1 example; got {batch_size}.")
        return 1.0 if self.undefined else 1 / (1 + (batch_size - 1) / self.batch_size_bound)

    @property
    def low(self) -> float:
        """The lower end of what B_D may be, as of an estimate: B_D itself, +inf if `undefined`."""
        return math.inf if self.undefined else self.batch_size_bound

    high = lower_confidence_bound = low

    def advice(
        self,
        batch_size: int,
        new_batch_size: int | None = None,
        optimizer: optim.Optimizer | type[optim.Optimizer] | StepSizeRule | None = None,
        limits: Limited | None = None,
    ) -> Advice:
        """What B_D means for a batch: its regime, its efficiency, and the learning rate after a change.

        Args:
            batch_size: B, in examples of one update over all workers.
            new_batch_size: B′, if the batch is to change.
            optimizer: whose rule the learning rate follows, by its kind; or the rule itself.
            limits: from `vg.step_limits` at the same batch size and weights: the advice then says which limit binds at
                the learning rate in use, for every rule.

        Returns:
            The advice.

        Raises:
            ValueError: if a batch size is below one, or the limits are those of another batch size.
            TypeError: if no rule is known for the optimizer.
        """
        rule = None if optimizer is None else StepSizeRule.of(optimizer)
        return advise(self, batch_size, new_batch_size=new_batch_size, rule=rule, limits=limits)

    def to_dict(self) -> dict[str, Any]:
        """The measurement as plain JSON: +inf is the string "inf", an undefined number null.

        Returns:
            Sums, bounds and flags, and `per_parameter` with each parameter's share S_l/S of 1/B_D.
        """
        total = sum(part.sq_norm_of_sum for part in self.per_parameter.values())
        return {
            "count": self.count,
            "dimension": self.dimension,
            **self._sums(),
            "diversity": _json(self.diversity),
            "batch_size_bound_without_replacement": _json(self.batch_size_bound_without_replacement),
            "flags": [flag for flag in ("undefined", "zero_total", "conflicting") if getattr(self, flag)],
            "per_parameter": {
                name: {
                    "dimension": part.dimension,
                    **part._sums(),
                    "share": part.sq_norm_of_sum / total if total and not self.zero_total else None,
                }
                for name, part in self.per_parameter.items()
            },
        }

    def _sums(self) -> dict[str, Any]:
        return {
            "sum_sq_norms": self.sum_sq_norms,
            "sq_norm_of_sum": self.sq_norm_of_sum,
            "batch_size_bound": _json(self.batch_size_bound),
        }

    def plot(self) -> Figure:
        """Efficiency 1/(1 + (B−1)/B_D) against the batch size.

        Returns:
            A matplotlib figure.
        """
        from variegrad.reports.single import efficiency_of  # noqa: PLC0415 - matplotlib only if it is asked for

        bound = self.batch_size_bound
        return efficiency_of(bound, bound, bound, title="Efficiency of a batch", digits=3)

    def _repr_html_(self) -> str:
        from variegrad.reports.single import in_digits, shown  # noqa: PLC0415 - as above

        rows = [
            ("batch-size bound B_D (examples)", in_digits(self.batch_size_bound, 3)),
            ("without replacement B_wor (examples)", in_digits(self.batch_size_bound_without_replacement, 3)),
            ("gradient diversity Δ_D", in_digits(self.diversity, 3)),
            ("examples n", f"{self.count:,}"),
            ("parameters d", f"{self.dimension:,}"),
        ]
        return shown(self.in_words(), rows, self.plot())

    def speed_up(self, batch_size: float) -> float:
        """The number of steps with one example each that one step of B examples replaces: B/(1 + (B−1)/B_D) ≤ B_D.

        Args:
            batch_size: B ≥ 1, in examples.

        Returns:
            The speed-up over B = 1, without communication.
        """
        return batch_size * self.efficiency(batch_size)

    def bound_with(self, mechanism: Law) -> float:
        """B_DIM = n·ΣE‖m(g_i)‖² / E‖Σm(g_i)‖², one draw of the mechanism for each example (Section 4.4).

        With c = `mean_scale`, E = ΣE‖m(g_i)‖²: E‖Σm(g_i)‖² = c²‖Σg‖² + (E − c²Σ‖g‖²), by independence.

        Args:
            mechanism: the law of the mechanism.

        Returns:
            B_DIM in examples, NaN for 0/0.
        """
        expected, kept = self._expectation(mechanism)
        squared_sum = mechanism.mean_scale**2 * self._sq_norm_of_sum + (expected - kept)
        return _ratio(self.count * expected, squared_sum)

    def effective_bound_with(self, mechanism: Law) -> float:
        """B_eff = (1+t)·B_D, t = ΣtrVar m(g_i) / (c²Σ‖g_i‖²): what Lemma 1 needs if each draw is new.

        Args:
            mechanism: the law of the mechanism.

        Returns:
            B_eff in examples, NaN for 0/0.
        """
        expected, _ = self._expectation(mechanism)
        return _ratio(self.count * expected, mechanism.mean_scale**2 * self._sq_norm_of_sum)

    @property
    def _sq_norm_of_sum(self) -> float:
        return 0.0 if self.zero_total else self.sq_norm_of_sum

    def _expectation(self, mechanism: Law) -> tuple[float, float]:
        return mechanism.expected_sq_norm(self), mechanism.mean_scale**2 * self.sum_sq_norms

    def in_words(self) -> str:
        """The result in one sentence, degenerate cases included."""
        n, bound = self.count, self.batch_size_bound
        if n == 0:
            return "no examples: nothing was measured."
        if self.undefined:
            return f"undefined: all {n} gradients are zero, so the batch size does not matter here."
        if self.zero_total:
            return (
                f"zero_total: the {n} gradients cancel: they are not zero but their sum is, so B_D is infinite (a "
                "stationary point: only noise is left)."
            )
        sentence = (
            f"B_D = {bound:.4g} examples: with a learning rate tuned for it, a batch of {max(1, round(bound + 1))} "
            "is about 50% efficient."
        )
        if self.conflicting:
            sentence += f" conflicting: B_D exceeds n = {n}, the gradients oppose each other on average."
        return sentence

    def __str__(self) -> str:
        return (
            f"Diversity(n={self.count}, d={self.dimension}, diversity={self.diversity:.6g}, "
            f"batch_size_bound={self.batch_size_bound:.6g})\n{self.in_words()}"
        )


def _sq_norms(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """‖Σg‖² of each parameter, with one host read; complex sums are pairs of reals."""
    found = []
    for total in sums.values():
        values = total.coalesce().values() if total.is_sparse else total
        real = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
        found.append(real.square().sum().double())
    return dict(zip(sums, torch.stack([f.to(found[0].device) for f in found]).tolist(), strict=True)) if found else {}


def _ratio(numerator: float, denominator: float) -> float:
    if denominator == 0:
        return math.nan if numerator == 0 else math.inf
    return numerator / denominator


def _json(value: float) -> float | str | None:
    if math.isfinite(value):
        return value
    return None if math.isnan(value) else "inf" if value > 0 else "-inf"
