"""One backward pass of the user's, listened to: the weights of the losses, the norms of gradients, the sums of a cell.

Before the pass a single hook waits at the losses. When the pass begins it learns which factor the loop applied to each
loss (a mean, accumulation, a loss scale) and hooks the nodes that say something; when the pass ends nothing is left.
Gradients are read as they arrive at the parameters: before clipping, and without what `.grad` held before. Nothing is
read by the host: all numbers stay tensors on the gradients' device.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from variegrad.monitor.exchange.sums import cell_sums, failed
from variegrad.monitor.loss import Watched
from variegrad.monitor.norms import Euclidean
from variegrad.monitor.sources.self_check import SelfCheck
from variegrad.per_example.capture import Capture
from variegrad.shapes import Float


class Unusable(Exception):  # noqa: N818
    """This backward pass says nothing; the message says why. An empty one needs no mention."""


class BackwardPass:
    """One watched backward pass.

    Args:
        watched: the losses.
        parameters: the trained parameters.
        norm: of gradients.
        capture: what listens for norms of examples, and of which; None without.
        rows: the examples that `capture` looks at.
        probe: ‖Σε_i g_i‖² of a sign probe; None without.
        check: what to compare with the loop; None for nothing.
        reached: the parameters that gradients come to, as far as known.
        sharded: whether gradients are seen where they are reduced, and only weights are read here.
        ended: called when the pass has ended.
    """

    def __init__(
        self,
        watched: Watched,
        parameters: Mapping[str, nn.Parameter],
        norm: Euclidean,
        *,
        capture: Capture | None,
        rows: Sequence[int],
        probe: Tensor | None,
        check: SelfCheck | None,
        reached: frozenset[str] | None,
        sharded: bool,
        ended: Callable[[BackwardPass], None],
    ) -> None:
        self.watched, self.probed, self.capturing, self.check = watched, probe is not None, capture is not None, check
        self.weights: Float[Tensor, " groups"] | None = None
        self.dirty: Tensor | bool = False
        """Whether `.grad` was not zero when the pass began."""
        self.errors: Tensor | None = None
        self.problem: Exception | None = None
        self._parameters, self._norm = parameters, norm
        self._capture, self._rows, self._probe, self._reached, self._ended = capture, rows, probe, reached, ended
        self._sharded = sharded
        self._arrived: dict[str, Tensor] = {}
        self._cell: Tensor | None = None
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

    def cell(self) -> Float[Tensor, " numbers"]:
        """The sums of this cell, once every gradient has arrived; NaN if something failed."""
        if self._cell is None:
            try:
                if self.problem is None:
                    with torch.no_grad():
                        self._cell = self._sums()
            except Exception as error:  # noqa: BLE001 - the user's backward pass must not fail for a reading
                self.problem = error
        if self._cell is None or self.problem is not None:
            return failed(next(iter(self._parameters.values())).device)
        return self._cell

    def _start(self, gradients: tuple[Tensor | None, ...]) -> None:
        arrived = gradients[self.watched.root[1]]
        if self._within or self.begun or arrived is None:
            return
        self._within = True
        try:
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
            weights = arrived.detach().expand(self.watched.examples) if arrived.dim() == 0 else arrived.detach()
            self.weights = self.watched.of_groups(weights)
            self.dirty = _any([p.grad for p in self._parameters.values() if p.grad is not None])
            if self.check is not None:
                self.check.expect(self.weights)
            self._hook(gradients)
        except Exception as error:  # noqa: BLE001 - as above
            self.problem = error
        finally:
            self._within = False

    def _hook(self, gradients: tuple[Tensor | None, ...]) -> None:
        root = self.watched.root[0]
        for name, node in self.watched.graph.leaves.items():
            self._handles.append(node.register_prehook(lambda g, name=name: self._arrive(name, g[0])))
        if self._capture is not None:
            for node in self._capture.visits:
                if node is not root:
                    self._handles.append(node.register_prehook(lambda g, node=node: self._visit(node, g[0])))
            if root in self._capture.visits:
                self._visit(root, gradients[0])

    def _arrive(self, name: str, gradient: Tensor | None) -> None:
        if gradient is None or self.problem is not None:
            return
        try:
            self._arrived[name] = self._norm.sq_norm(name, gradient)
            if self.check is not None:
                self.check.arrive(name, gradient)
        except Exception as error:  # noqa: BLE001 - as above
            self.problem = error

    def _visit(self, node: Node, gradient: Tensor | None) -> None:
        if gradient is None or self.problem is not None:
            return
        try:
            assert self._capture is not None
            self._capture.receive(node, gradient)
        except Exception as error:  # noqa: BLE001 - as above
            self.problem = error

    def _finish(self) -> None:
        # Once more around: a distributed wrapper's own end of the pass, queued since, comes first.
        torch.autograd.Variable._execution_engine.queue_callback(self._end)

    def _end(self) -> None:
        self.cancel()
        if not self._sharded:
            self.cell()
        self._ended(self)

    def _sums(self) -> Float[Tensor, " numbers"]:
        if self.weights is None or not (self._arrived or self.watched.examples == 0):
            raise Unusable  # torch.autograd.grad: no gradient came to a parameter
        if self._reached is not None and self.watched.examples and self.reached != self._reached:
            raise Unusable  # of some parameters only
        zero = torch.zeros((), dtype=torch.float64, device=self.weights.device)
        total = torch.stack([*self._arrived.values(), zero]).sum()
        norms = None
        if self._capture is not None:
            self._capture.finish(self._parameters)
            if self._capture.late:
                self._capture.known.leave_out(self._capture.late, self._capture.graph)
                raise Unusable(f"how {sorted(self._capture.late)} are used changed from one batch to the next")
            norms = torch.stack(list(self._capture.sq_norms.values())).sum(0)
        if self.check is not None:
            self.errors = self.check.errors(self._capture.sq_norms if self._capture is not None else {})
        rows = None if len(self._rows) == len(self.weights) else self._rows
        sums = cell_sums(
            self.weights, total, norms=norms, rows=rows, probe=self._probe, scale_known=self.watched.scale_known
        )
        if self.errors is None:
            return sums
        return torch.where(self.errors.max() > 1, torch.nan, sums)


def _any(gradients: Sequence[Tensor]) -> Tensor | bool:
    if not gradients:
        return False
    local = [getattr(g, "_local_tensor", g) for g in gradients]  # an operation on a sharded one would be a collective
    return torch.stack([g._values().any() if g.is_sparse else g.any() for g in local]).any()
