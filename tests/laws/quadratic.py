"""A problem on which every constant of Theorems 1-5 is known: f_i(w) = ½(w − x_i)ᵀH(w − x_i), H diagonal.

∇f_i = H(w − x_i), w* = mean of x. Moments of the iterates obey an exact recurrence, coordinate by coordinate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Quadratic:
    curvatures: np.ndarray
    points: np.ndarray

    @property
    def optimum(self) -> np.ndarray:
        return self.points.mean(axis=0)

    @property
    def variances(self) -> np.ndarray:
        return self.points.var(axis=0)

    def gradients(self, w: np.ndarray) -> np.ndarray:
        return self.curvatures * (w - self.points)

    def second_moment(self, sq_distances: np.ndarray) -> float:
        """E (1/n)Σ‖∇f_i(w)‖², from E(w_j − w*_j)²."""
        return float((self.curvatures**2 * (sq_distances + self.variances)).sum())

    def sq_gradient(self, sq_distances: np.ndarray) -> float:
        """E ‖∇F(w)‖²."""
        return float((self.curvatures**2 * sq_distances).sum())

    def gap(self, sq_distances: np.ndarray) -> float:
        """E F(w) − F*."""
        return float((self.curvatures * sq_distances).sum() / 2)

    def run(self, start: np.ndarray, *, step_size: float, batch_size: int, iterations: int) -> np.ndarray:
        """E(w_j − w*_j)² of every iterate, exactly: x ↦ (1−γBh)²x + γ²h²B·Var."""
        h, x = self.curvatures, np.square(start - self.optimum)
        path = [x]
        for _ in range(iterations):
            x = (1 - step_size * batch_size * h) ** 2 * x + batch_size * (step_size * h) ** 2 * self.variances
            path.append(x)
        return np.array(path)

    def start(self) -> np.ndarray:
        return self.optimum + 1.0

    @property
    def worst_second_moment(self) -> float:
        """M² over every point the runs of these tests reach in mean square, all no farther than the start."""
        return self.second_moment(np.square(self.start() - self.optimum))

    @property
    def least_bound(self) -> float:
        """B_D at the start, where ‖∇F‖² is largest: M²/‖∇F‖²."""
        far = np.square(self.start() - self.optimum)
        return self.second_moment(far) / self.sq_gradient(far)


def problem(seed: int, curvatures: tuple[float, ...] = (1.0, 0.5, 2.0, 1.5)) -> Quadratic:
    generator = np.random.default_rng(seed)
    return Quadratic(curvatures=np.array(curvatures), points=3 * generator.standard_normal((40, len(curvatures))))
