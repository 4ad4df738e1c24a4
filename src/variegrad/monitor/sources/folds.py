"""Sign methods and Muon: the bound in their dual norm, from mean gradients of folds of a step's examples.

The dual norm is no inner product's, so that neither norms of examples nor sums over micro-batches give its noise and
signal. K = 8 folds do, with a known bias of each side (`estimators.dual_norm`): the reading is the bracket between the
plug-in signal, too low on average, and the cross-fitted one, too high. A watched step costs K further backward passes
over its own graphs, and holds K gradients while it lasts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from variegrad.estimators.dual_norm import FOLDS, FoldTerms, dual_norm_estimate, sum_of, terms_of_groups
from variegrad.estimators.geometry import DualNorm, Sign
from variegrad.monitor.loop import Loop
from variegrad.monitor.loss import Watched
from variegrad.monitor.reading import Reading
from variegrad.per_example.evaluate import left_as_found
from variegrad.per_example.passes import gradients


class Folds:
    """Terms of the latest steps that were measured.

    Args:
        model: the unwrapped model.
        geometries: parameter name → the norm in which the optimizer updates it; others are left out.
        parameters: the trained parameters.
        accumulate: micro-batches of a step.
        steps: how many steps are pooled.
    """

    def __init__(
        self,
        model: nn.Module,
        geometries: Mapping[str, DualNorm],
        parameters: Mapping[str, nn.Parameter],
        accumulate: int,
        steps: int,
    ) -> None:
        self._model, self._geometries = model, geometries
        self._parameters = {name: parameters[name] for name in geometries}
        self._folds = -(-FOLDS // accumulate)  # of a micro-batch
        self._means: list[dict[str, Tensor]] = []
        self._sizes: list[int] = []
        self._terms: deque[tuple[int, int, list[float]]] = deque(maxlen=steps)

    def add(self, found: Watched, micro: int) -> None:
        """The mean gradients of a micro-batch's folds; the graph is kept, and nothing arrives in `.grad`."""
        if micro == 0:
            self._means, self._sizes = [], []
        if found.count < 2 * self._folds:
            raise ValueError(f"{self._folds} folds of a micro-batch need two examples each; got {found.count} examples")
        with left_as_found(self._model):
            losses = found.per_example()
            for fold in range(self._folds):
                weights = torch.zeros_like(losses)
                size = len(weights[fold :: self._folds])
                weights[fold :: self._folds] = 1 / size
                shown = gradients(losses, weights, self._parameters.values(), hooks=True)
                pairs = zip(self._parameters.items(), shown, strict=True)
                self._means.append({name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs})
                self._sizes.append(size)

    def reading(self, loop: Loop, **about: Any) -> Reading | None:
        """Of the latest steps, this one included; None if its gradients were not finite."""
        with torch.no_grad():
            each = [
                terms_of_groups(geometry, torch.stack([mean[name] for mean in self._means]).double(), self._sizes)
                for name, geometry in self._geometries.items()
            ]
            terms = sum_of(each)
        self._means, batch = [], sum(self._sizes)
        values = torch.cat([terms.noise, terms.signal, terms.cross]).tolist()
        if not all(map(math.isfinite, values)):
            return None
        self._terms.append((loop.number, batch, values))
        geometry = next(iter(self._geometries.values()))
        pooled = sum_of(map(_terms, (kept for *_, kept in self._terms)))
        found = dual_norm_estimate(pooled, geometry=geometry, count=batch, confidence=about["confidence"])
        low, high = max(1.0, found.low), max(1.0, found.low, found.high)
        return Reading(
            step=loop.number, first_step=self._terms[0][0], examples=batch, batch_size=batch, usual_batch_size=batch,
            source=f"{len(self._sizes)} folds of {batch} examples", batch_size_bound=found.plug_in, low=low, high=high,
            lower_confidence_bound=low, unbounded_above=math.isinf(high), cannot_tell=low <= 1 < high,
            pooled_steps=len(self._terms), geometry="sign" if isinstance(geometry, Sign) else "spectral", **about,
        )  # fmt: skip

    def state(self) -> list[list[float]]:
        """The pooled terms as plain numbers."""
        return [[step, batch, *values] for step, batch, values in self._terms]

    def load(self, state: Sequence[Sequence[float]]) -> None:
        """Replace them."""
        self._terms.clear()
        self._terms.extend((int(step), int(batch), list(values)) for step, batch, *values in state)


def _terms(values: Sequence[float]) -> FoldTerms:
    folds = (len(values) - 2) // 3
    whole = torch.tensor(values, dtype=torch.float64)
    return FoldTerms(whole[: folds + 1], whole[folds + 1 : 2 * folds + 2], whole[2 * folds + 2 :])
