"""From watched losses to the pass that is listened to: which source serves, what is checked, and whose complaints end.

Sources in this order: norms of examples, micro-batches and workers (which need nothing), a sign probe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from variegrad.monitor.backward_pass import BackwardPass, Plan, Unusable
from variegrad.monitor.loop import Loop
from variegrad.monitor.loss import Watched
from variegrad.monitor.norms import Euclidean
from variegrad.monitor.row_independence import RowIndependence, mixed_rows
from variegrad.monitor.sources.examples import Examples, Refused
from variegrad.monitor.sources.self_check import SelfCheck, to_compare
from variegrad.monitor.sources.sign_probe import probed_sq_norms
from variegrad.per_example.capture import Capture
from variegrad.per_example.check import Schedule as CheckSchedule

# After this many failures of one structure, the next source serves it, or it is left alone for a while.
PATIENCE = 3


class Listener:
    """What was learned of the graphs of one set of parameters.

    Args:
        model: the unwrapped model.
        parameters: its trained parameters.
        norm: of gradients.
        most: how many examples to look at; None for what the spread of their norms asks for.
        per: parameter name → part of the model; None for no parts.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        norm: Euclidean,
        most: int | None,
        per: Callable[[str], str] | None,
    ) -> None:
        self.parameters, self.norm = parameters, norm
        self.trained = list(parameters.values())
        self.examples = Examples(model, parameters, most)
        self.independence = RowIndependence()
        self.parts: dict[str, list[str]] = {}
        for name in parameters if per is not None else ():
            self.parts.setdefault(per(name), []).append(name)  # type: ignore[misc]
        self.all_sums = False
        """Whether some cell had no norms after all, such as one of padding, so that the sums of all are needed."""
        self._model = model
        self._checks = CheckSchedule(every=32)
        self._checked: dict[int, int] = {}  # structure → checks made
        self._reached: dict[int, frozenset[str]] = {}
        self._mixed: dict[int, str] = {}  # structure → where rows of an output meet
        self._looks = 0
        self._trouble: dict[int, tuple[int, int]] = {}  # structure → consecutive complaints, and the look to wait for

    def listen(self, found: Watched, loop: Loop, ended: Callable[[BackwardPass], None]) -> BackwardPass | None:
        """A pass that waits to begin; None for a structure that is left alone."""
        self._looks += 1
        structure = found.graph.signature
        if self._looks < self._trouble.get(structure, (0, 0))[1]:
            return None
        if found.graph.hides_parameters:
            raise ValueError(
                "a re-entrant activation checkpoint hides parameters from the graph, so that B_D cannot be estimated. "
                "Call torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
            )
        plan = Plan(
            parameters=self.parameters, norm=self.norm, parts=self.parts, reached=self._reached.get(structure),
            sharded=loop.sharded,
        )  # fmt: skip
        hooked = any(self.parameters[name]._backward_hooks for name in found.graph.leaves)
        if found.count > 1 and not loop.sharded:
            self._choose(plan, found, loop, hooked=hooked)
        # An extra backward pass would run the user's hooks on parameters once more.
        silent = hooked or found.coupled or loop.sharded
        if found.count and not silent and self._checks.due(structure):
            number = self._checked[structure] = self._checked.get(structure, 0) + 1
            rows = [] if plan.capture is None else _rows(plan.capture)
            plan.check = SelfCheck(found, self._model, to_compare(found, self.parameters, number), rows)
        return BackwardPass(found, plan, ended)

    def _choose(self, plan: Plan, found: Watched, loop: Loop, *, hooked: bool) -> None:
        key = loop.step, len(loop.passes), loop.rank
        try:
            if found.coupled or not self.norm.exact_for_examples:
                raise Refused(found.coupled)
            plan.capture = self.examples.capture(found, loop.cells, *key)
            # Of several cells with norms of examples only the sum of all is needed, which `.grad` will hold.
            plan.whole = loop.cells == 1 or self.all_sums
        except Refused as reason:
            if found.outputs and not reason.of_batch_norm:
                self._refuse_positions(found)
            if loop.cells > 1:
                return
            if found.coupled:
                raise ValueError(str(reason)) from reason
            if hooked:
                raise Unusable(f"{reason}, and there are no micro-batches to compare") from reason
            plan.probe = probed_sq_norms(found, self._model, self.parameters, self.norm, *key[:2])

    def _refuse_positions(self, found: Watched) -> None:
        structure = found.graph.signature
        if structure not in self._mixed:
            self._mixed[structure] = mixed_rows(found.per_example(), found.graph.order)
        if self._mixed[structure]:
            raise ValueError(
                f"rows of output depend on each other through the model (at {self._mixed[structure]}): they are not "
                "examples. If its first dimension is the sequence, pass output.transpose(0, 1), the batch first. If "
                "the examples of a batch do influence each other, per-example gradients are undefined."
            )

    def learn(self, one: BackwardPass, errors: Sequence[float]) -> str | None:
        """What a pass showed of its structure; a complaint, if its check found something wrong."""
        structure = one.watched.graph.signature
        if one.plan.check is None or not errors:
            if one.problem is None and one.plan.check is None:
                self._reached.setdefault(structure, one.reached)
            return None
        if not all(map(math.isfinite, errors)):
            self._check_again(structure)
        elif (said := one.plan.check.complaint(errors)) is not None:
            return said
        else:
            self._reached.setdefault(structure, one.reached)
            self._trouble.pop(structure, None)
        return None

    def complain(self, one: BackwardPass, said: str) -> None:
        """One more complaint about a structure: ever longer waits, so that nothing is tried again forever."""
        structure = one.watched.graph.signature
        self._check_again(structure)
        times = self._trouble.get(structure, (0, 0))[0] + 1
        if times == PATIENCE and one.plan.capture is not None:
            self.examples.refuse(one.watched, said)
        wait = 0 if times < PATIENCE else 2 ** min(times, 20)
        self._trouble[structure] = times, self._looks + 1 + wait

    def _check_again(self, structure: int) -> None:
        self._checks.again(structure)
        self._checked.pop(structure, None)


def _rows(capture: Capture) -> list[int]:
    if capture.examples is None or isinstance(capture.examples, slice):
        return list(range(capture.count))[capture.examples or slice(None)]
    return list(map(int, capture.examples.numpy()))
