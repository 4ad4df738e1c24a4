"""Readings that are the same on all workers of DistributedDataParallel: its communication hook, counted.

Gradients are averaged as without a monitor, to the last bit. At a due reduction the sums of a step follow in a small
all-reduce of their own, after the last bucket. The norm of the averaged gradient is then taken locally, from
gradients that are equal on all workers. A hook that makes something else of them (a mechanism, PowerSGD) is left to it:
at a due reduction the plain gradients are averaged beside it, for their norm alone.
"""

# No postponed annotations here: DistributedDataParallel looks at those of a hook.
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from variegrad.monitor.exchange.lockstep import Lockstep

Hook = Callable[[Any, Any], Any]


def communication_hook(lockstep: Lockstep, inner: Hook | None) -> Hook:
    """The hook that counts, sends what is due, and averages as `inner` does, or as without a hook."""
    plain = averages(inner)

    def with_monitor(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
        lockstep.meet()
        due, last = lockstep.due, bucket.is_last()
        if due:
            lockstep.note(bucket.buffer())
            if not plain:
                lockstep.average_beside(bucket.buffer())
        future: torch.futures.Future[Tensor] = (
            _average(lockstep.group, bucket.buffer()) if inner is None else inner(state, bucket)
        )
        if last:
            if due:
                lockstep.send(bucket.buffer().device)
            lockstep.advance()
        return future

    return with_monitor


def _average(group: dist.ProcessGroup, tensor: Tensor) -> torch.futures.Future[Tensor]:
    # As DistributedDataParallel itself does: a product with 1/P before the sum.
    if tensor.is_sparse:
        tensor.div_(group.size())
    else:
        tensor.mul_(1 / group.size())
    work = dist.all_reduce(tensor, group=group, async_op=True)
    return work.get_future().then(lambda done: done.value()[0])  # type: ignore[no-any-return]


def register(lockstep: Lockstep, inner: Hook | None, ddp: DistributedDataParallel, state: Any) -> None:
    """Register the hook, once; ValueError if the wrapper has another."""
    try:
        if inner is not None and hasattr(inner, "register"):  # a MechanismHook is to know its model
            inner.register(ddp, wrapper=lambda hook: communication_hook(lockstep, hook))
            return
        ddp.register_comm_hook(state, communication_hook(lockstep, inner))
    except RuntimeError as error:
        raise ValueError(
            "this DistributedDataParallel model already has a communication hook, and it accepts only one. Instead of "
            "registering yours, compose it: monitor.attach(ddp, inner=your_hook)."
        ) from error


def averages(inner: Hook | None) -> bool:
    """Whether what an inner hook leaves in the gradients is known to be the workers' average."""
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks  # noqa: PLC0415 - slow to import

    return inner in (
        None, default_hooks.allreduce_hook, default_hooks.fp16_compress_hook, default_hooks.bf16_compress_hook,
    )  # fmt: skip
