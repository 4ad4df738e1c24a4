"""Whether the members of a batch are independent draws, over a run's first readings; nothing is computed afterwards.

Two tests. Losses of examples a fixed distance apart in a batch are uncorrelated if examples are independent,
however the weights move; copies of an image and chunks of a document are not. A batch that is merely *sorted* shows
correlation at every small distance and the opposite at large ones, and is let pass.

And Û of a step, the mean product of two gradients of the same batch, is compared with the product of neighbouring
steps' mean gradients, which is that of different batches: both estimate ‖∇F‖², as long as the weights hardly move
between the two. Gradients are compared by sketches (random signs, folded into a few hundred sums).
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from variegrad.keys import generator
from variegrad.shapes import Float

SIZE = 257  # prime: layers of a width that divides it would line up
STEPS = 24
# Both must hold for a warning: this many standard errors, and an effect of this size.
CERTAIN, LARGE, CORRELATED = 4.0, 1.5, 0.1
ADVICE = (
    "copies of an image, chunks of a document, completions of a prompt? The batch is then worth fewer independent "
    "examples, and B_D comes out too low. Name the groups that are drawn independently, Monitor(groups=k) or "
    "watch(..., groups=ids)"
)


class Dependence:
    """Sketches of the gradients, and correlations of the losses, of the first steps that were measured."""

    def __init__(self) -> None:
        self._signs: dict[str, Tensor] = {}
        self._steps: list[tuple[float, list[float]]] = []
        self._correlations: list[list[float]] = []
        self.done = False

    def numbers(self, parameters: Mapping[str, nn.Parameter], losses: Tensor | None) -> Float[Tensor, " k"]:
        """Sums of `.grad` with random signs, and correlations of losses 1, 2, … b/2 places apart, around the end.

        Products of sketches are products of gradients, on average over signs.
        """
        total = torch.zeros(SIZE, device=next(iter(parameters.values())).device)
        for name, p in parameters.items():
            if p.grad is None:
                continue
            flat = (p.grad.to_dense() if p.grad.is_sparse else p.grad).detach()
            flat = (torch.view_as_real(flat.resolve_conj()) if flat.is_complex() else flat).reshape(-1).float()
            rows, rest = divmod(flat.numel(), SIZE)
            if name not in self._signs:
                draw = generator(0, "sketch", name).integers(0, 2, rows + 1)
                self._signs[name] = torch.from_numpy(2.0 * draw - 1).to(flat)
            signs = self._signs[name]
            if rows:
                total += signs[:rows] @ flat[: rows * SIZE].view(rows, SIZE)
            total[:rest] += signs[rows] * flat[rows * SIZE :]
        if losses is None or len(losses) < 8:
            return total.double()
        centred = losses.detach().double() - losses.detach().double().mean()
        spectrum = torch.fft.rfft(centred).abs().square()
        products = torch.fft.irfft(spectrum, len(centred))
        return torch.cat([total.double(), products[1 : len(centred) // 2 + 1] / products[0]])

    def add(self, mean_product: float, factor: float, numbers: Sequence[float]) -> str:
        """One step more; what to say if its examples depend on each other for certain. Sketches are of factor·∇."""
        self._steps.append((mean_product, [factor * value for value in numbers[:SIZE]]))
        if all(map(math.isfinite, numbers[SIZE:])):
            self._correlations.append(list(numbers[SIZE:]))
        if len(self._steps) < STEPS:
            return ""
        self.done = True
        said = self._of_losses() or self._of_gradients()
        self._steps, self._signs, self._correlations = [], {}, []
        return said

    def _of_losses(self) -> str:
        length, count = Counter(map(len, self._correlations)).most_common(1)[0] if self._correlations else (0, 0)
        if length < 4 or count < STEPS // 2:
            return ""
        alike = [one for one in self._correlations if len(one) == length]
        mean = [statistics.fmean(column) for column in zip(*alike, strict=True)]
        error = 1 / math.sqrt(2 * length * count)
        peak = max(mean)
        place = mean.index(peak)
        beside = max(mean[place - 1] if place else -1.0, mean[place + 1] if place + 1 < length else -1.0)
        # In a sorted batch correlation falls slowly with the distance, and examples that lie far apart are opposites.
        steep = peak - beside > max(beside / 3, CERTAIN * error)
        if peak > max(CORRELATED, 1.5 * CERTAIN * error) and steep and -min(mean) < 1 / length + 3 * error:
            return (
                f"losses of examples {place + 1} positions apart in a batch are correlated "
                f"({peak:.2f} over {count} steps): {ADVICE}"
            )
        return ""

    def _of_gradients(self) -> str:
        within = [product for product, _ in self._steps]
        sketches = torch.tensor([each for _, each in self._steps], dtype=torch.float64)
        products = sketches @ sketches.T
        # Of two distances the one that agrees better: weights that swing from step to step are not dependence.
        lags = [products.diagonal(lag).tolist() for lag in (1, 2)]
        between = max(lags, key=statistics.fmean)
        excess = [a - b for a, b in zip(within, between, strict=False)]
        error = statistics.stdev(excess) / math.sqrt(len(excess) / 2)  # neighbours share a step
        across = max(statistics.fmean(between), 0.0)
        ratio = statistics.fmean(within) / across if across else math.inf
        if statistics.fmean(excess) <= CERTAIN * error or ratio <= LARGE:
            return ""
        times = f"{ratio:.2g} times as much as" if ratio < 100 else "while they do not agree with"
        return (
            f"the gradients of one batch agree with each other {times} those of neighbouring steps: {ADVICE}, and "
            "shuffle"
        )
