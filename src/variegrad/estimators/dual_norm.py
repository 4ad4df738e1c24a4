"""The batch-size bound 1 + (N/‖∇F‖_*)² of sign methods and Muon, from folds of a batch, with an honest bracket.

Neither N nor ‖∇F‖_* is a mean of something that a sample shows without bias. With K folds of the batch, Ḡ their mean
gradient, Ḡ_f that of fold f and Ḡ₍₋f₎ that of all others,

    E‖Ḡ‖_*  ≥  ‖∇F‖_*  ≥  E (1/K)Σ_f ⟨u(Ḡ₍₋f₎), Ḡ_f⟩,

the first by convexity, the second because u(Ḡ₍₋f₎), of norm 1, is independent of Ḡ_f. The plug-in signal makes the
bound too low, the cross-fitted signal makes it too high, and both become exact as the batch grows: together they
bracket it. N comes from the covariance with 1/(m−1) and is too low by about 1/(4m) of itself for Gaussian noise (the
square root is concave). Limits of the bracket: delete-fold jackknife of N/‖Ḡ‖_* and of its cross-fitted inverse,
Student's t_{K−1}.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from variegrad.batches import Batch
from variegrad.estimators.coherence import t_quantiles
from variegrad.estimators.example_gram import gradients_of
from variegrad.estimators.geometry import DualNorm, Sign
from variegrad.per_example.evaluate import Losses
from variegrad.shapes import Float

FOLDS = 8
TILE_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class DualNormEstimate:
    """The batch-size bound 1 + (N/‖∇F‖_*)² of a geometry, between two estimates that err to opposite sides.

    Attributes:
        geometry: in words.
        plug_in: with ‖Ḡ‖_*: too low on average.
        cross_fitted: with the cross-fitted signal: too high on average; +inf if that signal is not positive.
        low: lower limit of `plug_in`: what a batch-size controller should use.
        high: upper limit of `cross_fitted`; +inf if the data does not exclude it.
        noise: N.
        confidence: nominal level of the limits.
        count: examples behind the estimate.
        left_out: parameters that the geometry does not cover (vectors, for Muon), by name.
        parts: the same for each part of the model, if asked for.
    """

    geometry: str
    plug_in: float
    cross_fitted: float
    low: float
    high: float
    noise: float
    confidence: float
    count: int
    left_out: tuple[str, ...] = ()
    parts: Mapping[str, DualNormEstimate] = field(default_factory=dict, repr=False)

    @property
    def cannot_tell(self) -> bool:
        """The batch is too small: the limits are a factor of ten or more apart."""
        return not self.high < 10 * self.low

    def in_words(self) -> str:
        """One sentence with the bracket, and what to do if it is wide."""
        if math.isnan(self.plug_in):
            return f"undefined in the geometry {self.geometry}: all {self.count} gradients are zero."
        level = f"{self.confidence:.0%}"
        above = f"at most {self.high:.3g}" if math.isfinite(self.high) else "not bounded from above"
        sentence = (
            f"Batch-size bound in the geometry {self.geometry}: at least {self.low:.3g} examples, {above} ({level}); "
            f"between {self.plug_in:.3g} (plug-in, too low on average) and {self.cross_fitted:.3g} (cross-fitted, too "
            "high on average)."
        )
        return sentence + (" Measure more examples to narrow it." if self.cannot_tell else "")

    def __str__(self) -> str:
        return self.in_words()


@dataclass(frozen=True)
class FoldTerms:
    """What K folds say of one parameter; parameters add up.

    Attributes:
        noise: N, and N without each fold.
        signal: ‖Ḡ‖_*, and ‖Ḡ₍₋f₎‖_* without each fold.
        cross: ⟨u(Ḡ₍₋f₎), Ḡ_f⟩ for each fold.
    """

    noise: Float[Tensor, " all"]
    signal: Float[Tensor, " all"]
    cross: Float[Tensor, " k"]

    def __add__(self, other: FoldTerms) -> FoldTerms:
        return FoldTerms(self.noise + other.noise, self.signal + other.signal, self.cross + other.cross)


class FoldSums:
    """Sums over the examples of K folds for one parameter: 2K tensors of its size, whatever the batch.

    Args:
        geometry: whose moments are summed.
        folds: K.
    """

    def __init__(self, geometry: DualNorm, folds: int = FOLDS) -> None:
        self.geometry, self.folds = geometry, folds
        self._sums: list[Tensor | None] = [None] * folds
        self._moments: list[Tensor | None] = [None] * folds
        self._counts = [0] * folds

    def add(self, rows: Float[Tensor, t * shape], start: int) -> None:
        """Take the gradients of examples start, start+1, …; example i belongs to fold i mod K."""
        rows = rows if rows.dtype == torch.float64 else rows.float()
        for fold in range(self.folds):
            mine = rows[(fold - start) % self.folds :: self.folds]
            if len(mine):
                self._counts[fold] += len(mine)
                self._sums[fold] = _plus(self._sums[fold], mine.sum(0))
                self._moments[fold] = _plus(self._moments[fold], self.geometry.moment(mine))

    def terms(self) -> FoldTerms:
        """N, ‖Ḡ‖_* and the cross-fitted signal."""
        sums = torch.stack([s for s in self._sums if s is not None])
        moments = torch.stack([s for s in self._moments if s is not None])
        counts = [c for c in self._counts if c]

        def covariance(moment: Tensor, total: Tensor, count: int) -> Tensor:
            return (moment - self.geometry.moment(total.unsqueeze(0)) / count) / (count - 1)

        whole, count = sums.sum(0), sum(counts)
        every = [covariance(moments.sum(0), whole, count)]
        every += [covariance(moments.sum(0) - moments[f], whole - sums[f], count - counts[f]) for f in range(len(sums))]
        means = torch.stack([s / c for s, c in zip(sums, counts, strict=True)])
        return _terms(self.geometry, torch.stack([self.geometry.noise(c) for c in every]), means, counts)


def terms_of_groups(geometry: DualNorm, means: Float[Tensor, k * shape], sizes: Sequence[int]) -> FoldTerms:
    """What the mean gradients of K micro-batches or workers say of one parameter; the noise is between them.

    Σ_j b_j(ḡ_j − Ḡ)²/(K−1) estimates σ² of one example without bias; its root, of few groups, is brought up by c₄(K)
    for sign methods (exact for Gaussian means of many examples).

    Args:
        geometry: `Sign` or `Spectral`.
        means: ḡ_j, the *mean* gradient of each group.
        sizes: b_j, examples in each.

    Returns:
        Terms to be added over parameters, and kept as sums over steps.
    """
    groups, counts = len(means), list(sizes)

    def noise(kept: list[int]) -> Tensor:
        weights = means.new_tensor([counts[j] for j in kept]).view(-1, *[1] * (means.dim() - 1))
        chosen = means[kept]
        centred = chosen - (weights * chosen).sum(0) / weights.sum()
        found = geometry.noise(geometry.moment(weights.sqrt() * centred) / (len(kept) - 1))
        return found / _c4(len(kept)) if isinstance(geometry, Sign) else found

    every = [noise(list(range(groups)))] + [noise([j for j in range(groups) if j != f]) for f in range(groups)]
    return _terms(geometry, torch.stack(every), means, counts)


def dual_norm_estimate(
    terms: FoldTerms,
    *,
    geometry: DualNorm,
    count: int,
    confidence: float = 0.95,
    left_out: Sequence[str] = (),
) -> DualNormEstimate:
    """The bracket of the bound from the terms of all parameters together.

    Args:
        terms: summed over parameters.
        geometry: of the terms.
        count: examples behind them.
        confidence: nominal level of the limits.
        left_out: parameters that are not in the sum.

    Returns:
        The estimate.
    """
    folds = len(terms.cross)
    values = torch.cat([terms.noise, terms.signal, terms.cross]).double().tolist()
    noise, signal, cross = values[: folds + 1], values[folds + 1 : 2 * folds + 2], values[2 * folds + 2 :]
    if not noise[0] and not signal[0]:
        return DualNormEstimate(
            geometry=str(geometry), plug_in=math.nan, cross_fitted=math.nan, low=1.0, high=math.inf, noise=0.0,
            confidence=confidence, count=count, left_out=tuple(left_out),
        )  # fmt: skip
    t, _ = t_quantiles(folds - 1, confidence)
    ratio, error = _jackknife(
        noise[0] / signal[0], [n / s if s else 0.0 for n, s in zip(noise[1:], signal[1:], strict=True)]
    )
    mean = sum(cross) / folds
    without = [(mean * folds - c) / (folds - 1) for c in cross]
    inverse, inverse_error = _jackknife(
        mean / noise[0] if noise[0] else math.inf,
        [c / n if n else math.inf for c, n in zip(without, noise[1:], strict=True)],
    )
    return DualNormEstimate(
        geometry=str(geometry),
        plug_in=1 + ratio**2,
        cross_fitted=_bound(inverse),
        low=1 + max(0.0, ratio - t * error) ** 2,
        high=_bound(inverse - t * inverse_error) if noise[0] else 1.0,
        noise=noise[0],
        confidence=confidence,
        count=count,
        left_out=tuple(left_out),
    )


def estimate_in_dual_norm(
    model: nn.Module,
    losses: Losses,
    batch: Batch,
    *,
    geometry: DualNorm,
    per: Callable[[str], str] | None = None,
    confidence: float = 0.95,
) -> DualNormEstimate:
    """Bracket the batch-size bound 1 + (N/‖∇F‖_*)² of a sign method or Muon from one batch.

    Time: as `estimate`, and for each parameter 2K evaluations of the dual norm (for `Spectral`, singular values).
    Memory beyond a training step: 2K = 16 tensors of the size of the largest parameter.

    Args:
        model: at the weights in question; left as it was found.
        losses: `losses(model, batch) → (b,)`, one unreduced loss per example.
        batch: a random sample of distinct examples, at least 32. The bracket narrows with more.
        geometry: `Sign()` or `Spectral()`; see `geometry_of`.
        per: also estimate each part of the model (`by_layer`, `by_group(...)`).
        confidence: nominal level of the limits.

    Returns:
        The estimate; parameters that the geometry does not cover are `left_out`.

    Raises:
        TypeError: if the geometry is an inner product's: use `estimate`, with `preconditioner=` for Adam.
        ValueError: as `estimate`, for fewer than 32 examples, or if the geometry covers no parameter.

    Source: Naganuma et al. (2026), arXiv 2602.03001, for the bound; the bracket is ours.
    """
    if not isinstance(geometry, DualNorm):
        raise TypeError(
            f"geometry must be Sign() or Spectral(); got {geometry}. For SGD use estimate(model, losses, batch), for "
            "Adam add preconditioner=optimizer."
        )
    terms: dict[str, FoldTerms] = {}
    left_out: list[str] = []
    with gradients_of(model, losses, batch) as here:
        if here.count < 4 * FOLDS:
            raise ValueError(
                f"batch: estimate_in_dual_norm splits it into {FOLDS} folds and needs at least {4 * FOLDS} examples; "
                f"got {here.count}."
            )
        sums = {name: FoldSums(geometry) for name in here.left if geometry.covers(here.trained[name])}
        start = 0
        for chunk in here.looped() if sums else ():
            for name, fold in sums.items():
                fold.add(_real(chunk[name].detach()), start)
            start += len(next(iter(chunk.values())))
        with torch.no_grad(), torch.autocast(here.device.type, enabled=False):
            for name, parameter in here.trained.items():
                part = per(name) if per else ""
                if not geometry.covers(parameter):
                    left_out.append(name)
                    continue
                fold = sums.pop(name) if name in sums else FoldSums(geometry)
                if name not in here.left:
                    step = max(1, TILE_BYTES // (4 * max(1, parameter.numel())))
                    for first in range(0, here.count, step):
                        last = min(first + step, here.count)
                        assert here.capture is not None
                        fold.add(_real(here.capture.rows(name, first, last, parameter)), first)
                found = fold.terms()
                terms[part] = terms[part] + found if part in terms else found
    if not terms:
        raise ValueError(f"no trained parameter is a matrix: the geometry {geometry} covers none of {left_out[:5]}.")
    common = {"geometry": geometry, "count": here.count, "confidence": confidence}
    whole = dual_norm_estimate(sum_of(terms.values()), left_out=left_out, **common)  # type: ignore[arg-type]
    if per is None:
        return whole
    return replace(whole, parts={k: dual_norm_estimate(v, **common) for k, v in terms.items()})  # type: ignore[arg-type]


def sum_of(terms: Iterable[FoldTerms]) -> FoldTerms:
    """The terms of several parameters, or of one parameter over several steps, together."""
    first, *others = terms
    return sum(others, start=first)


def _real(rows: Tensor) -> Tensor:
    return torch.view_as_real(rows.resolve_conj()) if rows.is_complex() else rows


def _terms(geometry: DualNorm, noise: Tensor, means: Tensor, counts: Sequence[int]) -> FoldTerms:
    weights = means.new_tensor(counts).view(-1, *[1] * (means.dim() - 1))
    total = (weights * means).sum(0)
    others = [(total - weights[f] * means[f]) / (weights.sum() - weights[f]) for f in range(len(means))]
    signal = [geometry.of(total / weights.sum())] + [geometry.of(each) for each in others]
    cross = [
        (geometry.steepest(other) * mean).sum(dtype=torch.float64) for other, mean in zip(others, means, strict=True)
    ]
    return FoldTerms(noise, torch.stack(signal), torch.stack(cross))


def _jackknife(value: float, without: Sequence[float]) -> tuple[float, float]:
    mean, count = sum(without) / len(without), len(without)
    if not math.isfinite(mean):
        return value, 0.0
    return value, math.sqrt((count - 1) / count * sum((each - mean) ** 2 for each in without))


def _bound(inverse: float) -> float:
    return 1 + 1 / inverse**2 if inverse > 0 else math.inf


def _plus(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)


def _c4(count: int) -> float:
    return math.sqrt(2 / (count - 1)) * math.exp(math.lgamma(count / 2) - math.lgamma((count - 1) / 2))
