"""Readings that are the same on all workers, at no further message: sums ride on an all-reduce that takes place anyway.

A communication hook of DistributedDataParallel sees each bucket of local gradients. On watched steps it appends this
worker's sums to the last bucket; all other buckets and steps pass as they would without it, to the last bit
(from three workers on, a longer bucket may be added up in another order). The norm
of the averaged gradient is then taken locally, after the backward pass, from gradients that are equal on all workers.
"""

# No postponed annotations here: DistributedDataParallel looks at those of a hook.
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from variegrad.monitor.step_sums import StepSums
from variegrad.monitor.tail import digits_as_tail, sums_as_tail, sums_of_digits, sums_of_tail

Hook = Callable[[Any, Any], Any]


class WorkerNorms:
    """The exchange of step sums between workers.

    Args:
        inner: the hook that does the averaging; None for the plain average.

    Raises:
        ValueError: if it is not known that a hook treats entries of a bucket one by one.
    """

    def __init__(self, inner: Hook | None = None) -> None:
        self.inner, self.wire = inner, _wire(inner)
        self.send: Callable[[], StepSums] | None = None
        """Where this worker's sums come from; None on steps that are not watched, and after they were sent."""
        self._received: Callable[[], StepSums] | None = None

    @property
    def workers(self) -> int:
        """P."""
        return dist.get_world_size()

    def take(self) -> StepSums | None:
        """The sums over all workers; None if no last bucket was reduced since they were to be sent.

        Returns:
            The sums.
        """
        received, self._received, self.send = self._received, None, None
        return None if received is None else received()

    def average(self, state: Any, bucket: Any) -> torch.futures.Future[Tensor]:
        """One bucket's average over the workers, with sums behind it where they are due.

        Args:
            state: of the inner hook.
            bucket: the local gradients.

        Returns:
            The averaged bucket, in the future.
        """
        buffer = bucket.buffer()
        if self.send is None or not bucket.is_last() or buffer.is_sparse:
            return self._averaged(state, bucket, buffer, len(buffer))
        send, self.send = self.send, None
        wire = self.wire or buffer.dtype
        sums, many = send(), self.workers
        if wire in (torch.float32, torch.float64):
            tail = sums_as_tail(sums, buffer)
        else:
            tail = digits_as_tail(sums, dist.get_rank(), many, wire, buffer)
        whole, length = torch.cat([buffer, tail]), len(buffer)
        exact = self.inner is None and wire in (torch.float32, torch.float64)
        future = self._averaged(state, bucket, whole, length if exact else len(whole))

        def part(done: torch.futures.Future[Tensor]) -> Tensor:
            value = done.value()
            received = value[length:].clone()
            self._received = (lambda: sums_of_tail(received)) if exact else (
                (lambda: sums_of_tail(received * many)) if wire in (torch.float32, torch.float64)
                else (lambda: sums_of_digits(received, many, wire))
            )  # fmt: skip
            reduced: Tensor = buffer.copy_(value[:length])
            return reduced

        return future.then(part)

    def _averaged(self, state: Any, bucket: Any, tensor: Tensor, averaged: int) -> torch.futures.Future[Tensor]:
        if self.inner is not None:
            if tensor is not bucket.buffer():
                bucket.set_buffer(tensor)
            future: torch.futures.Future[Tensor] = self.inner(state, bucket)
            return future
        # As DistributedDataParallel itself does: a product with 1/P before the sum.
        group = state if isinstance(state, dist.ProcessGroup) else dist.group.WORLD
        tensor[:averaged].mul_(1 / group.size())  # type: ignore[union-attr]
        work = dist.all_reduce(tensor, group=group, async_op=True)
        return work.get_future().then(lambda done: done.value()[0])  # type: ignore[no-any-return]


def communication_hook(norms: WorkerNorms) -> Hook:
    """The exchange as DistributedDataParallel wants a hook to be.

    Args:
        norms: the exchange.

    Returns:
        A plain function.
    """

    def with_worker_norms(
        state: Any,
        bucket: dist.GradBucket,  # type: ignore[name-defined]
    ) -> torch.futures.Future[Tensor]:
        return norms.average(state, bucket)

    return with_worker_norms


def register(norms: WorkerNorms, ddp: DistributedDataParallel, state: Any) -> None:
    """Register the exchange as the hook of a wrapper.

    Args:
        norms: the exchange.
        ddp: the wrapper.
        state: of the inner hook.

    Raises:
        ValueError: if the wrapper has a hook already.
    """
    if state is None and norms.inner is None:
        state = ddp.process_group
    try:
        ddp.register_comm_hook(state, communication_hook(norms))
    except RuntimeError as error:
        raise ValueError(
            "this DistributedDataParallel has a communication hook already, and it takes only one. Do not register "
            "yours, but compose it: monitor.attach(ddp, inner=your_hook)."
        ) from error


def _wire(inner: Hook | None) -> torch.dtype | None:
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks  # noqa: PLC0415 - slow to import

    known = {
        None: None,
        default_hooks.allreduce_hook: None,
        default_hooks.fp16_compress_hook: torch.float16,
        default_hooks.bf16_compress_hook: torch.bfloat16,
    }
    if inner not in known:
        raise ValueError(
            f"inner must treat the entries of a bucket one by one, so that numbers can travel behind them: "
            f"{', '.join(sorted(h.__name__ for h in known if h is not None))} of torch do; got "
            f"{getattr(inner, '__name__', inner)}. Use one of these, or no monitor on these workers."
        )
    return known[inner]
