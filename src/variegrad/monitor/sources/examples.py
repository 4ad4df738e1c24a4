"""The first source: norms of some examples of the batch, by the engine's rules, inside the user's own backward pass.

The examples are drawn at random by a key: in a batch that is sorted (by length, by label) the first would not stand
for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from random import Random

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from variegrad.estimators import norms_needed
from variegrad.monitor.loss import Watched
from variegrad.per_example.capture import Capture
from variegrad.per_example.coupling import refuse_training_batch_norm
from variegrad.per_example.engine import Engine
from variegrad.per_example.graph import structure
from variegrad.per_example.knowledge import Knowledge
from variegrad.per_example.ownership import NotFinite
from variegrad.per_example.passes import gradients
from variegrad.per_example.state import left_as_found
from variegrad.per_example.step import Step

# ‖Σg‖² holds the norms of all examples, and Û subtracts those of m: with ε = 1/4 of their mean, that adds less to the
# noise of Û than the pairs of examples do in eight effective dimensions. So many are looked at in any case, but no more
# than half of a step, and at least four of each micro-batch.
ERROR, USUAL, LEAST = 0.25, 16, 4
MEMORY = 4


class Refused(Exception):  # noqa: N818
    """This source cannot serve here; the message says why."""

    of_batch_norm = False


class Examples:
    """What was learned of a model's graphs, and which of them this source cannot serve.

    Args:
        model: the unwrapped model.
        parameters: its trained parameters.
        most: m, how many examples to look at; None for what the spread of their norms asks for.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], most: int | None) -> None:
        self._model, self._parameters, self._most = model, parameters, most
        self.spread = 1.0
        """cv² of ‖g_i‖²; at first that of an exponential distribution."""
        self._engine = Engine()
        self._refused: dict[int, str] = {}
        self._known: dict[int, Knowledge] = {}

    def capture(self, watched: Watched, cells: int, *key: int) -> Capture:
        """A listener for the norms of m examples, drawn by a key; Refused if this graph has none."""
        known, count = self._knowledge(watched), watched.count
        total = count * cells
        wanted = max(norms_needed(ERROR, self.spread, total), min(USUAL, total // 2))
        most = self._most or max(LEAST, -(-wanted // cells))
        if most >= count:
            return self._listener(watched, known, None)
        # A generator of numpy takes a tenth of the time of a watched step of a small model.
        draw = Random(hash(key))  # noqa: S311 - no secret
        return self._listener(watched, known, sorted(draw.sample(range(count), most)))

    def adapt(self, cv2: float) -> None:
        """Follow the measured cv² of ‖g_i‖²: up at once, since a few examples miss the large ones, and down slowly."""
        if math.isfinite(cv2):
            self.spread = max(cv2, self.spread + (cv2 - self.spread) / MEMORY)

    def _knowledge(self, watched: Watched) -> Knowledge:
        graph = watched.graph
        key = structure(graph)
        if key in self._refused:
            raise Refused(self._refused[key])
        try:
            refuse_training_batch_norm(self._model)
        except ValueError as error:  # not remembered: a call of eval() ends it
            refused = Refused(str(error))
            refused.of_batch_norm = True
            raise refused from error
        hooked = next((name for name in graph.leaves if self._parameters[name]._backward_hooks), None)
        if hooked is not None:  # nor this: a hook may be removed
            raise Refused(f"a hook changes the gradient of parameter {hooked!r} after the rules have seen it")
        known = self._known.get(key)
        if known is not None and _holds(known) and known.fits(graph, watched.count):
            return known
        try:
            known = self._learnt(watched)
            reason = _unserved(known) or self._rehearsed(watched, known)
        except NotFinite as error:
            raise Refused("the gradients of this step are not finite") from error
        except (ValueError, RuntimeError) as error:
            reason = str(error)
        if reason is not None:
            if known is None or not known.dormant:  # a gate may open
                self._refused[key] = reason
            raise Refused(reason)
        assert known is not None
        self._known[key] = known
        return known

    def refuse(self, watched: Watched, reason: str) -> None:
        """Do not serve this structure any more."""
        self._refused[structure(watched.graph)] = reason

    def _learnt(self, watched: Watched) -> Knowledge:
        if watched.graph.hides_parameters:
            raise ValueError("a re-entrant activation checkpoint hides parameters")
        with left_as_found(self._model):  # a checkpoint runs its part of the model again
            return self._engine.knowledge(
                Step(self._model, None, None, watched.per_example(), self._parameters, watched.graph)
            )

    def _rehearsed(self, watched: Watched, known: Knowledge) -> str | None:
        """Why rules cannot work inside a whole backward pass, as the user's will be."""
        capture = self._listener(watched, known, None)
        for name, uses in capture.uses.items():
            alone = len(uses) == 1 and uses[0].keeps_norms
            if not alone and any(_saves_tensors(node) for use in uses for node in use.chain):
                return f"parameter {name!r} is computed by operations that are freed before backward ends"
        per_example = watched.per_example()
        handles = capture.listen()
        try:  # an activation checkpoint gives each input out once, to a rule or to autograd
            gradients(per_example, torch.ones_like(per_example), self._parameters.values())
        finally:
            for handle in handles:
                handle.remove()
        return None

    def _listener(self, watched: Watched, known: Knowledge, rows: list[int] | None) -> Capture:
        return Capture(watched.graph, known, watched.count, self._engine.plan, examples=rows, totals=False, defer=True)


def _unserved(known: Knowledge) -> str | None:
    if known.looped:
        return "the graph hides parameters"
    if known.deferred:
        return "activation checkpoints provide their inputs only once"
    if known.uncovered:
        name, why = next(iter(known.uncovered.items()))
        return f"parameter {name!r}: {why}"
    if known.dormant:
        return "a gate lets no gradient through yet"
    if not _holds(known):
        return "for this model, the owner of each row would have to be measured again for every batch"
    return None


def _holds(known: Knowledge) -> bool:
    """Whether what was learned holds for every batch, or a batch that breaks it is noticed at its end."""
    return known.routed and not known.dormant


def _saves_tensors(node: Node) -> bool:
    return any(isinstance(getattr(node, name), Tensor) for name in dir(node) if name.startswith("_saved_"))
