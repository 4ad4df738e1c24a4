"""The norm in which an optimizer takes steepest descent steps, and the noise scale that belongs to it.

A step of steepest descent in a norm ‖·‖ moves along u(g) = argmax_{‖u‖≤1}⟨u, g⟩, and what it gains is measured by the
dual norm ‖g‖_* = ⟨u(g), g⟩. With a noise N such that E‖ḡ_B − ∇F‖_* ≤ N/√B for the mean ḡ_B of B examples, the batch
size beyond which noise no longer dominates is (N/‖∇F‖_*)²:

    geometry          optimizers                  ‖g‖_*         N
    Euclidean         SGD, with momentum or not   ‖g‖₂          √tr Σ
    Preconditioned    Adam and its relatives      ‖√P·g‖₂       √tr PΣ
    Sign              signSGD, Signum, Lion       ‖g‖₁          Σ_j σ_j
    Spectral          Muon                        nuclear norm  tr E[ξξᵀ]^½, ξ a gradient's noise, as a matrix

The first two are inner-product norms: `estimate(preconditioner=)` and every formula of this package apply to √P·g. The
last two are not, and have estimators of their own (`variegrad.estimators.dual_norm`).

Source: Naganuma et al. (2026), arXiv 2602.03001, for Sign and Spectral.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from variegrad.estimators.preconditioner import Preconditioner, root_preconditioner
from variegrad.shapes import Float


@dataclass(frozen=True)
class Euclidean:
    """SGD: the squared norm is Σ|g_j|². The noise scale is B_D − 1."""

    def __str__(self) -> str:
        return "Euclidean (SGD)"

    def sq_norm(self, name: str, gradient: Tensor) -> Float[Tensor, ""]:  # noqa: ARG002
        """‖g‖² of one parameter's gradient.

        Args:
            name: of the parameter.
            gradient: real or complex.

        Returns:
            A float64 scalar on the gradient's device: nothing is read by the host.
        """
        return _sq_norm(gradient)


@dataclass(frozen=True)
class Preconditioned:
    """Adam and its relatives: the squared norm is Σ P_j|g_j|², P = 1/(√v̂ + ε).

    Attributes:
        roots: parameter name → √P.
    """

    roots: Mapping[str, Tensor] = field(repr=False)

    @classmethod
    def of(cls, preconditioner: Preconditioner, parameters: Mapping[str, nn.Parameter]) -> Preconditioned:
        """The geometry of an optimizer as it stands: v̂ must not know the gradients that are measured with it.

        Args:
            preconditioner: see `root_preconditioner`.
            parameters: those that are measured, by name.

        Returns:
            The geometry.

        Raises:
            TypeError: as `root_preconditioner`.
            ValueError: as `root_preconditioner`.
        """
        return cls(root_preconditioner(preconditioner, parameters))

    def __str__(self) -> str:
        return "preconditioned (Adam)"

    def sq_norm(self, name: str, gradient: Tensor) -> Float[Tensor, ""]:
        """‖√P·g‖² of one parameter's gradient.

        Args:
            name: of the parameter.
            gradient: real or complex.

        Returns:
            A float64 scalar on the gradient's device.
        """
        root = self.roots[name]
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            values = gradient.values()
            return _sq_norm(values * root[tuple(gradient.indices())].to(values.dtype))
        real = torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient
        return _sq_norm(real * root.to(real.dtype))


class DualNorm(ABC):
    """A norm that is no inner product's: how large a gradient is, and which step is the steepest."""

    def covers(self, gradient: Tensor) -> bool:  # noqa: ARG002
        """Whether the optimizer would update a parameter of this shape in this geometry."""
        return True

    @abstractmethod
    def steepest(self, gradient: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
        """u(g), the unit step along which g gains most: ⟨u(g), g⟩ = ‖g‖_*."""

    @abstractmethod
    def of(self, gradient: Float[Tensor, " *shape"]) -> Float[Tensor, ""]:
        """‖g‖_*, float64."""

    @abstractmethod
    def moment(self, rows: Float[Tensor, t * shape]) -> Tensor:
        """Σ_i of what the noise is made of: g_i² for each coordinate, or g_i·g_iᵀ."""

    @abstractmethod
    def noise(self, covariance: Tensor) -> Float[Tensor, ""]:
        """N from the covariance, in the form of `moment`."""


@dataclass(frozen=True)
class Sign(DualNorm):
    """signSGD, Signum, Lion: steps ±γ in every coordinate. ‖g‖_* = Σ_j|g_j|, N = Σ_j σ_j."""

    def __str__(self) -> str:
        return "sign (ℓ∞; signSGD, Signum, Lion)"

    def steepest(self, gradient: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
        return gradient.sign()

    def of(self, gradient: Float[Tensor, " *shape"]) -> Float[Tensor, ""]:
        return gradient.abs().sum(dtype=torch.float64)

    def moment(self, rows: Float[Tensor, t * shape]) -> Tensor:
        return rows.square().sum(0)

    def noise(self, covariance: Tensor) -> Float[Tensor, ""]:
        return covariance.clamp(min=0).sqrt().sum(dtype=torch.float64)


@dataclass(frozen=True)
class Spectral(DualNorm):
    """Muon: steps of spectral norm γ for every matrix. ‖g‖_* is the sum of singular values, N = tr E[ξξᵀ]^½.

    A weight of more than two dimensions is the matrix (first, all others), as Muon takes it. ξξᵀ is formed on the
    shorter
    side: both sides bound the noise, and this is the smaller bound.
    """

    def __str__(self) -> str:
        return "spectral (S∞; Muon)"

    def covers(self, gradient: Tensor) -> bool:
        return gradient.dim() >= 2 and not gradient.is_complex()

    def steepest(self, gradient: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
        left, values, right = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
        # Directions without gradient have no steepest step: any choice would be noise.
        kept = (values > values[:1] * torch.finfo(values.dtype).eps * max(gradient.shape)).to(values.dtype)
        step: Tensor = (left * kept) @ right
        return step.view_as(gradient)

    def of(self, gradient: Float[Tensor, " *shape"]) -> Float[Tensor, ""]:
        values: Tensor = torch.linalg.svdvals(gradient.flatten(1))
        return values.sum(dtype=torch.float64)

    def moment(self, rows: Float[Tensor, t * shape]) -> Tensor:
        matrices = rows.flatten(2)
        wide = matrices.shape[1] <= matrices.shape[2]
        side = matrices.transpose(0, 1).flatten(1) if wide else matrices.transpose(1, 2).transpose(0, 1).flatten(1)
        return side @ side.T

    def noise(self, covariance: Tensor) -> Float[Tensor, ""]:
        values: Tensor = torch.linalg.eigvalsh(covariance.double())
        return values.clamp(min=0).sqrt().sum()


Geometry = Euclidean | Preconditioned | DualNorm

# By the name of the class, its bases included: Lion, Signum and Muon are in many libraries.
SIGN_METHODS = {"signsgd", "signum", "lion"}
SPECTRAL_METHODS = {"muon"}
EUCLIDEAN_METHODS = {"sgd", "asgd"}


def geometry_of(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Geometry]:
    """The geometry in which an optimizer updates each parameter.

    Args:
        optimizer: SGD; one that keeps a second moment (Adam, AdamW, NAdam, RAdam, RMSprop, Adagrad, Adamax) and has
            taken a step; signSGD, Signum, Lion; Muon, also with `use_muon` groups beside Adam's.
        parameters: those that are measured, by name.

    Returns:
        Name → geometry, for the parameters that the optimizer updates. Parameters of one kind share one object.

    Raises:
        TypeError: for an optimizer of another kind.
        ValueError: if a second moment is missing or does not fit.
    """
    names = {parameter: name for name, parameter in parameters.items()}
    kinds = {base.__name__.lower() for base in type(optimizer).__mro__}
    plain, sign, spectral = Euclidean(), Sign(), Spectral()
    found: dict[str, Geometry] = {}
    adaptive: list[str] = []
    for group in optimizer.param_groups:
        ours = [names[p] for p in group["params"] if p in names]
        if group.get("use_muon", bool(kinds & SPECTRAL_METHODS) and "use_muon" not in group):
            found |= dict.fromkeys(ours, spectral)
        elif kinds & SIGN_METHODS:
            found |= dict.fromkeys(ours, sign)
        elif kinds & EUCLIDEAN_METHODS:
            found |= dict.fromkeys(ours, plain)
        else:
            adaptive += ours
    if adaptive:
        theirs = Preconditioned.of(optimizer, {name: parameters[name] for name in adaptive})
        found |= dict.fromkeys(adaptive, theirs)
    return found


def _sq_norm(gradient: Tensor) -> Float[Tensor, ""]:
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    norm: Tensor = torch.linalg.vector_norm(values, dtype=torch.float64)
    return norm.square()
