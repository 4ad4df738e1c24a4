"""‖∇f_i‖² for every example, and Σ_i ∇f_i, from one forward and one backward pass.

The graph shows every use of every parameter; a use whose output gradient is owned row by row goes to the rule of its
node, from inside the backward pass, so that each output gradient is freed as soon as it was used. The pass is asked for
the lowest of these nodes only, and therefore skips every weight gradient that a rule forms itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor, nn

from variegrad.batches import Batch
from variegrad.per_example import fallback
from variegrad.per_example.capture import Capture
from variegrad.per_example.evaluate import Losses
from variegrad.per_example.graph import Graph, read_graph
from variegrad.per_example.knowledge import Knowledge, learn
from variegrad.per_example.plan import Plan
from variegrad.per_example.rules import Dense

# Relative error of ‖∇f_i‖² against the loop above which the engine refuses its own result.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
LOW_PRECISION_TOLERANCE = 0.1


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
        self.plan = Plan() if measured else None
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
            ValueError: if the examples are coupled.
            RuntimeError: if the check against the loop fails.
        """
        count = len(per_example)
        wanted = list(range(count)) if examples is None else list(examples)
        graph = self.graph(per_example, parameters)
        if count == 1 or graph.hides_parameters:
            return _looped(per_example, parameters, l1, wanted)
        known = self.knowledge(graph, model, losses, batch, per_example, parameters)
        if known.everything_looped:
            return _looped(per_example, parameters, l1, wanted)
        if not self.verify or known.verified:
            return self._visit(graph, known, model, losses, batch, per_example, parameters, l1, examples)

        two = sorted({wanted[0], wanted[-1]})
        expected = {i: fallback.one_gradient(per_example, i, parameters) for i in two}
        plain = torch.autograd.grad(per_example.sum(), list(parameters.values()), retain_graph=True, allow_unused=True)
        found = self._visit(graph, known, model, losses, batch, per_example, parameters, l1, examples, retain=True)
        known.verified = True
        worst = _worst_mismatch(found, wanted, expected, dict(zip(parameters, plain, strict=True)), graph.low_precision)
        if worst is None:
            return found
        known.verified = False
        if graph.opaque:
            # A custom Function may hold parameters that the graph does not show: only the loop sees them.
            known.everything_looped = True
            return _looped(per_example, parameters, l1, wanted)
        raise _mismatch(*worst)

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
        graph = self.graph(per_example, parameters)
        looped = count == 1 or graph.hides_parameters
        if not looped:
            known = self.knowledge(graph, model, losses, batch, per_example, parameters)
            looped = known.everything_looped or bool(graph.opaque)
        if looped:
            yield from _stacked(fallback.loop(per_example, parameters), step)
            return
        capture = Capture(graph, known, count, self.plan, keep=True)
        capture.run(per_example, parameters, retain=True)
        rest = {name: parameters[name] for name in (*capture.uncovered, *capture.late)}
        others = _stacked(fallback.loop(per_example, rest), step) if rest else None
        if self.verify and not known.verified:
            for i in (0, count - 1):
                expected = fallback.one_gradient(per_example, i, parameters)
                _check_rows(capture.gradients(i, i + 1, parameters), expected, graph.low_precision)
            known.verified = True
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
        key = graph.signature
        known = self.known.get(key)
        if known is None or not known.certain or not known.fits(graph, len(per_example)):
            fresh = learn(graph, model, losses, batch, per_example, parameters)
            if known is not None:
                fresh.verified, fresh.vectorize = known.verified, known.vectorize
                fresh.uncovered = {**known.uncovered, **fresh.uncovered}
                fresh.everything_looped = known.everything_looped
            self.known[key] = known = fresh
        return known

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
        capture = Capture(graph, known, len(per_example), self.plan, l1=l1, examples=examples)
        rest = {name: parameters[name] for name in capture.uncovered}
        if rest:
            capture.add_gradients(fallback.gradients(model, losses, batch, per_example, rest, known), rest)
        retain = retain or not known.verified
        totals = capture.run(per_example, parameters, retain=retain)
        if late := {name: parameters[name] for name in capture.late}:
            known.leave_out(capture.late)
            if not retain:
                raise RuntimeError(f"the layout of {sorted(late)} changed from one batch to the next; call again.")
            capture.add_gradients(fallback.gradients(model, losses, batch, per_example, late, known), late)
        zeros = torch.zeros(capture.wanted, dtype=torch.float64, device=per_example.device)
        return Norms(
            sq_norms={name: capture.sq_norms.get(name, zeros) for name in parameters},
            total={
                name: capture.totals[name] if name in capture.totals else totals.get(name, torch.zeros_like(p))
                for name, p in parameters.items()
            },
            l1_norms=capture.l1_norms,
        )


def _stacked(gradients: Iterator[dict[str, Tensor]], step: int) -> Iterator[dict[str, Tensor]]:
    while waiting := list(islice(gradients, step)):
        yield {name: torch.stack([g[name] for g in waiting]) for name in waiting[0]}


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
                norms[name].append(Dense(g.detach().unsqueeze(0)).summed(total=False).sq_norms)
        if l1 and i in chosen:
            absolute.append(sum(g.abs().sum(dtype=torch.float64) for g in gradient.values()))
    order = torch.tensor([sorted(chosen).index(i) for i in wanted])
    return Norms(
        sq_norms={name: torch.cat(rows)[order] for name, rows in norms.items()},
        total=total,
        l1_norms=torch.stack(absolute)[order] if l1 else None,  # type: ignore[arg-type]
    )


def _mismatch(name: str, relative: float) -> RuntimeError:
    return RuntimeError(
        f"the per-example gradients of parameter {name!r} differ from the loop by a relative {relative:.2g}: refusing to "
        "return them. Does the backward pass of this model change from call to call, or is it non-linear in its output "
        "gradient? variegrad.per_example.loop_gradients is slow and always right."
    )


def _check_rows(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], low_precision: bool) -> None:
    whole = sum(float(g.double().square().sum()) for g in expected.values()) ** 0.5
    for name, rows in found.items():
        off = float((rows[0].double() - expected[name].double()).norm())
        if not off <= (LOW_PRECISION_TOLERANCE if low_precision else TOLERANCE[rows.dtype]) * whole:
            raise _mismatch(name, off / whole if whole else off)


def _worst_mismatch(
    found: Norms,
    wanted: list[int],
    expected: Mapping[int, Mapping[str, Tensor]],
    plain: Mapping[str, Tensor | None],
    low_precision: bool,
) -> tuple[str, float] | None:
    worst: tuple[str, float] | None = None
    scale = sum(float(g.double().square().sum()) for g in plain.values() if g is not None)
    for name, total in found.total.items():
        tolerance = LOW_PRECISION_TOLERANCE if low_precision else TOLERANCE[total.dtype]
        reference = plain[name]
        off = total.double() if reference is None else total.double() - reference.double()
        # Rounding of a sum that nearly cancels is relative to its parts.
        parts = max(scale, float(found.sq_norms[name].sum()))
        errors = [(float(off.square().sum()) / parts) ** 0.5 if parts else 0.0]
        for i, gradient in expected.items():
            whole = sum(float(g.double().square().sum()) for g in gradient.values())
            difference = abs(
                float(found.sq_norms[name][wanted.index(i)]) - float(gradient[name].double().square().sum())
            )
            errors.append(difference / whole if whole else difference)
        error = max(errors)
        if not error <= tolerance and (worst is None or error > worst[1]):
            worst = (name, error)
    return worst
