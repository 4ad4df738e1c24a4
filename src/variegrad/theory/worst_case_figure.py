"""The picture of Theorem 6; a file of its own, since a calculator should not wait for a plotting library."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from variegrad.theory.worst_case_rates import WorstCase


def plot(cases: Sequence[WorstCase]) -> Figure:
    """The errors of several cases over the gradients computed, with the theorem's floor 0.1·(1+δ)γM²/λ.

    Args:
        cases: runs to compare, from `worst_case`.

    Returns:
        A figure.

    Source: Theorem 6.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for case in cases:
        updates = np.cumsum([0, *case.batch_sizes])
        floor = 0.1 * (1 + case.delta) * case.step_size * case.second_moment / case.strong_convexity
        (line,) = axes.plot(updates[1:], case.errors[1:], label=f"B = {case.batch_size:,}, δ = {case.delta:.3g}")
        axes.plot(updates[[1, -1]], [floor, floor], linestyle=":", color=line.get_color())
    axes.set(
        xlabel="gradients computed",
        ylabel="E‖w − w*‖²",
        yscale="log",
        xscale="log",
        title="Theorem 6: the error grows as 1+δ (dotted: 0.1·(1+δ)γM²/λ)",
    )
    axes.legend()
    return figure
