"""One draw of a mechanism for a worker's whole gradient: m(Σ_i ∇f_i), and the mask that every worker can compute.

Not the distribution of one draw per example: the variance grows with the squared norm of the sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Size, Tensor

from variegrad.mechanisms.draws import Draws
from variegrad.mechanisms.dropconnect import DropConnect
from variegrad.mechanisms.finite import finite
from variegrad.mechanisms.law import Mechanism
from variegrad.mechanisms.moment_matched import MomentMatched
from variegrad.shapes import Bool, Float


@dataclass(frozen=True)
class WorkerKey:
    """What a worker's one draw is a function of, beside the parameter.

    Attributes:
        seed: the run's seed.
        at: samples seen before the step, or the number of the step if samples are not counted.
        worker: the rank.
    """

    seed: int
    at: int
    worker: int

    def draws(self, name: str, parameter: Tensor, norm: Tensor | None = None) -> Draws:
        """The draws for one parameter.

        Args:
            name: of the parameter.
            parameter: itself or its gradient, for shape, type and device.
            norm: ‖Σ_i ∇f_i‖ over all parameters, shape (1,).

        Returns:
            Draws for one row.
        """
        return Draws.keyed(self.seed, name, parameter, [self.worker], purpose="worker", at=self.at, norms=norm)


def norm_of(gradients: Mapping[str, Tensor]) -> Float[Tensor, 1]:
    """‖g‖ over all parameters.

    Args:
        gradients: by parameter.

    Returns:
        Float64; not finite if g is not.
    """
    return torch.stack([wide_of(g).double().square().sum() for g in gradients.values()]).sum().sqrt().reshape(1)


def surrogate(
    gradients: Mapping[str, Tensor], mechanism: Mechanism, key: WorkerKey, norm: Float[Tensor, 1] | None
) -> dict[str, Tensor]:
    """One draw of m for a whole gradient, in float32 at least.

    Args:
        gradients: by parameter, finite: a Bernoulli draw would turn NaN into a finite zero.
        mechanism: m.
        key: of the draw.
        norm: of `norm_of`, for a mechanism that needs it.

    Returns:
        m(g) by parameter.

    Raises:
        ValueError: if m has no draw for one gradient.
    """
    if isinstance(mechanism, MomentMatched):
        raise ValueError(f"{mechanism} stands for many draws at once; with one for each worker, use {mechanism.of}.")
    return {
        name: row_of(mechanism, wide_of(g).unsqueeze(0), key.draws(name, wide_of(g), norm))[0]
        for name, g in gradients.items()
    }


def drawn(gradients: Mapping[str, Tensor], mechanism: Mechanism, key: WorkerKey) -> Float[Tensor, " d"] | None:
    """The same in one vector, if there is one.

    Args:
        gradients: by parameter.
        mechanism: m.
        key: of the draw.

    Returns:
        m(g), all parameters flattened and concatenated; None if g or m(g) is not finite.
    """
    norm = norm_of(gradients)
    if not bool(norm.isfinite()):
        return None
    flat = torch.cat([each.reshape(-1) for each in surrogate(gradients, mechanism, key, norm).values()])
    return flat if bool(finite(flat)) else None


def row_of(mechanism: Mechanism, rows: Tensor, draws: Draws) -> Tensor:
    """`mechanism.draw`, refused if it returns anything but surrogates of the rows' shape.

    Args:
        mechanism: m.
        rows: gradients of one parameter.
        draws: their draws.

    Returns:
        The surrogates.

    Raises:
        ValueError: if a user's mechanism returned something else.
    """
    drawn: object = mechanism.draw(rows, draws)
    if not isinstance(drawn, Tensor) or drawn.shape != rows.shape:
        found = tuple(drawn.shape) if isinstance(drawn, Tensor) else type(drawn).__name__
        raise ValueError(
            f"{mechanism}.draw must return surrogates of the rows' shape {tuple(rows.shape)}; got {found}."
        )
    return drawn


def kept(shapes: Mapping[str, Size], mechanism: DropConnect, key: WorkerKey) -> Bool[Tensor, " d"]:
    """The coordinates that a worker's DropConnect keeps: the same function of the key on every rank.

    Args:
        shapes: of the parameters by name.
        mechanism: DropConnect.
        key: of the worker whose mask this is.

    Returns:
        The mask over all parameters, flattened and concatenated, on the CPU.
    """
    masks = [
        key.draws(name, torch.zeros(()).expand(shape)).bernoulli(1 - mechanism.p).reshape(-1)
        for name, shape in shapes.items()
    ]
    return torch.cat(masks)


def wide_of(gradient: Tensor) -> Tensor:
    """A gradient in float32 at least.

    Args:
        gradient: of any floating-point type.

    Returns:
        It, or its copy in float32.
    """
    return gradient.float() if gradient.dtype in (torch.float16, torch.bfloat16) else gradient
