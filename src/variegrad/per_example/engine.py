"""‖∇f_i‖² for every example, and Σ_i ∇f_i, from one forward and one backward pass.

The graph shows every use of every parameter; a use whose output gradient is owned row by row goes to the rule of its
node, from inside the backward pass, so that each output gradient is freed as soon as it was used. The pass is asked for
the lowest of these nodes only, and therefore skips every weight gradient that a rule forms itself.

One line: a structure is known or learned (`learn`); a pass runs (`capture`), while what data may change is tried; what
came out is checked on a schedule (`check`). Whatever no rule serves goes to the loop (`fallback`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from variegrad.per_example import fallback
from variegrad.per_example.capture import Capture, l1_norms
from variegrad.per_example.check import Reference, Schedule, mismatch, prints
from variegrad.per_example.coupling import refuse_broadcast, refuse_if_coupled, refuse_training_batch_norm
from variegrad.per_example.knowledge import Knowledge
from variegrad.per_example.learn import learn, learn_from_a_few
from variegrad.per_example.ownership import NotFinite, Trial
from variegrad.per_example.plan import Plan
from variegrad.per_example.routing import out_of_order
from variegrad.per_example.rules.contribution import sq_norms
from variegrad.per_example.state import hooked
from variegrad.per_example.step import Step
from variegrad.shapes import Float

# Structures that are remembered, and how often a batch is learned anew before the loop takes it.
REMEMBERED, ATTEMPTS = 128, 3


@dataclass(frozen=True)
class Norms:
    """What one batch says.

    Attributes:
        sq_norms: parameter → ‖∇f_i‖² restricted to it, float64.
        total: parameter → Σ_i ∇f_i over the whole batch.
        l1_norms: ‖∇f_i‖₁ over all parameters together, where asked for.
        fresh: the parameters whose total is a tensor that nobody else can hold.
    """

    sq_norms: Mapping[str, Float[Tensor, " m"]]
    total: Mapping[str, Tensor]
    l1_norms: Float[Tensor, " m"] | None = None
    fresh: frozenset[str] = frozenset()


class Engine:
    """The engine of one model: what it has learned of the model's graphs, and which variant is fastest where.

    Args:
        measured: whether variants are chosen by timing each once; otherwise by counting operations, deterministically.
        verify: whether numbers are compared with the loop, on a schedule.
    """

    def __init__(self, *, measured: bool = True, verify: bool = True) -> None:
        self.plan = Plan(measured=measured)
        self.verify = verify
        self.known: OrderedDict[int, Knowledge] = OrderedDict()
        self._schedule, self._schedule_of_rows = Schedule(), Schedule()
        self.doubted = False  # whether a batch may have to be evaluated once more

    def norms(self, step: Step, *, l1: bool = False, examples: Sequence[int] | None = None) -> Norms:
        """‖∇f_i‖² for each example (or for some) and Σ∇f_i over all; frees the graph of the losses.

        Raises:
            ValueError: if the examples are coupled, or those asked for are not in the batch.
            RuntimeError: if the check against the loop fails.
        """
        wanted = list(range(step.count)) if examples is None else list(examples)
        if examples is not None and (
            len({*wanted}) != len(wanted) or not wanted or not {*wanted} <= {*range(step.count)}
        ):
            raise ValueError(
                f"examples must be different indices from 0 to {step.count - 1}, at least one; got {wanted[:8]}."
            )
        if not step.count:
            none = step.per_example.detach().double()
            zeros = {name: torch.zeros_like(p) for name, p in step.parameters.items()}
            return Norms(sq_norms=dict.fromkeys(zeros, none), total=zeros, l1_norms=none if l1 else None)
        known = self._ready(step)
        if known is None:
            return _looped(step, wanted, l1=l1)
        key = step.structure
        due = self.verify and self._schedule.due(key) and not known.just_checked
        known.just_checked = False
        if l1 and self.verify and not known.rows_checked and not step.graph.opaque:
            self._check_rows(step, known)
        # Norms of a few examples say nothing of the sum: autograd makes it as in any step. Of more than half of them
        # the cheaper way is to take the norms of all, whose rules make the sum as well.
        seen = examples if examples is None or 2 * len(wanted) <= step.count else None
        for _ in range(ATTEMPTS):
            retain = due or not known.routed or bool(known.dormant) or bool(step.graph.opaque)
            retain = retain or (known.doubted and step.before is None)
            capture = self._pass(step, known, retain=retain, l1=l1, examples=seen)
            if capture is None:
                self._schedule.again(key)
                known = self._relearnt(step, key)
                if known is None or known.looped:
                    return _looped(step, wanted, l1=l1)
                due = self.verify
                continue
            if capture.late or capture.again:
                if not capture.retained:  # the graph is gone
                    step = step.again()
                    if step.structure != key:  # the losses depend on more than what was kept
                        return self.norms(step, l1=l1, examples=examples)
                if capture.late:
                    known.leave_out(capture.late, step.graph)
                continue
            found = _norms(step, capture, wanted if seen is None else None)
            if not due or self._checked(step, known, key, found, wanted):
                return found
            break
        return _looped(step, wanted, l1=l1)

    def gradients(self, step: Step, size: int) -> Iterator[dict[str, Float[Tensor, "t ..."]]]:
        """∇f_i themselves, `size` examples at a time: parameter → (t, *shape)."""
        capture = self.kept(step, retain=True)
        if capture is None:
            yield from _stacked(fallback.loop(step.per_example, step.parameters, wide=step.graph.low_precision), size)
            return
        rest = {name: step.parameters[name] for name in capture.uncovered}
        others = (
            _stacked(fallback.loop(step.per_example, rest, step.ends, wide=step.graph.low_precision), size)
            if rest
            else None
        )
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
        known = self._ready(step)
        if known is None or step.graph.opaque:
            return None
        key = step.structure
        due = self.verify and self._schedule_of_rows.due(key)
        for _ in range(ATTEMPTS):
            capture = self._pass(
                step, known, keep=True,
                retain=retain or due or bool(known.uncovered) or not known.certain or known.doubted,
            )  # fmt: skip
            if capture is None:
                self._schedule_of_rows.again(key)
                known = self._relearnt(step, key)
                if known is None or known.looped:
                    return None
                due = self.verify
                continue
            if capture.late or capture.again:
                if capture.late:
                    known.leave_out(capture.late, step.graph)
                if capture.retained:
                    continue
                raise RuntimeError(
                    f"how {sorted(capture.late)} are used differs from earlier batches "
                    f"({', '.join(sorted(set(capture.late.values())))}), and the graph is gone: call again; they go to "
                    "the fallback from now on."
                )
            if due:
                places = (
                    {0, step.count - 1} if not known.rows_checked else {self._schedule_of_rows.example(key, step.count)}
                )
                self._compare_rows(step, known, capture, sorted(places))
            return capture
        return None

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
                    self._check_few(few, known)
                    known.just_checked = True
                if known.suspects:
                    refuse_if_coupled(step, known.suspects)
        if known is None or not known.fits(step.graph, step.count):
            known = _updated(known, learn(step))
            self._schedule.again(key)
            self._schedule_of_rows.again(key)
        self.known[key] = known
        self.known.move_to_end(key)
        while len(self.known) > REMEMBERED:
            self.known.popitem(last=False)
        return known

    def _ready(self, step: Step) -> Knowledge | None:
        """What is known of this graph; None if the loop must serve it."""
        if step.count == 1 or step.graph.hides_parameters:
            return None
        try:
            known = self.knowledge(step)
        except NotFinite:
            return None
        return None if known.looped else known

    def _relearnt(self, step: Step, key: int) -> Knowledge | None:
        try:
            known = self.known[key] = _updated(self.known.get(key), learn(step))
        except NotFinite:
            return None
        return known

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
            key = self._schedule._batches.get(step.structure, 0)
            layouts = known.layouts(step.graph)
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
        if trial is not None and capture.sums is not None:
            learned.append(trial.broken(capture.sums))
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

    def _checked(self, step: Step, known: Knowledge, key: int, found: Norms, wanted: list[int]) -> bool:
        """Compare with the loop; False if a custom Function hides parameters, so that the loop must serve."""
        first = not known.rows_checked and self._schedule._batches.get(key, 0) <= 1
        places = sorted({wanted[0], wanted[-1]}) if first else [wanted[self._schedule.example(key, len(wanted))]]
        try:
            _compare(step, found, wanted, places)
        except RuntimeError:
            if not step.graph.opaque:
                raise
            known.looped = True
            return False
        return True

    def _check_few(self, few: Step, known: Knowledge) -> None:
        self._check_rows(few, known)
        witness = Plan(measured=False)  # so few examples say nothing of speed
        witness.agreed = self.plan.agreed
        for examples in (None, (0,)):
            capture = Capture(few.graph, known, few.count, witness, examples=examples)
            rest = {name: few.parameters[name] for name in capture.uncovered}
            if rest:
                capture.add_gradients(fallback.loop_rows(few, rest), rest)
            capture.run(few.per_example, few.parameters, retain=True)
            wanted = list(range(few.count)) if examples is None else [*examples]
            _compare(few, _norms(few, capture, None), wanted, sorted({wanted[0], wanted[-1]}))

    def _check_rows(self, step: Step, known: Knowledge) -> None:
        capture = Capture(step.graph, known, step.count, None, keep=True)
        capture.run(step.per_example, step.parameters, retain=True)
        if not capture.late:
            self._compare_rows(step, known, capture, [0, step.count - 1])

    def _compare_rows(self, step: Step, known: Knowledge, capture: Capture, examples: list[int]) -> None:
        served = {name: step.parameters[name] for name in capture.covered}
        reference = Reference.of(step.per_example, served, examples, step.graph.coarsest)
        if not served or not reference.finite:
            return
        for i in examples:
            rows = capture.gradients(i, i + 1, served)
            worst = reference.worst_norm(i, {name: float(prints(r[0])[0]) for name, r in rows.items()})
            if worst is not None:
                raise mismatch(*worst)
        known.rows_checked = True


def _updated(before: Knowledge | None, fresh: Knowledge) -> Knowledge:
    if before is not None:
        fresh.vectorize, fresh.looped = before.vectorize, before.looped
        fresh.formed, fresh.doubted = before.formed, before.doubted
    return fresh


def _compare(step: Step, found: Norms, wanted: list[int], places: list[int]) -> None:
    """Compare norms and the sum with the loop's; a hook of the user is asked whether it is linear."""
    own = {name: step.parameters[name] for name in hooked(step.parameters)}
    plain = {name: p for name, p in step.parameters.items() if name not in own}
    reference = Reference.of(step.per_example, plain, places, step.graph.coarsest)
    if own:
        reference = reference.with_hooks(step.per_example, own)
    if not reference.finite:
        return
    names = list(plain)
    for i in places:
        values = torch.stack([found.sq_norms[name][wanted.index(i)] for name in names]).tolist() if names else []
        if worst := reference.worst_norm(i, dict(zip(names, values, strict=True))):
            raise mismatch(*worst)
    sums = torch.stack([prints(found.total[name]).to(step.per_example.device) for name in reference.names]).cpu()
    sizes = torch.stack([found.sq_norms[name].sum() for name in reference.names]).tolist()
    scale = step.count / len(wanted)
    named = dict(zip(reference.names, (scale * size for size in sizes), strict=True))
    if worst := reference.worst_sum(dict(zip(reference.names, sums, strict=True)), named):
        raise mismatch(*worst)


