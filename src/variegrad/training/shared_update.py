"""One update of equation (2), shared among the workers: each differentiates its share of the batch, all add up.

Whatever happens to a worker in between (a loss that is not finite, an error in the user's code, a stop request), it
takes part in the exchange and reports it there: all workers end, skip or stop at the same update.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from variegrad.batches import Batch, to_device
from variegrad.distributed.exchange import Exchange
from variegrad.distributed.packed_sum import packed_sum, packs
from variegrad.distributed.world import World
from variegrad.keys import torch_draws
from variegrad.mechanisms.example_gradients import first_not_finite
from variegrad.mechanisms.finite import FiniteChecks, finite
from variegrad.mechanisms.surrogates import StepKey, add_to_grad, surrogates, takes_examples_apart
from variegrad.per_example.evaluate import Losses, NotFinite, check_losses, evaluate, trained_parameters
from variegrad.training.config import TrainConfig
from variegrad.training.reading import Read
from variegrad.training.sampling import Sampling
from variegrad.training.update import Seconds

Weights = Mapping[str, nn.Parameter]
Apply = Callable[[TrainConfig, Weights, Sequence[Tensor | None]], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of an update, the same on all workers except for the seconds.

    Attributes:
        loss_sum: Σf over the batch, before the update.
        left_out: whether it was left out.
        stop: whether a worker asked the run to end.
        seconds: how long it took.
    """

    loss_sum: float
    left_out: bool
    stop: bool
    seconds: Seconds


@dataclass
class _Part:
    """What a worker has of an update."""

    batch: Batch = None
    per_example: Tensor | None = None
    checks: FiniteChecks | None = None


