"""Fully sharded models (`fully_shard`): the local gradient is seen before it is reduced, the shard of the sum after.

W = Σ_j c_j²‖s_j‖² and V = ‖Σ_j c_j s_j‖² of `sums` are read where gradients are reduced: around a module's own
reduce-scatter, this worker's whole gradient goes in and its shard of the sum comes out. Parameters of the graph are
gathered copies, so examples are not separated here. A backward pass that reduces ends, on every worker and whether it
was watched or not, with the count of `lockstep` and, at a due one, its small all-reduce.

The interface is not fully public in torch (`set_custom_reduce_scatter`), hence its own file.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from variegrad.monitor.exchange.lockstep import Lockstep
from variegrad.monitor.exchange.sums import PASSES, TOTAL, cell_sums
from variegrad.monitor.norms import sq_norm
from variegrad.monitor.schedule import Schedule

# In other types torch divides before the reduction, by a power of two that it does not tell.
_AS_IT_IS = (torch.float32, torch.bfloat16)
SCALED = (
    "gradients are scaled by an unknown factor before they are reduced: reduce them in float32 or bfloat16, "
    "without set_gradient_divide_factor"
)


class ShardedLockstep(Lockstep):
    """What each worker's reduce-scatters show; ValueError if they cannot be seen, or not all of them."""

    def __init__(self, schedule: Schedule, accumulate: int, model: nn.Module) -> None:
        plain = [name for name, p in model.named_parameters() if p.requires_grad and not hasattr(p, "device_mesh")]
        if plain:
            raise ValueError(
                f"attach: parameter {plain[0]!r} is trained but not sharded, and its gradient is not seen. Apply "
                "fully_shard to the model itself, last and without ignored_params."
            )
        if any(p.device_mesh.size() != dist.get_world_size() for p in model.parameters() if hasattr(p, "device_mesh")):
            raise ValueError(
                "attach: the model must be sharded over all workers, in a one-dimensional mesh; this one is not. "
                "Replicas of shards (HSDP) and other kinds of parallelism are not supported."
            )
        try:
            for module in model.modules():
                if hasattr(module, "_get_fsdp_state"):
                    for found in module._get_fsdp_state()._fsdp_param_groups:  # type: ignore[operator]
                        module.set_custom_reduce_scatter(_Seen(found._reduce_scatter_comm, self))  # type: ignore[operator]
        except AttributeError as error:
            raise ValueError(
                f"attach: this torch ({torch.__version__}) has no custom reduce-scatter for fully sharded modules "
                f"({error}); torch 2.9 has one. Use DistributedDataParallel, or train without a Monitor."
            ) from error
        group = dist.group.WORLD
        assert group is not None
        super().__init__(schedule, accumulate, group)
        self._period_known = True  # a pass that does not reduce is not counted
        self.scaled = False
        self._local: list[Tensor] = []
        self._shards: list[Tensor] = []

    def goes_in(self, local: Tensor, op: Any) -> None:
        """Part of this worker's gradient; the first of a pass asks for a call at its end."""
        if not self.open:
            self.open = True
            # Once more around: the modules' own end of the pass, queued since, comes first.
            queue = torch.autograd.Variable._execution_engine.queue_callback
            queue(lambda: queue(self._pass_ended))
        if self.due:
            self.scaled = (
                self.scaled or op not in (dist.ReduceOp.AVG, dist.ReduceOp.SUM) or local.dtype not in _AS_IT_IS
            )
            self._local.append(sq_norm(local))

    def comes_out(self, shard: Tensor, op: Any) -> None:
        """This worker's shard of the reduced gradient."""
        if self.due:
            self._shards.append(sq_norm(shard) * (self.workers**2 if op == dist.ReduceOp.AVG else 1))

    def cell(self, weights: list[Tensor], *, passes: int, scale_known: bool) -> Tensor:
        """The sums of this worker; its micro-batches are one cell, since only their sum is seen."""
        if self.scaled:
            raise ValueError(SCALED)
        sums = cell_sums(torch.cat(weights), torch.stack(self._local).sum(), scale_known=scale_known)
        sums[PASSES] = passes
        return sums

    def _pass_ended(self) -> None:
        self.open = False
        self.meet()
        if self.due:
            if self.offer is None:
                self._unwatched = self._local
            self.send(self._local[0].device)
        self.advance()
        self._local, self._shards, self.scaled = [], [], False

    def send(self, device: torch.device) -> None:
        """As of any workers, with this worker's part of V."""
        offer, shards = self.offer, torch.stack(self._shards).sum()
        if offer is not None:
            self.offer = lambda: _with_total(offer(), shards)
        super().send(device)


def _with_total(sums: Tensor, shards: Tensor) -> Tensor:
    sums[TOTAL] = shards
    return sums


class _Seen:
    """A reduce-scatter that the lockstep sees."""

    def __init__(self, inner: Any, lockstep: ShardedLockstep) -> None:
        self.allocate, self._inner, self._lockstep = inner.allocate, inner, weakref.ref(lockstep)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False) -> Any:
        lockstep = self._lockstep()
        if lockstep is not None:
            lockstep.goes_in(input_tensor, op)
        work = self._inner(
            output_tensor=output_tensor, input_tensor=input_tensor, group=group, op=op, async_op=async_op
        )
        if lockstep is not None:
            if async_op and work is not None and lockstep.due:
                work.wait()
            lockstep.comes_out(output_tensor, op)
        return work
