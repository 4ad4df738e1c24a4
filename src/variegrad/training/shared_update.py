"""One update of equation (2), shared among the workers: each differentiates its share of the batch, all add up.

Whatever happens to a worker in between (a loss that is not finite, an error in the user's code, a wish to stop), it
takes part in the exchange and says so there: all workers end, skip or stop at the same update.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from variegrad.batches import Batch, to_device
from variegrad.distributed.exchange import Exchange
from variegrad.distributed.packed_sum import packed_sum, packs
from variegrad.distributed.workers import World
from variegrad.keys import torch_draws
from variegrad.mechanisms import backward
from variegrad.per_example.evaluate import Losses, NotFinite, evaluate, trained_parameters
from variegrad.training.config import TrainConfig
from variegrad.training.examples import Read
from variegrad.training.step import Seconds


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an update came to, the same on all workers but for the seconds.

    Attributes:
        loss_sum: Σf over the batch, before the update.
        skipped: whether it was left out.
        stop: whether a worker asked the run to end.
        seconds: how long it took.
    """

    loss_sum: float
    skipped: bool
    stop: bool
    seconds: Seconds


class SharedUpdate:
    """Makes updates of one model.

    Args:
        model: unwrapped; trained in place.
        losses: `losses(model, batch) → (b,)`.
        config: γ, m, W.
        world: the workers.
        read: how examples are read.
    """

    def __init__(self, model: nn.Module, losses: Losses, config: TrainConfig, world: World, read: Read) -> None:
        self.model, self.losses, self.config, self.world, self.read = model, losses, config, world, read
        self.weights = trained_parameters(model)
        self.device = next(iter(self.weights.values())).device
        self.exchange = Exchange(list(self.weights.values()), world)

    def make(self, indices: Int[Tensor, " b"], position: int, update: int, skipped: int) -> Outcome:
        """Make one update.

        Args:
            indices: the examples of the whole batch.
            position: samples seen before it.
            update: updates made before it; the mechanism's step.
            skipped: updates left out before it.

        Returns:
            What it came to.

        Raises:
            ValueError: if a loss or gradient is not finite, or the losses are refused.
            RuntimeError: if another worker fails or does not answer.
        """
        share = self.world.share(len(indices))
        loss_sum, failure = 0.0, None
        clock = [time.perf_counter()] * 2
        self.exchange.begin()
        try:
            if share:
                batch = to_device(self.read(indices[share.start : share.stop], position + share.start), self.device)
                clock[1] = time.perf_counter()
                with torch_draws(self.config.seed, "update", update, self.world.rank):
                    loss_sum = self._add_gradients(batch, share, len(indices), update)
        except Exception as error:  # noqa: BLE001 - the user's code; the others must hear of it before this worker ends
            failure = error
        clock.append(time.perf_counter())
        packed = self._packed_sums(failure, update)
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
        skip = bool(failed and failed == not_finite and self.config.when_not_finite.skips(update + 1, skipped))
        if failed and not skip:
            self._end(failure, update + 1, finite=failed != not_finite)
        if not failed:
            self._move(sums)
        clock.append(time.perf_counter())
        start, read, sent, received, moved = clock
        seconds = Seconds(data=read - start, compute=sent - read + moved - received, communication=received - sent)
        return Outcome(loss_sum=loss_sum, skipped=skip, stop=bool(stop), seconds=seconds)

    def _add_gradients(self, batch: Batch, share: range, total: int, update: int) -> float:
        """Leave this worker's sum in `.grad`, or on its way to the others; return the sum of its losses."""
        config = self.config
        if config.mechanism is None:
            per_example = evaluate(self.model, self.losses, batch)
            if len(per_example) != len(share):
                raise ValueError(f"losses returned {len(per_example)} losses for a batch of {len(share)} examples.")
            with self.exchange.overlapped():
                per_example.sum().backward()
        else:
            per_example = backward(
                self.model, self.losses, batch, mechanism=config.mechanism, seed=config.seed, step=update,
                granularity=config.granularity, positions=share, total=total, worker=self.world.rank,
            )  # fmt: skip
        return float(per_example.detach().double().sum())

    def _packed_sums(self, failure: Exception | None, update: int) -> list[Tensor | None] | None:
        """Σ over workers of one surrogate each, packed; None, on all workers alike, where a dense sum is to be made."""
        config, mechanism = self.config, self.config.mechanism
        if self.world.size == 1 or config.granularity != "worker" or mechanism is None or not packs(mechanism):
            return None
        weights = self.weights.values()
        parts = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        row = torch.cat([part.reshape(-1) for part in parts])
        with self.world.watched():  # where a worker is silent, it is named
            done = packed_sum(
                None if failure is not None else row, mechanism, {name: w.shape for name, w in self.weights.items()},
                seed=config.seed, step=update, dtype=row.dtype, dense_bytes=sum(part.nbytes for part in parts),
                device=self.world.device,
            )  # fmt: skip
        if done.total is None:
            return None
        for weight in weights:
            weight.grad = None
        pieces = done.total.split([w.numel() for w in weights])
        return [piece.view_as(w).to(w.dtype) for piece, w in zip(pieces, weights, strict=True)]

    def _move(self, sums: list[Tensor | None]) -> None:
        with torch.no_grad():
            for weight, gradient in zip(self.weights.values(), sums, strict=True):
                if gradient is not None:
                    weight.sub_(gradient, alpha=self.config.step_size)
            if self.config.projection is not None:
                self.config.projection.project({name: weight.data for name, weight in self.weights.items()})

    def _end(self, failure: Exception | None, number: int, *, finite: bool) -> None:
        """Raise on every worker what happened on some."""
        if self.world.size == 1:
            assert failure is not None
            raise failure
        said = "" if failure is None else f"{type(failure).__name__}: {failure}"
        first, text = next((rank, text) for rank, text in enumerate(self.world.gather(said)) if text)
        at = f"update {number}, worker {first} of {self.world.size}"
        kind = (ValueError if text.startswith("ValueError") else RuntimeError) if finite else NotFinite
        raise kind(f"{at}: {text}") from failure