class SharedUpdate:
    """Makes updates of one model.

    Args:
        model: unwrapped; trained in place.
        losses: `losses(model, batch) → (b,)`.
        world: the workers.
        read: how examples are read.
        sampling: which they are.
        count: n.
        apply: what is done with the sums of an update that all workers made well.
    """

    def __init__(
        self, model: nn.Module, losses: Losses, world: World, read: Read, sampling: Sampling, count: int, apply: Apply
    ) -> None:
        self.apply = apply
        self.model, self.losses, self.world, self.read = model, losses, world, read
        self.sampling, self.count = sampling, count
        self.weights = trained_parameters(model)
        self._modules = list(model.modules())
        self.device = next(iter(self.weights.values())).device
        self.exchange = Exchange(list(self.weights.values()), world)

    def close(self) -> None:
        """Leave the model's parameters as they were found, without hooks."""
        self.exchange.close()

    def make(self, config: TrainConfig, position: int, total: int, number: int, left_out: int) -> Outcome:
        """Make one update.

        Args:
            config: the settings of this update.
            position: samples seen before it.
            total: the examples of the whole batch.
            number: updates made before it.
            left_out: updates left out before it.

        Returns:
            Its outcome.

        Raises:
            ValueError: if a loss or gradient is not finite, or the losses are refused.
            RuntimeError: if another worker fails or does not answer.
        """
        held = [buffer for module in self._modules for buffer in module._buffers.values() if buffer is not None]
        buffers = [(buffer, buffer.clone()) for buffer in held]
        moved = False
        try:
            outcome = self._made(config, position, total, number, left_out)
            moved = not outcome.left_out
        finally:
            if not moved:  # the forward pass may have moved running statistics, also to NaN
                with torch.no_grad():
                    for buffer, before in buffers:
                        buffer.copy_(before)
        return outcome

    def _made(self, config: TrainConfig, position: int, total: int, number: int, left_out: int) -> Outcome:
        share = self.world.share(total)
        mine = range(position + share.start, position + share.stop)
        part = _Part()
        failure: Exception | None = None
        clock = [time.perf_counter()] * 2
        self.exchange.begin()
        try:
            if share:
                indices = self.sampling.samples(config.seed, mine, self.count)
                part.batch = to_device(self.read(indices, mine.start), self.device)
                clock[1] = time.perf_counter()
                with torch_draws(config.seed, "update", position, self.world.rank):
                    self._add_gradients(config, part, share, total, position)
        except NotFinite as error:
            failure = self._named(part, error)
        except Exception as error:  # noqa: BLE001 - the user's code; the others must hear of it before this worker ends
            failure = error
        clock.append(time.perf_counter())
        own, votes = self._votes(part, failure)
        packed = self._packed_sums(config, failure, position)
        if packed is None:
            self.exchange.send_rest(votes)
            sums = self.exchange.sums()
            votes = self.exchange.votes()
        else:
            sums, votes = packed, votes.double()
            self.world.wait(self.world.start_sum(votes))
        clock.append(time.perf_counter())
        whole = self.exchange.total(sums).to(votes.device).reshape(1)
        # The one read of a step: everything before it was left on the device.
        high, low, not_finite, failed, stop, *here, whole_sum = torch.cat([votes, own.to(votes.device), whole]).tolist()
        if failure is None and not (math.isfinite(here[0]) and here[1]):
            failure = self._named(part, NotFinite("a loss or gradient is not finite."))
        if not math.isfinite(high + low):  # of all workers: all see it
            not_finite, failed = not_finite + 1, failed + 1
        if not failed and not math.isfinite(whole_sum) and not all(bool(finite(s)) for s in sums if s is not None):
            failure = NotFinite("the sum of the gradients is not finite although every loss is.")
            not_finite = failed = self.world.size
        skip = bool(failed and failed == not_finite and config.when_not_finite.skips(number + 1, left_out))
        if failed and not skip:
            self._end(failure, number + 1, finite=failed != not_finite)
        if failed:
            self.exchange.begin()
        else:
            self.apply(config, self.weights, sums)
        clock.append(time.perf_counter())
        start, read, sent, received, moved = clock
        seconds = Seconds(data=read - start, compute=sent - read + moved - received, communication=received - sent)
        return Outcome(loss_sum=high + low, left_out=skip, stop=bool(stop), seconds=seconds)

    def _add_gradients(self, config: TrainConfig, part: _Part, share: range, total: int, position: int) -> None:
        """Leave this worker's sum in `.grad`, or on its way to the others."""
        mechanism = config.mechanism
        apart = mechanism is not None and takes_examples_apart(mechanism, config.granularity)
        per_example = evaluate(self.model, self.losses, part.batch, read=False, apart=apart, count=len(share))
        if len(per_example) != len(share):
            raise ValueError(
                "losses(model, batch) must return one loss per example; "
                f"got {len(per_example)} losses for a batch of {len(share)} examples."
            )
        part.per_example = per_example.detach()
        if mechanism is None:
            with self.exchange.overlapped():
                per_example.sum().backward()
            return
        # In a batch of fewer examples than workers, those that have one share the noise.
        active = (self.world.rank, self.world.size) if total >= self.world.size else (share.start, total)
        key = StepKey(config.seed, position, share, total, self.world.rank, active)
        totals, part.checks = surrogates(
            mechanism, config.granularity, self.model, self.losses, part.batch, per_example, key
        )
        add_to_grad(totals, self.weights)

    def _votes(self, part: _Part, failure: Exception | None) -> tuple[Tensor, Tensor]:
        """Σf and whether all checks hold here; and this worker's votes.

        They are Σf in two parts, since it may travel in float32 (it is not finite if a loss is not), and how many have
        something that is not finite, have failed, and were asked to stop.
        """
        # Σf, whether the checks hold; Σf, 0, not finite, failed, stop.
        known = [0.0, 1.0, 0.0, 0.0, isinstance(failure, NotFinite), failure is not None, self.world.stop_requested]
        said = torch.tensor(known, dtype=torch.float64).to(self.device, non_blocking=True)
        own, votes = said[:2], said[2:]
        if part.per_example is not None:
            torch.sum(part.per_example, (0,), dtype=torch.float64, out=own[0])
            votes[0] = own[0].float() if self.exchange.narrow else own[0]
            votes[1] = own[0] - votes[0]
        if part.checks is not None and failure is None and (all_hold := part.checks.all()) is not None:
            own[1] = all_hold
            votes[2:4] += ~all_hold
        return own, votes

    def _named(self, part: _Part, found: NotFinite) -> NotFinite:
        """Which example or parameter is not finite on this worker: asked for only if one is."""
        try:
            if part.per_example is not None:
                check_losses(part.per_example.detach().requires_grad_())
            if part.checks is not None:
                part.checks.refuse()
        except NotFinite as error:
            if part.checks is None:
                return error
            found = error
        return first_not_finite(self.model, self.losses, part.batch, self.weights) or found

    def _packed_sums(self, config: TrainConfig, failure: Exception | None, position: int) -> list[Tensor | None] | None:
        """Σ over workers of one surrogate each, packed; None, on all workers alike, if a dense sum is to be made."""
        mechanism = config.mechanism
        if self.world.size == 1 or config.granularity != "worker" or mechanism is None or not packs(mechanism):
            return None
        weights = self.weights.values()
        parts = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        row = torch.cat([part.reshape(-1) for part in parts])
        done = packed_sum(
            None if failure is not None else row, mechanism, {name: w.shape for name, w in self.weights.items()},
            seed=config.seed, step=position, dtype=row.dtype, dense_bytes=sum(part.nbytes for part in parts),
            world=self.world,
        )  # fmt: skip
        if done.total is None:
            return None
        for weight in weights:
            weight.grad = None
        pieces = done.total.split([w.numel() for w in weights])
        return [piece.view_as(w).to(w.dtype) for piece, w in zip(pieces, weights, strict=True)]

    def _end(self, failure: Exception | None, number: int, *, finite: bool) -> None:
        """Raise on every worker what happened on some."""
        if self.world.size == 1:
            raise failure or NotFinite("the sum of the losses overflows although every loss is finite.")
        said = self.world.first_words(None if failure is None else f"{type(failure).__name__}: {failure}")
        if said is None:
            raise NotFinite(f"update {number}: the sum of the losses overflows although every loss is finite.")
        first, text = said
        at = f"update {number}, worker {first} of {self.world.size}"
        kind = (ValueError if text.startswith("ValueError") else RuntimeError) if finite else NotFinite
        raise kind(f"{at}: {text}") from failure
