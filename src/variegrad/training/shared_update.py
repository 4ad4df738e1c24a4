"""One update of equation (2), shared among the workers: each differentiates its share of the batch, all add up.

Whatever happens to a worker in between (a loss that is not finite, an error in the user's code, a stop request), it
takes part in the exchange and says so there: all workers end, skip or stop at the same update.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from variegrad.batches import Batch, to_device
from variegrad.distributed.exchange import Exchange
from variegrad.distributed.packed_sum import packed_sum, packs
from variegrad.distributed.workers import World
from variegrad.keys import torch_draws
from variegrad.mechanisms import backward
from variegrad.per_example.evaluate import Losses, NotFinite, evaluate, trained_parameters
from variegrad.training.config import TrainConfig
from variegrad.training.reading import Read
from variegrad.training.sampling import Sampling
from variegrad.training.update import Seconds


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


class SharedUpdate:
    """Makes updates of one model.

    Args:
        model: unwrapped; trained in place.
        losses: `losses(model, batch) → (b,)`.
        world: the workers.
        read: how examples are read.
        sampling: which they are.
        count: n.
    """

    def __init__(
        self, model: nn.Module, losses: Losses, world: World, read: Read, sampling: Sampling, count: int
    ) -> None:
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
        share = self.world.share(total)
        mine = range(position + share.start, position + share.stop)
        loss_sum, failure = 0.0, None
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        clock = [time.perf_counter()] * 2
        self.exchange.begin()
        try:
            if share:
                indices = self.sampling.samples(config.seed, mine, self.count)
                batch = to_device(self.read(indices, mine.start), self.device)
                clock[1] = time.perf_counter()
                with torch_draws(config.seed, "update", position, self.world.rank):
                    loss_sum = self._add_gradients(config, batch, share, total, position)
        except Exception as error:  # noqa: BLE001 - the user's code; the others must hear of it before this worker ends
            failure = error
        clock.append(time.perf_counter())
        packed = self._packed_sums(config, failure, position)
        if packed is None:
            self.exchange.send_rest()
        said = [loss_sum, isinstance(failure, NotFinite), failure is not None, self.world.stop_requested]
        votes = torch.tensor(said, dtype=torch.float64, device=self.world.device)
        vote = self.world.start_sum(votes)
        sums = self.exchange.sums() if packed is None else packed
        self.world.wait(vote)
        clock.append(time.perf_counter())
        loss_sum, not_finite, failed, stop = votes.tolist()
        if not failed and not self.exchange.finite(sums):
            failure = NotFinite("the sum of the gradients is not finite although every loss is.")
            not_finite = failed = self.world.size
        skip = bool(failed and failed == not_finite and config.when_not_finite.skips(number + 1, left_out))
        if failed:  # the forward pass may have moved running statistics, also to NaN
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
        if failed and not skip:
            self._end(failure, number + 1, finite=failed != not_finite)
        if not failed:
            self._move(config, sums)
        clock.append(time.perf_counter())
        start, read, sent, received, moved = clock
        seconds = Seconds(data=read - start, compute=sent - read + moved - received, communication=received - sent)
        return Outcome(loss_sum=loss_sum, left_out=skip, stop=bool(stop), seconds=seconds)

    def _add_gradients(self, config: TrainConfig, batch: Batch, share: range, total: int, position: int) -> float:
        """Leave this worker's sum in `.grad`, or on its way to the others; return the sum of its losses."""
        if config.mechanism is None:
            per_example = evaluate(self.model, self.losses, batch)
            if len(per_example) != len(share):
                raise ValueError(f"losses returned {len(per_example)} losses for a batch of {len(share)} examples.")
            with self.exchange.overlapped():
                per_example.sum().backward()
        else:
            per_example = backward(
                self.model, self.losses, batch, mechanism=config.mechanism, seed=config.seed, samples_seen=position,
                granularity=config.granularity, positions=share, total=total, worker=self.world.rank,
            )  # fmt: skip
        return float(per_example.detach().double().sum())

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

    def _move(self, config: TrainConfig, sums: list[Tensor | None]) -> None:
        with torch.no_grad():
            for weight, gradient in zip(self.weights.values(), sums, strict=True):
                if gradient is not None:
                    weight.sub_(gradient, alpha=config.step_size)
            if config.projection is not None:
                config.projection.project({name: weight.data for name, weight in self.weights.items()})

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
