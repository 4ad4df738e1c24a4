"""Measuring the limits of a step from one batch: gradients from most of it, curvature from the rest, and intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from scipy.stats import t as student
from torch import Tensor, nn

from variegrad.batches import Batch, map_tensors, shared_length
from variegrad.decision.curvature import Curvature, curvature_of
from variegrad.decision.limits import Estimate, StepLimits
from variegrad.estimators.preconditioner import Preconditioner, root_preconditioner
from variegrad.per_example.evaluate import Losses, left_as_found, trained_parameters, unwrap
from variegrad.shapes import Float

GRADIENT_PARTS = 6
CURVATURE_SHARE = 0.25  # of the batch: a Hessian-vector product costs more than a gradient
LANCZOS_STEPS = 3
LEAST = 32  # examples


def step_limits(
    model: nn.Module,
    losses: Losses,
    batch: Batch,
    *,
    learning_rate: float,
    batch_size: int | None = None,
    momentum: float = 0.0,
    preconditioner: Preconditioner | Sequence[Tensor] | None = None,
    confidence: float = 0.95,
) -> StepLimits:
    """B_D, B_H, κ and the stability margin from one batch, at the model's weights.

    Three quarters of the batch give gradients, one quarter gives curvature. The two are disjoint, so that no estimate
    is biased by its own noise. Intervals are Fieller's, from a jackknife over gradients and the spread over curvatures.

    Args:
        model: at the weights in question; its mode, buffers and `.grad` are left as they were.
        losses: `losses(model, batch) → (b,)`, one loss per example.
        batch: m ≥ 24 independent examples, tensors that share their first dimension; more give narrower intervals.
        learning_rate: η of the mean gradient, as passed to `torch.optim`.
        batch_size: B₀, examples of one update over all workers; m by default.
        momentum: β of heavy-ball momentum.
        preconditioner: an optimizer of Adam's family that has taken a step, or parameter → second moment, as in
            `estimate`; or the diagonal P = 1/(√v+ε) of each trained parameter.
        confidence: of each interval.

    Returns:
        The limits.

    Raises:
        ValueError: if an argument is out of range, the batch is too small or cannot be split, an operation has no
            second derivative, or the gradients are zero.

    Cost: 4 to 6 plain steps on a batch of 128 for convolutional networks, 15 for a perceptron of 1.9 million weights
    (`benchmarks/step_limits.py`), and memory for about 15 gradients.

    Source: docs, "Step-aware limits".
    """
    model = unwrap(model)
    named = trained_parameters(model)
    weights = list(named.values())
    if isinstance(preconditioner, torch.optim.Optimizer | Mapping):
        roots = root_preconditioner(preconditioner, named)
        preconditioner = [roots[name].square().to(p.dtype) for name, p in named.items()]
    for name, value, top in (("learning_rate", learning_rate, math.inf), ("confidence", confidence, 1.0)):
        if not 0 < value < top:
            raise ValueError(f"{name} must lie between 0 and {top:g}; got {value}.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 example; got {batch_size}.")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be at least 0 and below 1; got {momentum}.")
    if narrow := [str(p.dtype) for p in weights if p.dtype.itemsize < 4 or p.is_complex()]:
        raise ValueError(
            f"step_limits needs real float32 or float64 parameters; got {narrow[0].removeprefix('torch.')}."
        )
    count = shared_length(batch)
    if count is None:
        raise ValueError("batch: its tensors do not have a common first dimension, so it cannot be split.")
    if count < LEAST:
        raise ValueError(f"batch must have at least {LEAST} examples; got {count}.")
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in model.modules()):
        raise ValueError(
            "step_limits needs per-example losses; call model.eval(), or use GroupNorm instead of BatchNorm."
        )
    if preconditioner is not None and [p.shape for p in preconditioner] != [p.shape for p in weights]:
        raise ValueError("preconditioner must contain one tensor per trained parameter, with the parameter's shape.")
    with left_as_found(model), torch.enable_grad():
        measured = curvature_of(
            model,
            losses,
            *_parts(batch, count),
            weights,
            preconditioner=preconditioner,
            learning_rate=learning_rate,
            steps=LANCZOS_STEPS,
        )
    return _limits(
        measured,
        examples=count,
        batch_size=count if batch_size is None else batch_size,
        learning_rate=learning_rate,
        momentum=momentum,
        preconditioned=preconditioner is not None,
        confidence=confidence,
    )


def _parts(batch: Batch, count: int) -> tuple[list[Batch], Batch, Batch]:
    """Rows in random order: K parts for gradients, one for curvature, and as many of the gradients' rows again."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))  # sorted batches are common
    for_curvature = round(CURVATURE_SHARE * count)

    def cut(rows: Tensor) -> Batch:
        return map_tensors(lambda t: t[rows.to(t.device)], batch)

    curvature, gradients = order[:for_curvature], order[for_curvature:]
    return (
        [cut(rows) for rows in gradients.tensor_split(GRADIENT_PARTS)],
        cut(curvature),
        cut(gradients[:for_curvature]),
    )


