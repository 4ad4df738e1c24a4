"""One update of equation (2), shared among the workers: each differentiates its share of the batch, all add up.

Whatever happens to a worker in between (a loss that is not finite, an error in the user's code, a stop request), it
takes part in the exchange and says so there: all workers end, skip or stop at the same update.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from variegrad.batches import Batch, to_device
from variegrad.distributed.exchange import Exchange
from variegrad.distributed.packed_sum import packed_sum, packs
from variegrad.distributed.workers import World
from variegrad.keys import torch_draws
from variegrad.mechanisms.backward import StepKey, add_to_grad, surrogates
from variegrad.mechanisms.example_gradients import first_not_finite
from variegrad.mechanisms.finite import FiniteChecks, finite
from variegrad.per_example.evaluate import Losses, NotFinite, check_losses, evaluate, trained_parameters
from variegrad.training.config import TrainConfig
from variegrad.training.reading import Read
from variegrad.training.sampling import Sampling
from variegrad.training.update import Seconds

Weights = Mapping[str, nn.Parameter]
Apply = Callable[[TrainConfig, Weights, Sequence[Tensor | None]], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an update came to, the same on all workers but for the seconds.

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

    def fine(self, device: torch.device) -> Tensor:
        """Whether its losses and what a mechanism made are finite, on the device."""
        flags = [] if self.per_example is None else [finite(self.per_example)]
        flags += [] if self.checks is None or (all_hold := self.checks.all()) is None else [all_hold]
        return torch.stack(flags).all() if flags else torch.ones((), dtype=torch.bool, device=device)


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
        self.device = next(iter(self.weights.values())).device
        self.exchange = Exchange(list(self.weights.values()), world)

    def make(self, config: TrainConfig, position: int, total: int, number: int, left_out: int) -> Outcome:
        """Make one update.

        Args:
            config: the settings of this update.
            position: samples seen before it.
            total: the examples of the whole batch.
            number: updates made before it.
            left_out: updates left out before it.

        Returns:
            What it came to.

        Raises:
            ValueError: if a loss or gradient is not finite, or the losses are refused.
            RuntimeError: if another worker fails or does not answer.
        """
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
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
        fine = part.fine(self.device)
        votes = self._votes(part, fine, failure)
        packed = self._packed_sums(config, failure, position)
        if packed is None:
            self.exchange.send_rest(votes)
            sums = self.exchange.sums()
            votes = self.exchange.votes()
        else:
            sums, votes = packed, votes.double()
            self.world.wait(self.world.start_sum(votes))
        clock.append(time.perf_counter())
        whole = self.exchange.finite(sums)
        # The one read of a step: everything before it was left on the device.
        high, low, not_finite, failed, stop, fine_here, finite = torch.cat(
            [votes, torch.stack([fine, whole.to(fine.device)]).double().to(votes.device)]
        ).tolist()
        if not fine_here and failure is None:
            failure = self._named(part, NotFinite("a loss or gradient is not finite."))
        if not failed and not finite:
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
        per_example = evaluate(self.model, self.losses, part.batch, read=False)
        if len(per_example) != len(share):
            raise ValueError(
                "losses(model, batch) must return one loss per example; "
                f"got {len(per_example)} losses for a batch of {len(share)} examples."
            )
        part.per_example = per_example.detach()
        if config.mechanism is None:
            with self.exchange.overlapped():
                per_example.sum().backward()
            return
        # In a batch of fewer examples than workers, those that have one share the noise.
        active = (self.world.rank, self.world.size) if total >= self.world.size else (share.start, total)
        key = StepKey(config.seed, position, share, total, self.world.rank, active)
        totals, part.checks = surrogates(
            config.mechanism, config.granularity, self.model, self.losses, part.batch, per_example, key
        )
        add_to_grad(totals, self.weights)

    def _votes(self, part: _Part, fine: Tensor, failure: Exception | None) -> Tensor:
        """This worker's numbers: Σf in two parts, since it may travel in float32; not finite, failed, stop."""
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        loss = zero if part.per_example is None else part.per_example.double().sum()
        high = loss.float().double() if self.exchange.narrow else loss
        bad = (~fine).double() if failure is None else zero
        known = [isinstance(failure, NotFinite), failure is not None, self.world.stop_requested]
        said = torch.tensor(known, dtype=torch.float64).to(self.device, non_blocking=True)
        return torch.stack([high, loss - high, said[0] + bad, said[1] + bad, said[2]])

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
        """Σ over workers of one surrogate each, packed; None, on all workers alike, where a dense sum is to be made."""
        mechanism = config.mechanism
        if self.world.size == 1 or config.granularity != "worker" or mechanism is None or not packs(mechanism):
            return None
        weights = self.weights.values()
        parts = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        row = torch.cat([part.reshape(-1) for part in parts])
        with self.world.watched():  # where a worker is silent, it is named
            done = packed_sum(
                None if failure is not None else row, mechanism, {name: w.shape for name, w in self.weights.items()},
                seed=config.seed, step=position, dtype=row.dtype, dense_bytes=sum(part.nbytes for part in parts),
                device=self.world.device,
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
            assert failure is not None
            raise failure
        said = self.world.first_words(None if failure is None else f"{type(failure).__name__}: {failure}")
        assert said is not None  # a failure was voted for
        first, text = said
        at = f"update {number}, worker {first} of {self.world.size}"
        kind = (ValueError if text.startswith("ValueError") else RuntimeError) if finite else NotFinite
        raise kind(f"{at}: {text}") from failure
