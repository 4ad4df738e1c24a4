"""Listening to one backward pass of the user's: the weights of the losses, the gradients' norms, the sums of a cell.

Before the pass a single hook waits at the losses. When the pass begins it learns what the loop made of each loss (a
mean, accumulation, a loss scale) and hooks the nodes that say something; when the pass ends nothing is left. Gradients
are read as they arrive at the parameters: before clipping, and without what `.grad` held before.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from variegrad.monitor.agreement import Agreement, loop_agreement
from variegrad.monitor.probe import sq_norm, sum_sq_norms
from variegrad.monitor.step_sums import StepSums
from variegrad.monitor.watched import Watched
from variegrad.per_example.capture import Capture
from variegrad.per_example.evaluate import left_as_found

# Weights of a mean are equal to the last bit; products with a scale may differ by rounding.
EQUAL = 1e-5


class Unusable(Exception):  # noqa: N818
    """This backward pass says nothing; the message says why. An empty one needs no mention."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """What to compare with the loop.

    Attributes:
        model: the unwrapped model, whose buffers and random state stay as they are.
        per_example: the losses to differentiate.
        to_compare: the parameters whose sums are compared.
        alone: whether two examples are differentiated alone.
    """

    model: nn.Module
    per_example: Tensor
    to_compare: Mapping[str, nn.Parameter]
    alone: bool


class Listening:
    """One watched backward pass.

    Args:
        watched: the losses.
        parameters: the trained parameters.
        capture: what listens for norms of examples; None without.
        probe: ‖Σε_i g_i‖² of a sign probe; None without.
        check: what to compare with the loop; None for nothing.
        reached: the parameters that gradients come to, as far as known.
        begin: called when the pass begins, may raise `Unusable`.
        end: called when it has ended, with an error or None.
    """

    def __init__(
        self,
        watched: Watched,
        parameters: Mapping[str, nn.Parameter],
        *,
        capture: Capture | None,
        probe: float | None,
        check: Check | None,
        reached: frozenset[str] | None,
        begin: Callable[[], None],
        end: Callable[[Exception | None], None],
    ) -> None:
        self.watched, self.parameters = watched, parameters
        self.capture, self.probe = capture, probe
        self._check, self._reached, self._begin, self._end = check, reached, begin, end
        self._agreement: Agreement | None = None
        self._weights: list[float] | None = None
        self._arrived: dict[str, Tensor] = {}
        self._cell: StepSums | None = None
        self._error: Exception | None = None
        self._within = False
        self._handles: list[RemovableHandle] = []
        itself = weakref.ref(self)  # the graph must not own what owns the graph

        def began(gradients: tuple[Tensor | None, ...]) -> None:
            listening = itself()
            if listening is not None:
                listening._start(gradients)

        self._handles.append(watched.root[0].register_prehook(began))

    @property
    def never_began(self) -> bool:
        """Whether no backward pass was listened to."""
        return self._weights is None

    @property
    def checked(self) -> bool:
        """Whether no check was due, or it could be made."""
        return self._check is None or (self._agreement is not None and self._agreement.finite)

    @property
    def reached_now(self) -> frozenset[str]:
        """The parameters that a gradient came to."""
        return frozenset(self._arrived)

    def cancel(self) -> None:
        """Take every hook away; no further call comes back."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def cell(self) -> StepSums:
        """What the pass says, once every gradient has arrived.

        Returns:
            The sums; NaN where something failed, so that all workers leave the step out together.
        """
        if self._cell is None:
            try:
                if self._error is None:
                    with torch.no_grad():
                        self._cell = self._sums()
            except Exception as error:  # noqa: BLE001 - the user's backward pass must not fail for a reading
                self._error = error
        if self._cell is None or self._error is not None:
            return StepSums(sq_norms_of_sums=float("nan"))
        return self._cell

    def _start(self, gradients: tuple[Tensor | None, ...]) -> None:
        arrived = gradients[self.watched.root[1]]
        if self._within or self._weights is not None or arrived is None:
            return
        try:
            self._within = True
            weights = self.watched.weights(arrived)
            if not any(weights):
                return
            self._begin()
            self._weights = weights
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
            check_equal(weights)
            if self._check is not None and all(map(math.isfinite, weights)):
                self._agreement = self._agreed(self._check, weights)
            self._hook(gradients)
        except Unusable as reason:
            self._give_up(reason)
        except Exception as error:  # noqa: BLE001 - as above
            self._give_up(error)
        finally:
            self._within = False

    def _give_up(self, error: Exception) -> None:
        self._error = error
        if self._weights is None:  # no callback will come
            self.cancel()
            self._end(error)

    def _agreed(self, check: Check, weights: list[float]) -> Agreement:
        seen = self.capture.wanted if self.capture is not None else self.watched.count
        live = [i for i, weight in enumerate(weights[:seen]) if weight]
        with left_as_found(check.model):
            return loop_agreement(
                check.per_example,
                torch.tensor(weights, dtype=torch.float64),
                sorted({live[0], live[-1]}) if check.alone and live else [],
                check.to_compare,
                low_precision=self.watched.graph.low_precision,
            )

    def _hook(self, gradients: tuple[Tensor | None, ...]) -> None:
        root = self.watched.root[0]
        for name, node in self.watched.graph.leaves.items():

            def arrive(found: tuple[Tensor | None, ...], name: str = name) -> None:
                if found[0] is not None and self._error is None:
                    self._arrived[name] = sq_norm(found[0])
                    if self._agreement is not None:
                        self._agreement.arrive(name, found[0])

            self._handles.append(node.register_prehook(arrive))
        if self.capture is not None:
            for node in self.capture.visits:
                if node is not root:
                    self._handles.append(node.register_prehook(lambda g, node=node: self._visit(node, g)))
            if root in self.capture.visits:
                self._visit(root, gradients)

    def _visit(self, node: Node, gradients: tuple[Tensor | None, ...]) -> None:
        if gradients[0] is None or self._error is not None:
            return
        try:
            assert self.capture is not None
            self.capture.receive(node, gradients[0])
        except Exception as error:  # noqa: BLE001 - as above
            self._error = error

    def _finish(self) -> None:
        # Once more around: a distributed wrapper's own end of the pass, queued since, comes first.
        torch.autograd.Variable._execution_engine.queue_callback(self._ended)

    def _ended(self) -> None:
        self.cancel()
        self.cell()
        self._end(self._error)

    def _sums(self) -> StepSums:
        assert self._weights is not None
        if not self._arrived:
            raise Unusable  # torch.autograd.grad: no gradient came to a parameter
        if self._reached is not None and self.reached_now != self._reached:
            raise Unusable  # of some parameters only
        count = sum(map(bool, self._weights))
        scale = next(filter(None, self._weights))
        norms, used = None, count
        if self.capture is not None and count > 1:
            total, norms, used = self._with_examples(count)
        else:
            total = float(torch.stack(list(self._arrived.values())).sum())
        if count == 1:
            norms = total
        elif self.probe is not None and self.capture is None:
            if count < self.watched.count:
                raise Unusable("some examples have weight zero, which a sign probe cannot leave out")
            norms = scale**2 * sum_sq_norms(self.probe, total / scale**2, count)
        if self._agreement is not None and self.capture is None and (said := self._agreement.complaint({})):
            raise Unusable(said)
        return StepSums.of_cell(count, scale, total, norms, used=used, scale_known=self.watched.scale_known)

    def _with_examples(self, count: int) -> tuple[float, float | None, int]:
        """‖Σc_ig_i‖², Σc_i²‖g_i‖² from the examples that were looked at, and how many these were."""
        assert self.capture is not None
        assert self._weights is not None
        self.capture.finish(self.parameters)
        if self.capture.late:
            self.capture.known.leave_out(self.capture.late)
            raise Unusable(f"how {sorted(self.capture.late)} are used changed from one batch to the next")
        if self._agreement is not None and (said := self._agreement.complaint(self.capture.sq_norms)):
            raise Unusable(said)
        # All numbers in one read: each costs a wait where gradients are on another device.
        of_examples, arrived = self.capture.sq_norms.values(), torch.stack(list(self._arrived.values()))
        numbers = torch.cat([*of_examples, arrived]).tolist()
        total = sum(numbers[-len(arrived) :])
        seen = sum(map(bool, self._weights[: self.capture.wanted]))
        if seen == 0:
            return total, None, count
        return total, sum(numbers[: -len(arrived)]) * count / seen, seen


def check_equal(weights: list[float]) -> None:
    """Refuse weights that are neither zero nor equal to the others.

    Args:
        weights: c_i, not all zero.

    Raises:
        Unusable: if they differ.
    """
    if weights.count(weights[0]) == len(weights):
        return
    live = [weight for weight in weights if weight]
    if max(live) - min(live) > EQUAL * abs(live[0]):
        raise Unusable(
            "the losses enter the step with unequal weights. Multiply weights that belong to the objective into the "
            "losses before watch: monitor.watch(weights * losses); weights of zero are left out by themselves"
        )