def _limits(
    measured: Curvature,
    *,
    examples: int,
    batch_size: int,
    learning_rate: float,
    momentum: float,
    preconditioned: bool,
    confidence: float,
) -> StepLimits:
    means = _Means(measured)
    g, c, t, m = means.values
    if m == 0:
        raise ValueError("all gradients of the batch are zero: there is no step to analyse.")
    if not all(
        bool(part.isfinite().all()) for part in (measured.gram, measured.own, measured.fresh)
    ) or not math.isfinite(measured.ritz):
        raise ValueError("a loss or a gradient of the batch is not finite: check the weights and the inputs.")
    half = learning_rate / (1 - momentum) / 2
    loss = torch.tensor([0.0, half * (1 - 1 / batch_size), half / batch_size, 0.0], dtype=torch.float64)
    gradient, norm, along, example = torch.eye(4, dtype=torch.float64)[[0, 3, 1, 2]]
    bound, largest = means.ratio(norm, gradient, confidence), _largest(measured, confidence)
    return StepLimits(
        batch_size=batch_size,
        learning_rate=learning_rate,
        momentum=momentum,
        preconditioned=preconditioned,
        examples=examples,
        confidence=confidence,
        batch_size_bound=replace(bound, low=max(1.0, bound.low)),  # ‖G‖² ≤ E‖g‖²
        curvature_bound=means.ratio(example, along, confidence),
        kappa=means.ratio(loss, gradient, confidence),
        stability=largest.scaled(learning_rate / (2 * (1 + momentum))),
        sq_gradient=float(g),
        gradient_curvature=float(c),
        example_curvature=float(t),
        largest_curvature=largest,
    )


class _Means:
    """θ = (‖G‖², GᵀHG, E gᵀHg, E‖g‖²) as U-statistics, with its covariance over gradients and over curvature."""

    def __init__(self, measured: Curvature) -> None:
        self.measured = measured
        count = len(measured.gram)
        every = list(range(count))
        self.values = self._at(every)
        left_out = torch.stack([self._at([j for j in every if j != k]) for k in every])
        away = left_out - left_out.mean(0)
        over_gradients = (count - 1) / count * away.T @ away
        over_curvature = torch.zeros_like(over_gradients)
        along, example = self._per_example()
        over_curvature[1:3, 1:3] = torch.cov(torch.stack([along, example])) / len(along)
        self.parts = ((over_gradients, count - 1), (over_curvature, len(along) - 1))

    def _at(self, kept: list[int]) -> Float[Tensor, " 4"]:
        """θ̂ without the gradient parts that are not kept."""
        measured, sizes = self.measured, self.measured.sizes[kept]
        gram, own = measured.gram[kept][:, kept], measured.own.mean(1)
        # sᵀHs of the kept parts, from that of all: across holds ⟨ĝ_k, Hs⟩.
        every, left = len(own), [k for k in range(len(own)) if k not in kept]
        total = every * float(measured.across.sum())
        total += sum(float(own[k]) - 2 * every * float(measured.across[k]) for k in left)
        g, m = _split(gram.sum(), gram.diagonal(), sizes)
        c, t = _split(torch.tensor(total, dtype=torch.float64), own[kept], sizes)
        return torch.stack([g, c, t, m])

    def _per_example(self) -> tuple[Float[Tensor, " a"], Float[Tensor, " a"]]:
        """GᵀH_iG and E gᵀH_ig of each curvature example i."""
        measured = self.measured
        return _split(len(measured.own) ** 2 * measured.mean, measured.own, measured.sizes[:, None])

    def ratio(self, above: Tensor, below: Tensor, confidence: float) -> Estimate:
        """above·θ/below·θ with Fieller's interval: the ratios x at which above·θ − x·below·θ may be zero."""
        pair = torch.stack([above, below])
        top, bottom = (pair @ self.values).tolist()
        variances = [pair @ part @ pair.T for part, _ in self.parts]
        freedom = _freedom([float(v.trace()) for v in variances], [f for _, f in self.parts])
        t = float(student.ppf((1 + confidence) / 2, freedom))
        low, high = fieller(top, bottom, sum(variances[1:], variances[0]).tolist(), t)
        return Estimate(value=top / bottom if bottom > 0 else math.inf, low=low, high=high)


def fieller(top: float, bottom: float, covariance: Sequence[Sequence[float]], t: float) -> tuple[float, float]:
    """The ratios x at which |top − x·bottom| ≤ t·sd(top − x·bottom); up to +inf if bottom may be zero."""
    (v_top, both), (_, v_bottom) = covariance
    a = bottom**2 - t**2 * v_bottom
    b = top * bottom - t**2 * both
    c = top**2 - t**2 * v_top
    root = math.sqrt(max(0.0, b * b - a * c))
    if a > 0 and bottom > 0:
        return (b - root) / a, (b + root) / a
    # The set is unbounded: everything above its smallest positive member, if it has one.
    if c <= 0:
        return -math.inf, math.inf
    return (c / (b + root) if b + root > 0 else -math.inf), math.inf


def _split(total: Tensor, own: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """E xᵀAy of independent examples and E xᵀAx of one, from Σ_kj x̄_kᵀAx̄_j and the x̄_kᵀAx̄_k of K part means."""
    count = len(own)
    between = (total - own.sum(0)) / (count * (count - 1))
    return between, between + (sizes * (own - between)).mean(0)


def _freedom(variances: Sequence[float], freedoms: Sequence[int]) -> float:
    """Welch and Satterthwaite's degrees of freedom of a sum of variances."""
    below = sum(v * v / f for v, f in zip(variances, freedoms, strict=True))
    return sum(variances) ** 2 / below if below > 0 else float(min(freedoms))


def _largest(measured: Curvature, confidence: float) -> Estimate:
    """λ_max: vᵀHv in fresh examples from below; from above in the examples that v was fitted to, with its residual."""
    t = float(student.ppf((1 + confidence) / 2, len(measured.fresh) - 1))
    below, error = float(measured.fresh.mean()), t * float(measured.fresh.std()) / len(measured.fresh) ** 0.5
    return Estimate(
        value=max(0.0, below),
        low=max(0.0, below - error),
        high=max(abs(measured.ritz) + error + measured.residual, below + error, 0.0),
    )
