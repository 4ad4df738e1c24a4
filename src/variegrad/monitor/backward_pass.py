"""One backward pass of the user's, listened to: the weights of the losses, the norms of gradients, the sums of a cell.

Before the pass a single hook waits at the losses. When the pass begins it learns which factor the loop applied to each
loss (a mean, accumulation, a loss scale) and hooks the nodes that say something; when the pass ends nothing is left.
Gradients are read as they arrive at the parameters: before clipping, and without what `.grad` held before. Nothing is
read by the host: all numbers stay tensors on the gradients' device.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from variegrad.monitor.exchange.sums import MEASURED, SQ_NORMS_OF_SUMS, SUM_SQ_NORMS, cell, failed, measured, on_device
from variegrad.monitor.loss import Watched
from variegrad.monitor.norms import Euclidean
from variegrad.monitor.sources.self_check import SelfCheck
from variegrad.per_example.capture import Capture
from variegrad.per_example.routing import out_of_order
from variegrad.shapes import Float


class Unusable(Exception):  # noqa: N818
    """This backward pass says nothing; the message says why. An empty one needs no mention."""


@dataclass(kw_only=True, eq=False)
class Plan:
    """What one pass is listened to for.

    Attributes:
        parameters: the trained parameters.
        norm: of gradients.
        parts: part of the model → its parameters, for bounds of parts.
        capture: what listens for norms of examples, and of which; None without.
        probe: parameter → ‖Σε_i g_i‖² of a sign probe; None without.
        check: what to compare with the loop; None for nothing.
        reached: the parameters that gradients come to, as far as known.
        whole: whether ‖Σc_i g_i‖² of this pass is needed.
        sharded: whether gradients are seen where they are reduced, and only weights are read here.
    """

    parameters: Mapping[str, nn.Parameter]
    norm: Euclidean
    parts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    capture: Capture | None = None
    probe: Mapping[str, Tensor] | None = None
    check: SelfCheck | None = None
    reached: frozenset[str] | None = None
    whole: bool = True
    sharded: bool = False


class BackwardPass:
    """One watched backward pass; `ended` is called with it when it has ended."""

    def __init__(self, watched: Watched, plan: Plan, ended: Callable[[BackwardPass], None]) -> None:
        self.watched, self.plan = watched, plan
        self.weights: Float[Tensor, " groups"] | None = None
        self.dirty: Tensor | bool = False
        """Whether `.grad` was not zero when the pass began."""
        self.errors: Tensor | None = None
        """Of the check."""
        self.doubts: Tensor | None = None
        """What this batch broke of what was known of the structure: each is one if so."""
        self.problem: Exception | None = None
        self._ended = ended
        self._arrived: dict[str, Tensor | None] = {}
        self._numbers: Tensor | None = None
        self._order: list[Tensor] = []
        self._within = False
        self._handles: list[RemovableHandle] = []
        itself = weakref.ref(self)  # the graph must not own what owns the graph

        def began(gradients: tuple[Tensor | None, ...]) -> None:
            waiting = itself()
            if waiting is not None:
                waiting._start(gradients)

        self._handles.append(watched.root[0].register_prehook(began))

    @property
    def begun(self) -> bool:
        """Whether the backward pass came."""
        return self.weights is not None

    @property
    def reached(self) -> frozenset[str]:
        """The parameters that a gradient came to."""
        return frozenset(self._arrived)

    def cancel(self) -> None:
        """Take every hook away; no further call comes back."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def numbers(self) -> Float[Tensor, " k"]:
        """What was measured, once every gradient has arrived; NaN if something failed."""
        if self._numbers is None:
            try:
                if self.problem is None:
                    with torch.no_grad():
                        self._numbers = self._measured()
            except Exception as error:  # noqa: BLE001 - the user's backward pass must not fail for a reading
                self.problem = error
        if self._numbers is None or self.problem is not None:
            return failed(next(iter(self.plan.parameters.values())).device, MEASURED + 3 * len(self.plan.parts))
        return self._numbers

    def fields(self, numbers: Sequence[Any]) -> list[Any]:
        """The cell of `exchange.sums`, and W and A of each part, from the numbers: plain, or tensors."""
        how = {
            "normed": self.plan.capture is not None, "probed": self.plan.probe is not None,
            "scale_known": self.watched.scale_known,
        }  # fmt: skip
        found = cell(numbers[:MEASURED], self.watched.count, **how)
        for k in range(MEASURED, len(numbers), 3):
            total, norms, probe = numbers[k : k + 3]
            part = cell([*numbers[:3], total, numbers[4], norms, 0.0, probe], self.watched.count, **how)
            found += [part[SQ_NORMS_OF_SUMS], part[SUM_SQ_NORMS]]
        return found

    def sums(self) -> Float[Tensor, " numbers"]:
        """The fields on the gradients' device; NaN if the check found an error."""
        found = on_device(self.numbers(), self.fields)
        for doubt in (self.errors, self.doubts):
            found = found if doubt is None else torch.where(doubt.max() >= 1, torch.nan, found)
        return found

    def settle(self, doubts: Sequence[float]) -> bool:
        """Learn what was broken, for later batches; whether something was."""
        if not any(doubts):
            return False
        assert self.plan.capture is not None
        known, names = self.plan.capture.known, [*(self.plan.capture.doubts or {})]
        known.formed |= {name for name, broken in zip(names, doubts, strict=False) if broken}
        known.routed = known.routed and not any(doubts[len(names) :])
        return True

    def _start(self, gradients: tuple[Tensor | None, ...]) -> None:
        arrived = gradients[self.watched.root[1]]
        if self._within or self.begun or arrived is None:
            return
        self._within = True
        try:
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
            weights = arrived.detach().expand(self.watched.examples) if arrived.dim() == 0 else arrived.detach()
            self.weights = self.watched.of_groups(weights)
            self.dirty = _any([p.grad for p in self.plan.parameters.values() if p.grad is not None])
            if self.plan.check is not None:
                self.plan.check.expect(self.weights)
            self._hook(gradients)
        except Exception as error:  # noqa: BLE001 - as above
            self.problem = error
        finally:
            self._within = False

    def _hook(self, gradients: tuple[Tensor | None, ...]) -> None:
        root, capture = self.watched.root[0], self.plan.capture
        for name, node in self.watched.graph.leaves.items():
            self._handles.append(node.register_prehook(lambda g, name=name: self._arrive(name, g[0])))
        if capture is not None:
            # Of what the graph has saved, which is gone when the pass has ended.
            self._order = out_of_order([capture.graph.order[k] for k in capture.known.in_order])
            for node in capture.visits:
                if node is not root:
                    self._handles.append(node.register_prehook(lambda g, node=node: self._visit(node, g[0])))
            if root in capture.visits:
                self._visit(root, gradients[0])

    def _arrive(self, name: str, gradient: Tensor | None) -> None:
        if gradient is None or self.problem is not None:
            return
        try:
            self._arrived[name] = self.plan.norm.sq_norm(name, gradient) if self.plan.whole else None
            if self.plan.check is not None:
                self.plan.check.arrive(name, gradient)
        except Exception as error:  # noqa: BLE001 - as above
            self.problem = error

    def _visit(self, node: Node, gradient: Tensor | None) -> None:
        if gradient is None or self.problem is not None:
            return
        try:
            assert self.plan.capture is not None
            self.plan.capture.receive(node, gradient)
        except Exception as error:  # noqa: BLE001 - as above
            self.problem = error

    def _finish(self) -> None:
        # Once more around: a distributed wrapper's own end of the pass, queued since, comes first.
        torch.autograd.Variable._execution_engine.queue_callback(self._end)

    def _end(self) -> None:
        self.cancel()
        if not self.plan.sharded:
            self.numbers()
        self._ended(self)

    def _measured(self) -> Float[Tensor, " k"]:
        plan, capture = self.plan, self.plan.capture
        if self.weights is None or not (self._arrived or self.watched.examples == 0):
            raise Unusable  # torch.autograd.grad: no gradient came to a parameter
        if plan.reached is not None and self.watched.examples and self.reached != plan.reached:
            raise Unusable  # of some parameters only
        zero = torch.zeros((), dtype=torch.float64, device=self.weights.device)
        arrived = {name: norm for name, norm in self._arrived.items() if norm is not None}
        norms: Mapping[str, Tensor] = {}
        if capture is not None:
            capture.finish(plan.parameters)
            if capture.late:
                capture.known.leave_out(capture.late, capture.graph)
                raise Unusable(f"how {sorted(capture.late)} are used changed from one batch to the next")
            norms = capture.sq_norms
            if flags := [*(capture.doubts or {}).values(), *self._order]:
                self.doubts = torch.stack([flag.to(zero.device) for flag in flags]).double()
        if plan.check is not None:
            self.errors = plan.check.errors(norms)
        total = _sum([*arrived.values()], zero) if plan.whole else zero + math.nan
        whole = measured(
            self.weights,
            total,
            norms=None if capture is None else _sum([*norms.values()], zero),
            rows=None if capture is None else capture.examples,
            probe=None if plan.probe is None else _sum([*plan.probe.values()], zero),
        )
        if not plan.parts:
            return whole
        found = [whole]
        for names in plan.parts.values():
            total = _sum([arrived[name] for name in names if name in arrived], zero) if plan.whole else zero + math.nan
            inside = _sum([norms[name].sum() for name in names if name in norms], zero)
            probe = _sum([plan.probe[name] for name in names if name in plan.probe] if plan.probe else [], zero)
            found.append(torch.stack([total, inside, probe]))
        return torch.cat(found)


def _sum(tensors: Sequence[Tensor], zero: Tensor) -> Tensor:
    if len(tensors) < 2:
        return tensors[0] if tensors else zero
    return torch.stack(list(tensors)).sum(0)


def _any(gradients: Sequence[Tensor]) -> Tensor | bool:
    if not gradients:
        return False
    local = [getattr(g, "_local_tensor", g) for g in gradients]  # an operation on a sharded one would be a collective
    return torch.stack([g._values().any() if g.is_sparse else g.any() for g in local]).any()
