"""Backward passes that only look: nothing is accumulated into any `.grad`, and no hook runs that was not asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from variegrad.per_example.state import aside
from variegrad.shapes import Float

SIXTEEN = (torch.float16, torch.bfloat16)


class _SumsInSinglePrecision(TorchDispatchMode):
    """Each operation on 16-bit numbers is done in 32 bits and rounded once: in 16, long sums stop growing."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        low = next((a.dtype for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor) and a.dtype in SIXTEEN), None)
        views = any(a.alias_info is not None for a in (*func._schema.arguments, *func._schema.returns))
        if low is None or views or "dtype" in kwargs:
            return func(*args, **kwargs)
        wide = tree_map(lambda a: a.float() if isinstance(a, Tensor) and a.dtype in SIXTEEN else a, (args, kwargs))
        found = func(*wide[0], **wide[1])
        return tree_map(lambda a: a.to(low) if isinstance(a, Tensor) and a.dtype == torch.float32 else a, found)


def gradients(
    per_example: Float[Tensor, " b"],
    weights: Float[Tensor, " b"],
    parameters: Iterable[Tensor],
    *,
    others: Iterable[Tensor] = (),
    hooks: bool = False,
    wide: bool = False,
) -> list[Tensor | None]:
    """Σ_i c_i∇f_i by `autograd.grad`, so that nothing is accumulated, not even in `others`; the graph is kept.

    With `hooks` those of the parameters run; with `wide` sums of 16-bit numbers are taken in 32.
    """
    targets = [*parameters]
    if not targets:
        return []
    # A caller may have switched gradients off around a graph that exists.
    precision = _SumsInSinglePrecision() if wide else nullcontext()  # type: ignore[no-untyped-call]
    with torch.enable_grad(), aside({*targets, *others}, hooks=hooks) as passes, precision:
        # Of the weighted sum: with `grad_outputs` torch would import a library of its own first, which takes seconds.
        shown: Sequence[Tensor | None] = torch.autograd.grad(
            [(per_example * weights).sum()], targets, retain_graph=True, allow_unused=True
        )
        if not passes.touched:
            return list(shown)
        # A custom Function has differentiated inside its backward, and left there what the graph does not show.
        pairs = zip(shown, [p.grad for p in targets], strict=True)
        return [g if hidden is None else hidden if g is None else g + hidden for g, hidden in pairs]
