"""The check of a reading: two examples and the whole weighted gradient, by extra backward passes on the same graph.

What arrives at the parameters in the user's own backward pass must be Σc_i∇f_i of what was watched, and nothing else: a
weight penalty, or another loss on the same model, would be taken for noise or signal of the examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from variegrad.per_example.verify import LOW_PRECISION_TOLERANCE, TOLERANCE, Fingerprint, fingerprint


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What the extra passes said, and what arrived.

    Attributes:
        alone: position among the watched examples → c_i²‖∇f_i‖² by parameter.
        whole: Σc_i∇f_i by parameter, for those that were asked for and that a gradient reaches.
        tolerance: relative.
        arrived: the same parameters in the user's backward pass.
    """

    alone: Mapping[int, Mapping[str, float]]
    whole: Mapping[str, Fingerprint]
    tolerance: float
    arrived: dict[str, Fingerprint] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        """Whether there was anything to compare."""
        return all(math.isfinite(f.sq_norm) for f in self.whole.values())

    def arrive(self, name: str, gradient: Tensor) -> None:
        """Note a gradient that arrived.

        Args:
            name: of the parameter.
            gradient: as it arrived.
        """
        if name in self.whole:
            self.arrived[name] = fingerprint(gradient)

    def complaint(self, sq_norms: Mapping[str, Float[Tensor, " m"]]) -> str | None:
        """What does not agree.

        Args:
            sq_norms: c_i²‖∇f_i‖² by parameter, as the rules found them.

        Returns:
            A sentence, or None.
        """
        for place, norms in self.alone.items():
            size = sum(norms.values())
            for name, norm in norms.items():
                found = float(sq_norms[name][place]) if name in sq_norms else 0.0
                if abs(found - norm) > self.tolerance * size:
                    return (
                        f"the gradient of an example alone differs at parameter {name!r} from what the backward pass "
                        f"showed (relative {abs(found - norm) / size:.2g}); is another loss computed from the same "
                        "hidden values differentiated along with the watched one?"
                    )
        scale = sum(f.sq_norm for f in self.whole.values())
        scale += max((sum(norms.values()) for norms in self.alone.values()), default=0.0)
        zero = Fingerprint(0.0, 0.0)
        for name, expected in self.whole.items():
            found_whole = self.arrived.get(name, zero)
            off = max(
                abs(found_whole.sq_norm - expected.sq_norm) / scale if scale else found_whole.sq_norm,
                abs(found_whole.projection - expected.projection) / scale**0.5 if scale else 0.0,
            )
            if off > 10 * self.tolerance:
                return (
                    f"the gradient that arrived at parameter {name!r} is not that of the watched losses: something "
                    "else was differentiated along with them (a weight penalty, an auxiliary loss). Move a penalty "
                    "into the optimizer's weight_decay, or add what belongs to each example to its loss before watch."
                )
        return None


def loop_agreement(
    per_example: Float[Tensor, " b"],
    weights: Float[Tensor, " b"],
    examples: list[int],
    to_compare: Mapping[str, nn.Parameter],
    *,
    low_precision: bool,
) -> Agreement:
    """Differentiate some examples alone, and the weighted sum of all.

    Args:
        per_example: the losses; their graph is kept.
        weights: c, one an example.
        examples: which to differentiate alone; none for the weighted sum only.
        to_compare: the parameters whose gradients are wanted.
        low_precision: whether gradients are rounded to 16 bits on the way.

    Returns:
        What must agree with the user's backward pass.
    """

    def prints(weight: Tensor) -> dict[str, Fingerprint]:
        # Not `backward`: that would run the hooks of a distributed wrapper.
        found: tuple[Tensor | None, ...] = torch.autograd.grad(
            [per_example], list(to_compare.values()), [weight.to(per_example)], retain_graph=True, allow_unused=True
        )
        return {name: fingerprint(g) for name, g in zip(to_compare, found, strict=True) if g is not None}

    alone = {}
    for i in examples:
        one = torch.zeros_like(weights)
        one[i] = weights[i]
        alone[i] = {name: f.sq_norm for name, f in prints(one).items()}
    dtype = next(iter(to_compare.values())).dtype
    return Agreement(
        alone=alone,
        whole=prints(weights),
        tolerance=LOW_PRECISION_TOLERANCE if low_precision else TOLERANCE.get(dtype, LOW_PRECISION_TOLERANCE),
    )
