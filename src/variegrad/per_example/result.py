"""What one batch says of its examples: from the rules' pass, or from the loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from variegrad.per_example import fallback
from variegrad.per_example.capture import Capture
from variegrad.per_example.rules.contribution import l1_norms, sq_norms
from variegrad.per_example.step import Step
from variegrad.shapes import Float


@dataclass(frozen=True)
class Norms:
    """What one batch says.

    Attributes:
        sq_norms: parameter → ‖∇f_i‖² restricted to it, float64.
        total: parameter → Σ_i ∇f_i over the whole batch.
        l1_norms: ‖∇f_i‖₁ over all parameters together, if asked for.
        fresh: the parameters whose total is a new tensor, not shared with anything.
    """

    sq_norms: Mapping[str, Float[Tensor, " m"]]
    total: Mapping[str, Tensor]
    l1_norms: Float[Tensor, " m"] | None = None
    fresh: frozenset[str] = frozenset()

    @classmethod
    def of(cls, step: Step, capture: Capture, wanted: Sequence[int] | None = None) -> Norms:
        """What a pass has collected, for some of its examples if they are named."""
        zeros = torch.zeros(capture.wanted, dtype=torch.float64, device=step.per_example.device)
        norms = {name: capture.sq_norms.get(name, zeros) for name in step.parameters}
        l1 = zeros if capture.l1 and capture.l1_norms is None else capture.l1_norms  # nothing arrived: all are zero
        if wanted is not None and list(wanted) != list(range(capture.wanted)):
            at = torch.as_tensor(wanted, device=zeros.device)
            norms = {name: each[at] for name, each in norms.items()}
            l1 = None if l1 is None else l1[at]
        made = capture.totals
        total = {name: made[name] if name in made else torch.zeros_like(p) for name, p in step.parameters.items()}
        return cls(norms, total, l1, frozenset(capture.fresh))

    @classmethod
    def by_loop(cls, step: Step, wanted: Sequence[int], *, l1: bool = False) -> Norms:
        """One backward pass for each example."""
        total = {name: torch.zeros_like(p) for name, p in step.parameters.items()}
        norms: dict[str, list[Tensor]] = {name: [] for name in step.parameters}
        absolute = []
        for gradient in fallback.loop(step.per_example, step.parameters, step.ends, wide=step.graph.low_precision):
            rows = {name: g.detach().unsqueeze(0) for name, g in gradient.items()}
            for name, row in rows.items():
                total[name] += row[0]
                norms[name].append(sq_norms(row))
            if l1:
                absolute.append(torch.stack([l1_norms(row) for row in rows.values()]).sum(0))
        at, none = torch.as_tensor(wanted, dtype=torch.long), step.per_example.detach().double()
        return cls(
            {name: torch.cat(each)[at] if each else none for name, each in norms.items()},
            total,
            (torch.cat(absolute)[at] if absolute else none) if l1 else None,
        )
