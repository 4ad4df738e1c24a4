"""Inner products of per-example gradients, part by part: the only place where `estimate` meets the gradient engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from variegrad.batches import Batch
from variegrad.keys import hashed
from variegrad.per_example import fallback
from variegrad.per_example.capture import Capture
from variegrad.per_example.chains import as_one
from variegrad.per_example.evaluate import Losses, evaluate, left_as_found, trained_parameters, unwrap
from variegrad.per_example.norms import engine_of
from variegrad.per_example.rules.gram import gram, gram_of_tiles, products, real_rows, with_exact_sums
from variegrad.per_example.step import Step
from variegrad.shapes import Float

# Gradients that only a loop over the examples gives are kept up to this size; larger parameters are sketched.
KEPT_BYTES = 64 << 20
SKETCH = 1 << 12

Gram = Float[Tensor, "b b"]
Scales = Callable[[Mapping[str, nn.Parameter]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class GradientsOf:
    """The gradients of one batch after its backward pass: factors in a capture, the rest by a loop.

    Attributes:
        count: b.
        device: of the losses.
        trained: the trained parameters.
        capture: the factors; None if only the loop is right.
        left: the parameters that only the loop serves.
        looped: name → (t, *shape) for the examples in order; each call goes through them again.
    """

    count: int
    device: torch.device
    trained: Mapping[str, nn.Parameter]
    capture: Capture | None
    left: Mapping[str, nn.Parameter]
    looped: Callable[[], Iterator[dict[str, Tensor]]]


@contextmanager
def gradients_of(model: nn.Module, losses: Losses, batch: Batch) -> Iterator[GradientsOf]:
    """Evaluate the losses and run the backward pass; the model is given back as it was found."""
    model = unwrap(model)
    trained = trained_parameters(model)
    with left_as_found(model), torch.enable_grad():
        per_example = evaluate(model, losses, batch)
        if not len(per_example):
            raise ValueError("batch: it has no examples. Pass 64 to 256 of them (at least 8, for an interval).")
        capture = engine_of(model).kept(step := Step.of(model, losses, batch, per_example, trained))
        left = trained if capture is None else {name: trained[name] for name in capture.uncovered}

        def looped() -> Iterator[dict[str, Tensor]]:
            if capture is None:
                return ({n: g.unsqueeze(0) for n, g in one.items()} for one in fallback.loop(per_example, left))
            return fallback.gradients(step, left, capture.known)

        yield GradientsOf(len(per_example), per_example.device, trained, capture, left, looped)


def gram_by_part(
    model: nn.Module,
    losses: Losses,
    batch: Batch,
    part_of: Callable[[str], str],
    scales: Scales | None = None,
) -> dict[str, Gram]:
    """K = G·Gᵀ of each part of the model, in float64; their sum is that of the whole model.

    Args:
        model: with at least one parameter that requires a gradient.
        losses: one loss per example.
        batch: what `losses` takes.
        part_of: the part that a parameter, given by name, belongs to.
        scales: elementwise factors of the gradients of given parameters, such as √P.

    Returns:
        Part → b×b Gram matrix.

    Raises:
        TypeError: if the losses are no floating-point tensor.
        ValueError: if the batch is empty, no parameter is trained, the losses are not one finite number per example
            with a graph, or the examples are coupled.
    """
    trained = trained_parameters(unwrap(model))
    factors = scales(trained) if scales else {}
    grams: dict[str, Gram] = {}
    with gradients_of(model, losses, batch) as here:
        capture, count = here.capture, here.count
        found = _of_loop(here.looped, here.left, count, factors)
        with torch.no_grad(), torch.autocast(here.device.type, enabled=False):
            for name, parameter in trained.items():
                if capture is not None and capture.kept(name):
                    found[name] = _of_factors(capture, name, parameter, factors.get(name))
                elif name not in found:  # the losses do not depend on it
                    found[name] = torch.zeros(count, count, dtype=torch.float64)
                part, of_name = part_of(name), found.pop(name).to(here.device)
                grams[part] = grams[part] + of_name if part in grams else of_name
    return grams


def _of_factors(capture: Capture, name: str, parameter: nn.Parameter, scale: Tensor | None) -> Gram:
    parts = capture.kept(name)
    joint = parts[0] if len(parts) == 1 and parts[0][0].keeps_norms else as_one(parts)
    if joint is not None:
        use, part = joint
        if scale is None:
            return gram(part)
        if use.plain and not parameter.is_complex():
            return gram(part, scale.T if use.turned else scale)
    count = parts[0][1].count
    return gram_of_tiles(lambda i, j: capture.rows(name, i, j, parameter), count, parameter.numel(), scale)


def _of_loop(
    chunks: Callable[[], Iterator[dict[str, Tensor]]],
    parameters: Mapping[str, nn.Parameter],
    count: int,
    factors: Mapping[str, Tensor],
) -> dict[str, Gram]:
    """K of parameters that only a fallback serves: from their rows if these are small, else from sketches."""
    if not parameters:
        return {}
    whole = sum(p.numel() * p.element_size() for p in parameters.values()) * count <= KEPT_BYTES
    sketched = {} if whole else {name: p for name, p in parameters.items() if p.numel() > SKETCH}
    rows: dict[str, list[Tensor]] = {name: [] for name in parameters}
    norms: dict[str, list[Tensor]] = {name: [] for name in sketched}
    totals: dict[str, Tensor] = {}
    for chunk in chunks():
        for name, gradients in chunk.items():
            flat = real_rows(gradients.detach(), factors.get(name))
            if name in sketched:
                norms[name].append(torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64).square())
                totals[name] = totals[name].add_(flat.sum(0)) if name in totals else flat.sum(0)
                flat = sketch(flat, name)
            rows[name].append(flat)
    found = {}
    for name in parameters:
        kept = torch.cat(rows.pop(name))
        found[name] = products(kept, kept)
    if sketched:  # what the interval depends on most is exact: ⟨g_i, Σg⟩ takes a second pass
        along: dict[str, list[Tensor]] = {name: [] for name in sketched}
        for chunk in chunks():
            for name in sketched:
                flat = real_rows(chunk[name].detach(), factors.get(name))
                along[name].append(flat.double() @ totals[name].double())
        for name in sketched:
            found[name] = with_exact_sums(found[name], torch.cat(norms[name]), torch.cat(along[name]))
    return found


def sketch(rows: Float[Tensor, "t d"], name: str) -> Float[Tensor, "t k"]:
    """Every coordinate with a random sign into one of k sums: ⟨y_i, y_j⟩ = ⟨g_i, g_j⟩ on average."""
    width = rows.shape[1]
    draws = torch.Generator().manual_seed(int.from_bytes(hashed(0, "sketch", name)[:7], "little"))
    signs = torch.randint(2, (width,), generator=draws, dtype=torch.int8).mul_(2).sub_(1).to(rows)
    padded = torch.nn.functional.pad(rows * signs, (0, -width % SKETCH))
    folded: Tensor = padded.unflatten(1, (-1, SKETCH))
    return folded.sum(1)
