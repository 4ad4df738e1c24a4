"""Listening to one backward pass: each output gradient meets its rules as it is made, and is freed again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node
from torch.utils.hooks import RemovableHandle

from variegrad.per_example.chains import as_one, carried_down, sum_down, summed_through_chains
from variegrad.per_example.check import naming
from variegrad.per_example.graph import Graph
from variegrad.per_example.knowledge import Knowledge
from variegrad.per_example.plan import Plan, following
from variegrad.per_example.rules import RULES, Contribution, NotCovered, Visit
from variegrad.per_example.rules.contribution import l1_norms, sq_norms
from variegrad.per_example.rules.visit import selected
from variegrad.per_example.state import aside, no_autocast
from variegrad.per_example.trial import block_sums
from variegrad.per_example.uses import Use
from variegrad.shapes import Float


class Capture:
    """Collects ‖∇f_i‖² while a backward pass runs, and Σ∇f_i where that is cheaper than leaving it to autograd."""

    def __init__(
        self,
        graph: Graph,
        known: Knowledge,
        count: int,
        plan: Plan | None,
        *,
        l1: bool = False,
        examples: Sequence[int] | None = None,
        totals: bool = True,
        keep: bool = False,
        rehearse: bool = False,
        defer: bool = False,
    ) -> None:
        self.graph, self.known, self.count, self.plan, self.l1 = graph, known, count, plan, l1
        self.keep, self.rehearse = keep, rehearse
        self.examples = None if examples is None else selected(examples)
        self.wanted = count if examples is None else len(examples)
        self.late: dict[str, str] = {}
        self.sq_norms: dict[str, Float[Tensor, " m"]] = {}
        self.totals: dict[str, Tensor] = {}
        self.fresh: set[str] = set()  # whose total is a tensor that a rule has made
        self.l1_norms: Float[Tensor, " m"] | None = None
        self.visits: dict[Node, list[tuple[str, Use]]] = defaultdict(list)
        # What a batch may break, on the device: parameter → whether it did. Without `defer` it is read at once.
        self.doubts: dict[str, Tensor] | None = {} if defer else None
        self.uses: dict[str, list[Use]] = {name: known.found(graph, name) for name in known.uses}
        # With `sums`, what a trial of the layouts needs of this pass; whether a gate that was shut has opened.
        self.sums: dict[Node, Tensor] | None = None
        self.awake: Tensor | None = None
        self.touched = self.retained = self.again = False
        self._kept: dict[str, list[tuple[Use, Contribution]]] = defaultdict(list)
        self._derived: list[tuple[str, Use, Tensor]] = []
        self._waiting: list[tuple[Node, Tensor]] = []
        self.uncovered = [name for name in graph.leaves if name in known.uncovered]
        self.bottom = [graph.order[number] for number in known.bottom]
        for name, each in self.uses.items():
            for k, use in enumerate(each):
                if (twice := use.reads_twice) is not None and self._broken(name, twice):
                    each[k] = replace(use, formed=True)
                self.visits[use.arc.node].append((name, each[k]))

        # Norms of a few examples say nothing of the sum: autograd makes it as in any step, and rules see a few rows.
        some = self.wanted < self.count and not keep
        self.left_to_autograd = set(self.uses) if some or not totals else set()
        if self.left_to_autograd:
            self.bottom = []

    def run(self, per_example: Float[Tensor, " b"], parameters: Mapping[str, nn.Parameter], *, retain: bool) -> None:
        """The backward pass itself."""
        left = [name for name in parameters if name in self.left_to_autograd]
        asleep = self.known.sleeping(self.graph)
        targets: list[Any] = [GradientEdge(node, 0) for node in self.bottom] + [parameters[name] for name in left]
        if not targets and not asleep:
            return
        handles = self.listen(skip=self.bottom)
        try:
            ones = torch.ones_like(per_example)
            # Where autograd runs through what prepares a parameter, the rules' own way down there must remain.
            self.retained = retain
            retain = retain or self.known.deferred or any(not use.plain for name in left for use in self.uses[name])
            with torch.enable_grad(), aside(parameters.values()) as passes:
                gradients = torch.autograd.grad(
                    [(per_example * ones).sum()], [*targets, *asleep], retain_graph=retain, allow_unused=True
                )
                self.touched = passes.touched
        finally:
            for handle in handles:
                handle.remove()
        with torch.no_grad():
            received: list[Tensor | None] = list(gradients[: len(targets)])
            beneath: list[Tensor | None] = list(gradients[len(targets) :])
            arrived = [g for g in beneath if g is not None]
            if arrived:
                self.awake = torch.stack([(g != 0).any().to(per_example.device) for g in arrived]).any()
            del gradients, beneath, arrived
            while self._waiting:
                self.receive(*self._waiting.pop())
            for name, gradient in zip(left, received[len(self.bottom) :], strict=True):
                if gradient is not None:
                    self.totals[name] = gradient
            for k, node in enumerate(self.bottom):
                gradient, received[k] = received[k], None  # freed as soon as it was used
                if gradient is not None:
                    self.receive(node, gradient)
            if not self.keep:
                self.finish(parameters)

    def listen(self, skip: Iterable[Node] = ()) -> list[RemovableHandle]:
        """Hook the nodes of the graph that some rule serves."""
        skipped = set(skip)

        def arrived(node: Node, gradients: tuple[Tensor | None, ...]) -> None:
            if gradients[0] is None:
                return
            if self.known.deferred:
                self._waiting.append((node, gradients[0]))
            else:
                self.receive(node, gradients[0])

        return [
            node.register_prehook(lambda g, node=node: arrived(node, g)) for node in self.visits if node not in skipped
        ]

    def receive(self, node: Node, gradient: Tensor) -> None:
        """An output gradient has been made: let the rules of its node use it."""
        layout = self.known.layout(self.graph, node)
        if self.sums is not None:
            self.sums[node] = block_sums(gradient, layout, self.count)
        with following(self.plan), no_autocast(gradient.device):
            visit = Visit(node, gradient.detach(), layout, self.count, self.examples)
            for name, use in self.visits[node]:
                if name in self.late:
                    continue
                visit.formed = name in self.known.formed
                try:
                    if gradient.is_complex():
                        raise NotCovered("complex gradients")
                    part = RULES[node.name()](visit, use.arc.slot, use.shape)
                except NotCovered as reason:
                    self.late[name] = str(reason)
                    continue
                if self.rehearse:
                    continue
                if len(self.uses[name]) == 1 and use.keeps_norms and not self.keep:
                    with naming(name):
                        self._settle(name, use, part)
                else:
                    self._kept[name].append((use, part))

    def finish(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Settle the parameters with several uses, or prepared ones, and carry sums down to the parameters."""
        with following(self.plan), no_autocast(next(iter(parameters.values())).device):
            for name, parts in self._kept.items():
                if name in self.late:
                    continue
                with naming(name):
                    if (joint := as_one(parts)) is not None:
                        self._settle(name, *joint)
                    else:
                        self._settle_through_chains(name, parameters[name], parts)
            self._kept.clear()
        for name, use, total in self._derived:
            self._add_total(name, carried_down(use, total, parameters[name]))
            if use.plain:
                self.fresh.add(name)
        self._derived.clear()

    @property
    def covered(self) -> list[str]:
        """The parameters that rules cover."""
        return [name for name in self.uses if name not in self.late]

    def kept(self, name: str) -> list[tuple[Use, Contribution]]:
        """What each use contributes to a parameter's gradients; needs `keep`."""
        return self._kept.get(name, [])

    def gradients(self, start: int, stop: int, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """∇f_i of examples start … stop−1, for the parameters that rules cover; needs `keep`."""
        names = [name for name in self.covered if name in parameters]
        return {name: self.rows(name, start, stop, parameters[name]) for name in names}

    def rows(self, name: str, start: int, stop: int, parameter: nn.Parameter) -> Float[Tensor, "t ..."]:
        """∇f_i of examples start … stop−1 for one parameter that rules cover; needs `keep`."""
        with torch.no_grad(), following(self.plan), no_autocast(parameter.device), naming(name):
            if not self._kept.get(name):
                return parameter.new_zeros(stop - start, *parameter.shape)
            return sum_down(self._kept[name], start, stop, parameter)

    def add_gradients(self, chunks: Iterable[dict[str, Tensor]], parameters: Mapping[str, nn.Parameter]) -> None:
        """Take per-example gradients that a fallback has formed."""
        norms: dict[str, list[Tensor]] = {name: [] for name in parameters}
        absolute = []
        for chunk in chunks:
            for name, rows in chunk.items():
                norms[name].append(sq_norms(rows.detach()))
                self._add_total(name, rows.sum(0))
            if self.l1:
                absolute.append(torch.stack([l1_norms(rows) for rows in chunk.values()]).sum(0))
        at = slice(None) if self.examples is None else self.examples
        for name, parts in norms.items():
            self.sq_norms[name] = torch.cat(parts)[at]
        if self.l1:
            self._add_l1(torch.cat(absolute)[at])

    def _settle(self, name: str, use: Use, part: Contribution) -> None:
        if self.l1:
            self._add_l1(torch.cat([l1_norms(part.rows(*tile)) for tile in part.tiles()]))
        summed = part.summed(total=name not in self.left_to_autograd)
        if summed.lost is not None and self._broken(name, summed.lost.any()):
            summed = part.mended(summed)
        self.sq_norms[name] = summed.sq_norms
        if summed.total is not None:
            self._derived.append((name, use, summed.total))

    def _broken(self, name: str, flag: Tensor) -> bool:
        """Whether a batch breaks what is faster for a parameter; no, until the end of the pass, if this is deferred."""
        if self.doubts is None:
            return bool(flag)
        self.doubts[name] = self.doubts[name] | flag.to(self.doubts[name].device) if name in self.doubts else flag
        return False

    def _settle_through_chains(
        self, name: str, parameter: nn.Parameter, parts: Sequence[tuple[Use, Contribution]]
    ) -> None:
        summed, absolute = summed_through_chains(
            parts, parameter, total=name not in self.left_to_autograd, absolute=self.l1
        )
        self.sq_norms[name] = summed.sq_norms
        if absolute is not None:
            self._add_l1(absolute)
        if summed.total is not None:
            self._add_total(name, summed.total)

    def _add_total(self, name: str, part: Tensor) -> None:
        self.totals[name] = self.totals[name] + part if name in self.totals else part

    def _add_l1(self, values: Float[Tensor, " m"]) -> None:
        self.l1_norms = values if self.l1_norms is None else self.l1_norms + values
