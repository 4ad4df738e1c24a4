"""‖∇f_i‖² for every example, and Σ_i ∇f_i, from one forward and one backward pass.

The graph shows every use of every parameter; a use whose output gradient is owned row by row goes to the rule of its
node, from inside the backward pass, so that each output gradient is freed as soon as it was used. The pass is asked for
the lowest of these nodes only, and therefore skips every weight gradient that a rule forms itself.

One line: a structure is known or learned (`learn`); a pass runs (`capture`), while what data may change is tried; what
came out (`result`) is compared with the loop on a schedule (`verify`). What no rule serves is the loop's (`fallback`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from variegrad.per_example import fallback
from variegrad.per_example.capture import Capture
from variegrad.per_example.check import Schedule
from variegrad.per_example.coupling import refuse_broadcast, refuse_if_coupled, refuse_training_batch_norm
from variegrad.per_example.knowledge import Knowledge
from variegrad.per_example.learn import learn, learn_from_a_few
from variegrad.per_example.ownership import NotFinite
from variegrad.per_example.plan import Plan
from variegrad.per_example.result import Norms
from variegrad.per_example.routing import out_of_order
from variegrad.per_example.step import Step
from variegrad.per_example.trial import Trial
from variegrad.per_example.verify import check_few, check_rows, compare_norms, compare_rows, gone
from variegrad.shapes import Float

# Structures that are remembered, and how often a batch is learned anew before the loop takes it.
REMEMBERED, ATTEMPTS = 128, 3


@dataclass(frozen=True)
class Served:
    """A pass whose numbers are right for the batch, up to a check that is due.

    Attributes:
        known: what the pass rested on.
        capture: what it has collected.
        due: whether its numbers are to be compared with the loop.
    """

    known: Knowledge
    capture: Capture
    due: bool


class Engine:
    """The engine of one model: what it has learned of the model's graphs, and which way is fastest for each layer.

    Args:
        measured: whether ways are chosen by timing each once; otherwise by counting operations, deterministically.
        verify: whether numbers are compared with the loop, on a schedule.
    """

    def __init__(self, *, measured: bool = True, verify: bool = True) -> None:
        self.plan = Plan(measured=measured)
        self.verify = verify
        self.known: OrderedDict[int, Knowledge] = OrderedDict()
        self.doubted = False  # whether a batch may have to be evaluated once more
        self._schedule, self._schedule_of_rows = Schedule(), Schedule()

    def norms(self, step: Step, *, l1: bool = False, examples: Sequence[int] | None = None) -> Norms:
        """‖∇f_i‖² for each example (or for some) and Σ∇f_i over all; frees the graph of the losses.

        Raises:
            ValueError: if the examples are coupled, or those asked for are not in the batch.
            RuntimeError: if the check against the loop fails.
        """
        wanted = range(step.count) if examples is None else list(examples)
        if examples is not None and not (0 < len(wanted) == len({*wanted} & {*range(step.count)})):
            raise ValueError(
                f"examples must be different indices from 0 to {step.count - 1}, at least one; got {wanted[:8]}."
            )
        # Norms of a few examples say nothing of the sum: autograd makes it as in any step. Of more than half of them
        # the cheaper way is to take the norms of all, whose rules make the sum as well.
        seen = examples if examples is None or 2 * len(wanted) <= step.count else None
        step, served = self._served(step, self._schedule, l1=l1, examples=seen)
        if served is not None:
            found = Norms.of(step, served.capture, wanted if seen is None else None)
            if not served.due or self._holds(step, served, found, wanted):
                return found
        return Norms.by_loop(step, wanted, l1=l1)

    def gradients(self, step: Step, size: int) -> Iterator[dict[str, Float[Tensor, "t ..."]]]:
        """∇f_i themselves, `size` examples at a time: parameter → (t, *shape)."""
        capture = self.kept(step, retain=True)
        if capture is None:
            yield from fallback.stacked(step, step.parameters, size)
            return
        rest = {name: step.parameters[name] for name in capture.uncovered}
        others = fallback.stacked(step, rest, size) if rest else None
        for start in range(0, step.count, size):
            stop = min(start + size, step.count)
            rows = capture.gradients(start, stop, step.parameters)
            if others is not None:
                rows.update(next(others))
            yield {
                name: rows[name] if name in rows else p.new_zeros(stop - start, *p.shape)
                for name, p in step.parameters.items()
            }

    def kept(self, step: Step, *, retain: bool = False) -> Capture | None:
        """What rules keep of each example's gradient, after one backward pass; None if only the loop is right.

        The graph is kept if it is asked for, or if some parameter is left to the fallback.
        """
        refuse_training_batch_norm(step.model)
        _, served = self._served(step, self._schedule_of_rows, retain=retain, keep=True)
        if served is None:
            return None
        if served.due:
            one = self._schedule_of_rows.example(step.structure, step.count)
            places = [one] if served.known.rows_checked else [0, step.count - 1]
            compare_rows(step, served.known, served.capture, places)
        return served.capture

    def knowledge(self, step: Step) -> Knowledge:
        """What is known of graphs of this structure; learned now if it is not known, or does not fit this batch.

        Raises:
            ValueError: if the examples are coupled.
            NotFinite: if some gradient is not finite.
        """
        key = step.structure
        known = self.known.get(key)
        if known is None:
            refuse_broadcast(step)
            conclusive = learn_from_a_few(step)
            if conclusive is not None:
                known, few = conclusive
                if self.verify:
                    check_few(few, known, self.plan)
                if known.suspects:
                    refuse_if_coupled(step, known.suspects)
        if known is None or not known.fits(step.graph, step.count):
            known = learn(step).following(known)
            self._schedule.again(key)
            self._schedule_of_rows.again(key)
        self.known[key] = known
        self.known.move_to_end(key)
        while len(self.known) > REMEMBERED:
            self.known.popitem(last=False)
        return known

    def _served(
        self,
        step: Step,
        schedule: Schedule,
        *,
        retain: bool = False,
        keep: bool = False,
        l1: bool = False,
        examples: Sequence[int] | None = None,
    ) -> tuple[Step, Served | None]:
        """Pass after pass until what was known holds for this batch; None if only the loop is right.

        The step is the one that was given, or, if its graph was gone when an assumption broke, the same evaluated anew.
        """
        key = step.structure
        if step.count <= 1 or step.graph.hides_parameters or (keep and step.graph.opaque):
            return step, None
        try:
            known = self.knowledge(step)
            due = schedule.due(key) and self.verify and not known.just_checked
            known.just_checked = False
            if l1 and self.verify and not known.rows_checked and not step.graph.opaque:
                check_rows(step, known)
            for _ in range(ATTEMPTS):
                if known.looped:
                    break
                refutable = not known.routed or known.dormant or step.graph.opaque
                redone = known.doubted and (keep or step.before is None)
                retained = bool(retain or due or refutable or redone or (keep and known.uncovered))
                capture = self._pass(step, known, retain=retained, l1=l1, examples=examples, keep=keep)
                if capture is None:
                    schedule.again(key)
                    known = self.known[key] = learn(step).following(known)
                    due = self.verify
                elif not capture.late and not capture.again:
                    return step, Served(known, capture, due)
                else:
                    if keep and not capture.retained:
                        raise gone(capture.late)
                    step = step if capture.retained else step.again()
                    if step.structure != key:  # the losses depend on more than what was kept
                        return self._served(step, schedule, l1=l1, examples=examples)
                    known.leave_out(capture.late, step.graph)
        except NotFinite:
            pass
        return step, None

    def _pass(
        self,
        step: Step,
        known: Knowledge,
        *,
        retain: bool,
        l1: bool = False,
        examples: Sequence[int] | None = None,
        keep: bool = False,
    ) -> Capture | None:
        """One backward pass through the rules; None if what was known does not hold for this batch."""
        capture = Capture(step.graph, known, step.count, self.plan, l1=l1, examples=examples, keep=keep, defer=True)
        trial, order = None, out_of_order([step.graph.order[k] for k in known.in_order]) if known.routed else []
        if not known.routed:
            # Data decide whose row is whose: one more pass, under other weights, shows whether it is as it was.
            key, layouts = self._schedule.number(step.structure), known.layouts(step.graph)
            trial = Trial(step.per_example, layouts, step.ends, step.graph.coarsest, key)
            capture.sums = {}
        rest = {name: step.parameters[name] for name in capture.uncovered}
        if rest and not keep:
            capture.add_gradients(fallback.gradients(step, rest, known), rest)
        capture.run(step.per_example, step.parameters, retain=retain)
        if step.graph.opaque and capture.touched:
            known.looped = True
            return None
        learned = [] if capture.awake is None else [capture.awake]
        learned += [] if trial is None or capture.sums is None else [trial.broken(capture.sums)]
        doubts = capture.doubts or {}
        known.doubted = bool(known.in_order or doubts)
        self.doubted = self.doubted or known.doubted
        flags = [flag.to(step.per_example.device) for flag in (*learned, *order, *doubts.values())]
        said = torch.stack(flags).tolist() if flags else []  # the pass waits for the host here, once
        broken = {name for name, is_so in zip(doubts, said[len(said) - len(doubts) :], strict=True) if is_so}
        known.formed |= broken
        disorder = any(said[len(learned) : len(learned) + len(order)])
        known.routed = known.routed and not disorder
        capture.again = disorder or bool(broken)
        return None if any(said[: len(learned)]) else capture

    def _holds(self, step: Step, served: Served, found: Norms, wanted: Sequence[int]) -> bool:
        """Compare with the loop; False if a custom Function hides parameters, so that the loop must serve."""
        key = step.structure
        first = not served.known.rows_checked and self._schedule.number(key) <= 1
        places = {wanted[0], wanted[-1]} if first else {wanted[self._schedule.example(key, len(wanted))]}
        try:
            compare_norms(step, found, wanted, sorted(places))
        except RuntimeError:
            if not step.graph.opaque:
                raise
            served.known.looped = True
            return False
        return True
