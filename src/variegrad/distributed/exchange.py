"""Σ over workers of the gradients of one backward pass, in flat buckets that are sent while the pass is still running.

Parameters are taken in reverse order, as a backward pass reaches them. Buckets are sent in the same order on all
workers, also if a parameter was not reached (its gradient is zero) or a worker had no example, so that no worker waits
for another's graph. Gradients are added, not averaged. A few numbers of each worker (its votes) are appended to the
last bucket, which is sent when the pass has ended: a step is one exchange, with no separate message for them.

Source: Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel Training".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from variegrad.distributed.world import World
from variegrad.mechanisms.finite import total
from variegrad.shapes import Float

FIRST_BYTES = 2**20  # the first bucket is small, so that sending begins early
BYTES = 25 * 2**20
VOTES = 5  # numbers behind the last bucket


@dataclass(eq=False)
class _Bucket:
    flat: Tensor  # what is sent
    gradients: Tensor  # the part of it that is gradients
    places: dict[nn.Parameter, Tensor]  # each parameter's part of `flat`, in its shape
    waiting: set[nn.Parameter] = field(default_factory=set)
    work: dist.Work | None = None


class Exchange:
    """The buckets of a model's trained parameters.

    Args:
        parameters: in the order of the model.
        world: the workers.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], world: World) -> None:
        self.parameters, self.world = list(parameters), world
        self._buckets, self._tail = _buckets(self.parameters) if world.size > 1 else ([], torch.zeros(0))
        self._bucket_of = {p: bucket for bucket in self._buckets for p in bucket.places}
        self._sent = 0
        self._sending = False
        self._hooks = [p.register_post_accumulate_grad_hook(self._arrived) for p in self._bucket_of]

    def close(self) -> None:
        """Take the hooks off the parameters."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @contextmanager
    def overlapped(self) -> Iterator[None]:
        """Send each bucket as soon as the backward pass inside the block has filled it and those before it.

        Yields:
            Nothing.
        """
        self._sending = True
        try:
            yield
        finally:
            self._sending = False

    def begin(self) -> None:
        """Begin a step: gradients of an earlier one are forgotten."""
        for parameter in self.parameters:
            parameter.grad = None
        for bucket in self._buckets:
            bucket.waiting = set(bucket.places)
            bucket.work = None
        self._sent = 0

    def _arrived(self, parameter: nn.Parameter) -> None:
        if not self._sending:  # another backward pass
            return
        bucket = self._bucket_of[parameter]
        if parameter not in bucket.waiting:
            raise RuntimeError(
                "a parameter's gradient arrived twice in one backward pass, as with reentrant activation checkpoints. "
                "Use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
            )
        self._fill(bucket, parameter)
        while self._sent < len(self._buckets) - 1 and not self._buckets[self._sent].waiting:
            self._send()

    def _fill(self, bucket: _Bucket, parameter: nn.Parameter) -> None:
        bucket.waiting.discard(parameter)
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:
            bucket.places[parameter].zero_()
        else:
            bucket.places[parameter].copy_(gradient.to_dense() if gradient.is_sparse else gradient)

    def _send(self) -> None:
        bucket = self._buckets[self._sent]
        self._sent += 1  # first: if sending fails, it is not tried again
        bucket.work = self.world.start_sum(bucket.flat)

    def send_rest(self, votes: Float[Tensor, " votes"]) -> None:
        """Send what has not left yet, from `.grad`; what was not reached is zero.

        Args:
            votes: this worker's `VOTES` numbers, real; one worker alone sends them to itself.
        """
        if self._buckets:
            self._tail.copy_(votes)
        else:
            self._tail = votes
        while self._sent < len(self._buckets):
            bucket = self._buckets[self._sent]
            for parameter in tuple(bucket.waiting):
                self._fill(bucket, parameter)
            self._send()

    @property
    def narrow(self) -> bool:
        """Whether votes travel in 32 bits."""
        return self._tail.dtype in (torch.float32, torch.complex64) and bool(self._buckets)

    def votes(self) -> Float[Tensor, " votes"]:
        """Σ over workers of what they sent behind the last bucket, once `sums` has waited for it.

        Returns:
            Float64, on the device.
        """
        return (self._tail.real if self._tail.is_complex() else self._tail).double()

    def total(self, sums: Sequence[Tensor | None]) -> Float[Tensor, ""]:
        """A number that is not finite if one of the sums is not: the same on all workers, who have the same sums.

        Args:
            sums: what `sums` returned, or sums that were made elsewhere.

        Returns:
            Float64, on the device; it may overflow although all are finite.
        """
        flat = [bucket.gradients for bucket in self._buckets if bucket.work is not None]  # none if nothing was sent
        totals = [total(part) for part in flat or [each for each in sums if each is not None]]
        return torch.stack(totals).sum() if totals else torch.zeros((), dtype=torch.float64)

    def sums(self) -> list[Tensor | None]:
        """Σ over workers of each parameter's gradient, once all have come; `.grad` is left empty.

        Returns:
            For each parameter its sum; None if no worker can have one. Valid until the next step.

        Raises:
            RuntimeError: if a worker does not answer.
        """
        if self._buckets:
            self.world.wait(*(bucket.work for bucket in self._buckets))
            return [self._bucket_of[parameter].places[parameter] for parameter in self.parameters]
        found = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        return found


def _buckets(parameters: Sequence[nn.Parameter]) -> tuple[list[_Bucket], Tensor]:
    groups: list[list[nn.Parameter]] = []
    room = 0
    for parameter in reversed(parameters):
        size = parameter.numel() * parameter.element_size()
        alike = groups and (groups[-1][0].dtype, groups[-1][0].device) == (parameter.dtype, parameter.device)
        if not alike or room < 0:
            groups.append([])
            room = FIRST_BYTES if len(groups) == 1 else BYTES
        groups[-1].append(parameter)
        room -= size
    made: list[_Bucket] = []
    tail = torch.zeros(VOTES)
    for number, group in enumerate(groups):
        count = sum(p.numel() for p in group)
        room = count + (VOTES if number == len(groups) - 1 else 0)
        flat = torch.zeros(room, dtype=_summed_in(group[0].dtype), device=group[0].device)
        gradients, tail = flat[:count], flat[count:]
        parts = gradients.split([p.numel() for p in group])
        places = {p: part.view_as(p) for p, part in zip(group, parts, strict=True)}
        made.append(_Bucket(flat, gradients, places))
    return made, tail


def _summed_in(dtype: torch.dtype) -> torch.dtype:
    """Sums of 16-bit gradients are float32: eight bits of a sum would be lost with each worker."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