def _norms(step: Step, capture: Capture, wanted: list[int] | None) -> Norms:
    zeros = torch.zeros(capture.wanted, dtype=torch.float64, device=step.per_example.device)
    norms = {name: capture.sq_norms.get(name, zeros) for name in step.parameters}
    l1 = zeros if capture.l1 and capture.l1_norms is None else capture.l1_norms  # nothing arrived: all are zero
    if (wanted is not None and len(wanted) != capture.wanted) or (wanted is not None and wanted != sorted(wanted)):
        at = torch.as_tensor(wanted, device=zeros.device)
        norms = {name: each[at] for name, each in norms.items()}
        l1 = None if l1 is None else l1[at]
    total = {n: capture.totals[n] if n in capture.totals else torch.zeros_like(p) for n, p in step.parameters.items()}
    return Norms(sq_norms=norms, total=total, l1_norms=l1, fresh=frozenset(capture.fresh))


def _stacked(found: Iterator[dict[str, Tensor]], size: int) -> Iterator[dict[str, Tensor]]:
    while waiting := list(islice(found, size)):
        yield {name: torch.stack([g[name] for g in waiting]) for name in waiting[0]}


def _looped(step: Step, wanted: list[int], *, l1: bool) -> Norms:
    chosen = set(wanted)
    total = {name: torch.zeros_like(p) for name, p in step.parameters.items()}
    norms: dict[str, list[Tensor]] = {name: [] for name in step.parameters}
    absolute = []
    for i, gradient in enumerate(fallback.loop(step.per_example, step.parameters, wide=step.graph.low_precision)):
        for name, g in gradient.items():
            total[name] += g
            if i in chosen:
                norms[name].append(sq_norms(g.detach().unsqueeze(0)))
        if l1 and i in chosen:
            absolute.append(torch.stack([l1_norms(g.detach().unsqueeze(0))[0] for g in gradient.values()]).sum())
    order = torch.tensor([sorted(chosen).index(i) for i in wanted])
    return Norms(
        sq_norms={name: torch.cat(rows)[order] for name, rows in norms.items()},
        total=total,
        l1_norms=torch.stack(absolute)[order] if l1 else None,
    )
