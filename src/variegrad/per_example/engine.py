"""‖∇f_i‖² for every example, and Σ_i ∇f_i, from one forward and one backward pass.

The graph shows every use of every parameter; a use whose output gradient is owned row by row goes to the rule of its
node, from inside the backward pass, so that each output gradient is freed as soon as it was used. The pass is asked for
the lowest of these nodes only, and therefore skips every weight gradient that a rule forms itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn

from variegrad.batches import Batch, map_tensors, shared_length
from variegrad.per_example import fallback
from variegrad.per_example.capture import Capture
from variegrad.per_example.capture import _l1 as l1_norms
from variegrad.per_example.coupling import refuse_if_coupled, refuse_training_batch_norm
from variegrad.per_example.evaluate import Losses
from variegrad.per_example.first_use import by_the_loop, check_rows, learn_from_a_few, learn_from_all
from variegrad.per_example.graph import Graph, read_graph
from variegrad.per_example.knowledge import Knowledge
from variegrad.per_example.ownership import NotFinite
from variegrad.per_example.plan import Plan
from variegrad.per_example.rules.contribution import sq_norms
from variegrad.per_example.trust import structure
from variegrad.per_example.verify import mismatch
from variegrad.shapes import Float


@dataclass(frozen=True)
class Norms:
    """What one batch says.

    Attributes:
        sq_norms: parameter → ‖∇f_i‖² restricted to it, float64.
        total: parameter → Σ_i ∇f_i over the whole batch.
        l1_norms: ‖∇f_i‖₁ over all parameters together, where asked for.
    """

    sq_norms: Mapping[str, Float[Tensor, " m"]]
    total: Mapping[str, Tensor]
    l1_norms: Float[Tensor, " m"] | None = None


class Engine:
    """The engine of one model: what it has learnt of the model's graphs, and which variant is fastest where.

    Args:
        measured: whether variants are chosen by timing each once; otherwise by counting operations, deterministically.
        verify: whether two examples are checked against the loop when a structure is first met.
    """

    def __init__(self, *, measured: bool = True, verify: bool = True) -> None:
        self.plan = Plan(measured=measured)
        self.verify = verify
        self.known: dict[int, Knowledge] = {}

    def norms(
        self,
        model: nn.Module,
        losses: Losses,
        batch: Batch,
        per_example: Float[Tensor, " b"],
        parameters: Mapping[str, nn.Parameter],
        *,
        l1: bool = False,
        examples: Sequence[int] | None = None,
    ) -> Norms:
        """‖∇f_i‖² for each example (or for some) and Σ∇f_i over all; uses up the graph of the losses.

        Args:
            model: the unwrapped model.
            losses: the user's function, for the fallbacks.
            batch: the batch, for the fallbacks.
            per_example: `losses(model, batch)`.
            parameters: the trained parameters.
            l1: whether ‖∇f_i‖₁ is wanted as well.
            examples: the examples whose norms are wanted; None for all.

        Returns:
            The norms.

        Raises:
            ValueError: if the examples are coupled, or those asked for are not in the batch.
            RuntimeError: if the check against the loop fails.
        """
        count = len(per_example)
        wanted = list(range(count)) if examples is None else list(examples)
        if examples is not None and (len({*wanted}) != len(wanted) or not wanted or not {*wanted} <= {*range(count)}):
            raise ValueError(
                f"examples must be different indices from 0 to {count - 1}, at least one; got {wanted[:8]}."
            )
        graph = self.graph(per_example, parameters)
        if count == 1 or graph.hides_parameters:
            return _looped(per_example, parameters, l1, wanted)
        try:
            known = self.knowledge(graph, model, losses, batch, per_example, parameters)
        except NotFinite:
            return _not_finite(model, losses, batch, per_example, parameters, wanted)
        if known.everything_looped:
            return _looped(per_example, parameters, l1, wanted)
        if l1 and self.verify and not known.rows_verified and not graph.opaque:
            self._check_kept(graph, known, per_example, parameters)
        if not self.verify or known.verified:
            return self._visit(graph, known, model, losses, batch, per_example, parameters, l1, examples)
        return self._checked(graph, known, model, losses, batch, per_example, parameters, l1, examples)

    def _checked(
        self,
        graph: Graph,
        known: Knowledge,
        model: nn.Module,
        losses: Losses,
        batch: Batch,
        per_example: Float[Tensor, " b"],
        parameters: Mapping[str, nn.Parameter],
        l1: bool,
        examples: Sequence[int] | None,
        retain: bool = False,
    ) -> Norms:
        wanted = list(range(len(per_example))) if examples is None else list(examples)
        expected = by_the_loop(graph, per_example, parameters, sorted({wanted[0], wanted[-1]}))
        # A custom Function may hold parameters that the graph does not show: then only the loop sees them.
        retain = retain or bool(graph.opaque)
        found = self._visit(graph, known, model, losses, batch, per_example, parameters, l1, examples, retain=retain)
        worst = expected.worst_mismatch(found.sq_norms, found.total, wanted)
        if worst is None:
            known.verified = expected.finite
            return found
        if graph.opaque:
            known.everything_looped = True
            return _looped(per_example, parameters, l1, wanted)
        raise mismatch(*worst)

    def gradients(
        self,
        model: nn.Module,
        losses: Losses,
        batch: Batch,
        per_example: Float[Tensor, " b"],
        parameters: Mapping[str, nn.Parameter],
        step: int,
    ) -> Iterator[dict[str, Float[Tensor, "t ..."]]]:
        """∇f_i themselves, `step` examples at a time.

        Args:
            model: the unwrapped model.
            losses: the user's function, for the fallbacks.
            batch: the batch, for the fallbacks.
            per_example: `losses(model, batch)`.
            parameters: the trained parameters.
            step: examples at once.

        Yields:
            Parameter → (t, *shape).
        """
        count = len(per_example)
        refuse_training_batch_norm(model)
        graph = self.graph(per_example, parameters)
        looped = count == 1 or graph.hides_parameters
        if not looped:
            try:
                known = self.knowledge(graph, model, losses, batch, per_example, parameters)
                looped = known.everything_looped or bool(graph.opaque)
            except NotFinite:
                looped = True
        if looped:
            yield from _stacked(fallback.loop(per_example, parameters), step)
            return
        capture = Capture(graph, known, count, self.plan, keep=True)
        capture.run(per_example, parameters, retain=True)
        rest = {name: parameters[name] for name in (*capture.uncovered, *capture.late)}
        others = _stacked(fallback.loop(per_example, rest), step) if rest else None
        if self.verify and not known.rows_verified:
            expected = by_the_loop(graph, per_example, parameters, (0, count - 1))
            if expected.finite:
                check_rows(capture, expected, parameters, count)
                known.rows_verified = True
        for start in range(0, count, step):
            rows = capture.gradients(start, min(start + step, count), parameters)
            if others is not None:
                rows.update(next(others))
            absent = parameters.keys() - rows.keys()
            yield {
                name: parameters[name].new_zeros(min(step, count - start), *parameters[name].shape)
                if name in absent else rows[name]
                for name in parameters
            }  # fmt: skip

    def kept(
        self,
        model: nn.Module,
        losses: Losses,
        batch: Batch,
        per_example: Float[Tensor, " b"],
        parameters: Mapping[str, nn.Parameter],
    ) -> Capture | None:
        """What rules keep of each example's gradient, after one backward pass; the graph is kept where it is needed.

        Args:
            model: the unwrapped model.
            losses: the user's function, for the fallbacks.
            batch: the batch, for the fallbacks.
            per_example: `losses(model, batch)`.
            parameters: the trained parameters.

        Returns:
            The capture, checked against the loop at its first use; None where only the loop is right.
        """
        refuse_training_batch_norm(model)
        graph = self.graph(per_example, parameters)
        if len(per_example) == 1 or graph.hides_parameters:
            return None
        try:
            known = self.knowledge(graph, model, losses, batch, per_example, parameters)
        except NotFinite:
            return None
        if known.everything_looped or graph.opaque:
            return None
        capture = Capture(graph, known, len(per_example), self.plan, keep=True)
        verified = known.rows_verified or not self.verify
        capture.run(per_example, parameters, retain=bool(capture.uncovered) or not verified)
        if not verified:
            expected = by_the_loop(graph, per_example, parameters, (0, len(per_example) - 1))
            if expected.finite:
                check_rows(capture, expected, parameters, len(per_example))
                known.rows_verified = True
        if capture.late:
            known.leave_out(capture.late)
            raise RuntimeError(
                f"how {sorted(capture.late)} are used changed from one batch to the next "
                f"({', '.join(sorted(set(capture.late.values())))}); they go to the fallback from now on: call again."
            )
        return capture

    def graph(self, per_example: Float[Tensor, " b"], parameters: Mapping[str, nn.Parameter]) -> Graph:
        """The graph of the losses.

        Args:
            per_example: the losses.
            parameters: the trained parameters.

        Returns:
            Their graph.
        """
        assert per_example.grad_fn is not None
        return read_graph(per_example.grad_fn, parameters)

    def knowledge(
        self,
        graph: Graph,
        model: nn.Module,
        losses: Losses | None,
        batch: Batch,
        per_example: Float[Tensor, " b"],
        parameters: Mapping[str, nn.Parameter],
    ) -> Knowledge:
        """What is known of graphs of this structure; learnt now where it is not, or not for certain.

        Args:
            graph: the graph of the losses.
            model: the unwrapped model.
            losses: the user's function; None where only the losses are at hand.
            batch: the batch.
            per_example: the losses.
            parameters: the trained parameters.

        Returns:
            The owners of its gradients and the uses of each parameter.
        """
        key = structure(graph)
        known = self.known.get(key)
        if known is None:
            check = partial(self._check_few, model, losses, parameters) if self.verify and losses is not None else None
            known = learn_from_a_few(graph, model, losses, batch, len(per_example), parameters, check)
            if known is not None:
                if known.suspects:
                    refuse_if_coupled(graph, model, losses, batch, per_example, known.suspects)
                self.known[key] = known
        if known is None or not known.certain or not known.fits(graph, len(per_example)):
            fresh = learn_from_all(graph, model, losses, batch, per_example, parameters)
            if known is not None:
                fresh.verified, fresh.rows_verified = known.verified, known.rows_verified
                fresh.vectorize = known.vectorize
                fresh.uncovered = {**known.uncovered, **fresh.uncovered}
                fresh.everything_looped = known.everything_looped
            self.known[key] = known = fresh
        return known

    def _check_few(
        self,
        model: nn.Module,
        losses: Losses,
        parameters: Mapping[str, nn.Parameter],
        graph: Graph,
        known: Knowledge,
        batch: Batch,
        per_example: Float[Tensor, " b"],
    ) -> None:
        count = len(per_example)
        self._check_kept(graph, known, per_example, parameters)
        if not known.rows_verified:
            return
        for examples in (None, (0, count - 1)):
            self._checked(
                graph, known, model, losses, batch, per_example, parameters, False, examples, retain=True
            )  # fmt: skip

    def _check_kept(
        self, graph: Graph, known: Knowledge, per_example: Tensor, parameters: Mapping[str, nn.Parameter]
    ) -> None:
        count = len(per_example)
        expected = by_the_loop(graph, per_example, parameters, (0, count - 1))
        if not expected.finite:
            return
        kept = Capture(graph, known, count, None, keep=True)
        kept.run(per_example, parameters, retain=True)
        check_rows(kept, expected, parameters, count)
        known.rows_verified = True

    def _visit(
        self,
        graph: Graph,
        known: Knowledge,
        model: nn.Module,
        losses: Losses,
        batch: Batch,
        per_example: Float[Tensor, " b"],
        parameters: Mapping[str, nn.Parameter],
        l1: bool,
        examples: Sequence[int] | None,
        retain: bool = False,
    ) -> Norms:
        # Autograd's sum beside the norms of many examples would cost more than the norms of all.
        count, wanted = len(per_example), examples
        if examples is not None and 2 * len(examples) > count:
            examples = None
        capture = Capture(graph, known, count, self.plan, l1=l1, examples=examples)
        rest = {name: parameters[name] for name in capture.uncovered}
        if rest:
            capture.add_gradients(fallback.gradients(model, losses, batch, per_example, rest, known), rest)
        capture.run(per_example, parameters, retain=retain)
        if capture.late:
            known.leave_out(capture.late)
            raise RuntimeError(
                f"how {sorted(capture.late)} are used changed from one batch to the next "
                f"({', '.join(sorted(set(capture.late.values())))}); they go to the fallback from now on: call again."
            )
        zeros = torch.zeros(capture.wanted, dtype=torch.float64, device=per_example.device)
        sq_norms = {name: capture.sq_norms.get(name, zeros) for name in parameters}
        l1_norms = capture.l1_norms
        if wanted is not examples:
            at = torch.as_tensor(wanted, device=per_example.device)
            sq_norms = {name: norms[at] for name, norms in sq_norms.items()}
            l1_norms = None if l1_norms is None else l1_norms[at]
        return Norms(
            sq_norms=sq_norms,
            total={
                name: capture.totals[name] if name in capture.totals else torch.zeros_like(p)
                for name, p in parameters.items()
            },
            l1_norms=l1_norms,
        )


def _stacked(gradients: Iterator[dict[str, Tensor]], step: int) -> Iterator[dict[str, Tensor]]:
    while waiting := list(islice(gradients, step)):
        yield {name: torch.stack([g[name] for g in waiting]) for name in waiting[0]}


def _not_finite(
    model: nn.Module,
    losses: Losses,
    batch: Batch,
    per_example: Float[Tensor, " b"],
    parameters: Mapping[str, nn.Parameter],
    wanted: list[int],
) -> Norms:
    # Within the batch one infinite derivative spoils every example (0·∞ is NaN): alone, each shows its own.
    if shared_length(batch) is None:
        return _looped(per_example, parameters, l1=True, wanted=wanted)
    norms: dict[str, list[Tensor]] = {name: [] for name in parameters}
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for i in wanted:
        alone = losses(model, map_tensors(lambda t, i=i: t[i : i + 1], batch))  # type: ignore[misc]
        for name, gradient in fallback.one_gradient(alone, 0, parameters).items():
            norms[name].append(gradient.double().square().sum())
            total[name] += gradient
    return Norms(sq_norms={name: torch.stack(rows) for name, rows in norms.items()}, total=total)


def _looped(
    per_example: Float[Tensor, " b"], parameters: Mapping[str, nn.Parameter], l1: bool, wanted: list[int]
) -> Norms:
    chosen = set(wanted)
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    norms: dict[str, list[Tensor]] = {name: [] for name in parameters}
    absolute = []
    for i, gradient in enumerate(fallback.loop(per_example, parameters)):
        for name, g in gradient.items():
            total[name] += g
            if i in chosen:
                norms[name].append(sq_norms(g.detach().unsqueeze(0)))
        if l1 and i in chosen:
            absolute.append(torch.stack([l1_norms(g.unsqueeze(0))[0] for g in gradient.values()]).sum())
    order = torch.tensor([sorted(chosen).index(i) for i in wanted])
    return Norms(
        sq_norms={name: torch.cat(rows)[order] for name, rows in norms.items()},
        total=total,
        l1_norms=torch.stack(absolute)[order] if l1 else None,
    )
