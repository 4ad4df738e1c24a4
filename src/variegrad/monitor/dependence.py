"""Whether the members of a batch are independent draws, or agree more with each other than with those of other steps.

Û of a step is the mean product of two gradients of the same batch. The product of two steps' mean gradients is that of
different batches. If examples are drawn independently both estimate ‖∇F‖², as long as the weights hardly move between
the two; copies of one image or chunks of one document in a batch make the first larger, and B_D too low by that factor.
Steps are compared by sketches of their gradients (random signs, folded into a few hundred sums) over a run's first
readings; nothing is computed afterwards.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from variegrad.keys import generator
from variegrad.shapes import Float

SIZE = 257  # prime: layers of a width that divides it would line up
STEPS = 24
# Both must hold for a warning: so many standard errors, and so large an effect.
CERTAIN, LARGE = 4.0, 1.5


class Dependence:
    """Sketches of the gradients of the first steps that were looked at."""

    def __init__(self) -> None:
        self._signs: dict[str, Tensor] = {}
        self._steps: list[tuple[float, list[float]]] = []
        self.done = False

    def sketch(self, parameters: Mapping[str, nn.Parameter]) -> Float[Tensor, " size"]:
        """Sums of `.grad` with random signs: products of sketches are products of gradients, on average over signs."""
        total = torch.zeros(SIZE, device=next(iter(parameters.values())).device)
        for name, p in parameters.items():
            if p.grad is None:
                continue
            flat = (p.grad.to_dense() if p.grad.is_sparse else p.grad).detach().reshape(-1).float()
            rows, rest = divmod(flat.numel(), SIZE)
            if name not in self._signs:
                draw = generator(0, "sketch", name).integers(0, 2, rows + 1)
                self._signs[name] = torch.from_numpy(2.0 * draw - 1).to(flat)
            signs = self._signs[name]
            if rows:
                total += signs[:rows] @ flat[: rows * SIZE].view(rows, SIZE)
            total[:rest] += signs[rows] * flat[rows * SIZE :]
        return total.double()

    def add(self, mean_product: float, sketch: Sequence[float]) -> str:
        """One step more, of the mean gradient's sketch; what to say if Û is too large for certain."""
        self._steps.append((mean_product, list(sketch)))
        if len(self._steps) < STEPS:
            return ""
        self.done = True
        within = [product for product, _ in self._steps]
        sketches = torch.tensor([each for _, each in self._steps], dtype=torch.float64)
        self._steps, self._signs = [], {}
        products = sketches @ sketches.T
        # Of two distances the one that agrees better: weights that swing from step to step are not dependence.
        lags = [products.diagonal(lag).tolist() for lag in (1, 2)]
        between = max(lags, key=statistics.fmean)
        excess = [a - b for a, b in zip(within, between, strict=False)]
        error = statistics.stdev(excess) / math.sqrt(len(excess) / 2)  # neighbours share a step
        across = max(statistics.fmean(between), 0.0)
        ratio = statistics.fmean(within) / across if across else math.inf
        return warning(ratio) if statistics.fmean(excess) > CERTAIN * error and ratio > LARGE else ""


def warning(ratio: float) -> str:
    """What to say of dependent examples."""
    times = f"{ratio:.2g} times as much as" if ratio < 100 else "while they do not agree with"
    return (
        f"gradients of one batch agree with each other {times} those of neighbouring steps. Its examples seem to "
        "depend on each other (copies of an image, chunks of a document, completions of a prompt), or the batches are "
        "not shuffled: B_D is then too low, by about this factor. Name the groups that are drawn independently, "
        "Monitor(groups=k) or watch(..., groups=ids), and shuffle"
    )
