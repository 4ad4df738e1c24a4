"""The first source: norms of some examples of the batch, by the engine's rules, inside the user's own backward pass."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from variegrad.monitor.watched import Watched
from variegrad.per_example.capture import Capture
from variegrad.per_example.coupling import refuse_training_batch_norm
from variegrad.per_example.engine import Engine
from variegrad.per_example.evaluate import left_as_found
from variegrad.per_example.knowledge import Knowledge
from variegrad.per_example.ownership import NotFinite
from variegrad.per_example.trust import structure

USUAL = 16
# A structure is compared with the loop when first met, then at its 2nd, 4th, 8th … reading, and at least so often:
# first at all parameters, then through the whole depth, later near the loss, where it takes no memory worth mentioning.
CHECK_AT_LEAST_EVERY = 32
DEEP_CHECKS = 2


class Refused(Exception):  # noqa: N818
    """This source cannot serve here; the message says why."""


class Examples:
    """What was learnt of a model's graphs, and which of them this source cannot serve.

    Args:
        model: the unwrapped model.
        parameters: its trained parameters.
        most: m, how many examples to look at; None for 16, and no more than half of a batch.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], most: int | None) -> None:
        self._model, self._parameters, self._most = model, parameters, most
        self._engine = Engine()
        self._refused: dict[int, str] = {}
        self._known: dict[int, Knowledge] = {}
        self._readings: dict[int, int] = {}

    def known(self, watched: Watched) -> Knowledge:
        """What is known of the graph of what is watched; learnt where its structure is new.

        Args:
            watched: this step's losses.

        Returns:
            The knowledge.

        Raises:
            Refused: if norms of examples cannot be had from this graph.
        """
        graph = watched.graph
        key = structure(graph)
        if key in self._refused:
            raise Refused(self._refused[key])
        try:
            refuse_training_batch_norm(self._model)
        except ValueError as error:  # not remembered: a call of eval() ends it
            raise Refused(str(error)) from error
        known = self._known.get(key)
        if known is not None and known.certain and known.fits(graph, watched.count):
            return known
        try:
            known = self._learnt(watched)
            reason = _unserved(known) or self._rehearsed(watched, known)
        except NotFinite as error:
            raise Refused("the gradients of this step are not finite") from error
        except (ValueError, RuntimeError) as error:
            reason = str(error)
        if reason is not None:
            self._refused[key] = reason
            raise Refused(reason)
        assert known is not None
        self._known[key] = known
        return known

    def _learnt(self, watched: Watched) -> Knowledge:
        if watched.graph.hides_parameters:
            raise ValueError("a re-entrant activation checkpoint hides parameters")
        with left_as_found(self._model):  # a checkpoint runs its part of the model again
            return self._engine.knowledge(
                watched.graph, self._model, None, None, watched.per_example(), self._parameters
            )

    def _rehearsed(self, watched: Watched, known: Knowledge) -> str | None:
        """Why rules cannot work inside a whole backward pass, as the user's will be."""
        capture = self.capture(watched, known)
        for name, uses in capture.uses.items():
            alone = len(uses) == 1 and uses[0].keeps_norms
            if not alone and any(_saves_tensors(node) for use in uses for node in use.chain):
                return f"parameter {name!r} is prepared by operations that are gone when the backward pass ends"
        per_example = watched.per_example()
        handles = capture.listen()
        try:  # an activation checkpoint gives each input out once, to a rule or to autograd
            torch.autograd.grad(
                [per_example], list(self._parameters.values()), [torch.ones_like(per_example)],
                retain_graph=True, allow_unused=True,
            )  # fmt: skip
        finally:
            for handle in handles:
                handle.remove()
        return None

    def capture(self, watched: Watched, known: Knowledge) -> Capture:
        """A listener for the norms of the first m examples, which leaves all sums to the user's backward pass.

        Args:
            watched: this step's losses.
            known: of `known`.

        Returns:
            The listener.
        """
        # ‖Σg‖² is of all examples and varies more than M̂²: half of a small batch loses little, and costs half.
        most = min(USUAL, max(2, watched.count // 2)) if self._most is None else self._most
        some = range(most) if most < watched.count else None
        return Capture(watched.graph, known, watched.count, self._engine.plan, examples=some, totals=False)

    def to_check(self, watched: Watched) -> dict[str, nn.Parameter] | None:
        """The parameters whose sums are to be compared with the loop at this reading; counts a structure's readings.

        Args:
            watched: this step's losses.

        Returns:
            All at first; later, now and then, a weight and a bias; otherwise None.
        """
        number = self._readings[watched.graph.signature] = self._readings.get(watched.graph.signature, 0) + 1
        if number == 1:
            return dict(self._parameters)
        if number & (number - 1) and number % CHECK_AT_LEAST_EVERY:
            return None
        if number <= DEEP_CHECKS:
            names = sorted(watched.graph.leaves, key=lambda name: self._parameters[name].numel())
        else:  # a further pass down to the first layers would keep all activations until its end
            names = watched.graph.last_used
        flat = [name for name in names if self._parameters[name].dim() < 2][:1]
        return {name: self._parameters[name] for name in [n for n in names if n not in flat][:1] + flat}

    def not_checked(self, watched: Watched) -> None:
        """Let the next reading of this structure be compared as if it were the first.

        Args:
            watched: this step's losses.
        """
        self._readings.pop(watched.graph.signature, None)


def _unserved(known: Knowledge) -> str | None:
    if known.everything_looped:
        return "the graph hides parameters"
    if known.deferred:
        return "activation checkpoints give their inputs out only once"
    if known.uncovered:
        name, why = next(iter(known.uncovered.items()))
        return f"parameter {name!r}: {why}"
    if not known.certain:
        return "whose row is whose would have to be measured anew for every batch of this model"
    return None


def _saves_tensors(node: Node) -> bool:
    return any(isinstance(getattr(node, name), Tensor) for name in dir(node) if name.startswith("_saved_"))
