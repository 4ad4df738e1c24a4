"""Fully sharded models (`fully_shard`): the local gradient is seen before it is reduced, the shard of the sum after.

W = Σ_j c_j²‖s_j‖² and V = ‖Σ_j c_j s_j‖² of `step_sums` are read where gradients are reduced: around a module's own
reduce-scatter, this worker's whole gradient goes in and its shard of the sum comes out. Parameters of the graph are
gathered copies, so that examples are not told apart here. One all-reduce of a dozen numbers at the end of a watched
step adds up what the workers saw, as clipping by the norm does for its one number.

The interface is half private in torch (`set_custom_reduce_scatter`, and the object in its place): hence a file alone.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from variegrad.monitor.listening import Unusable, check_equal
from variegrad.monitor.probe import sq_norm
from variegrad.monitor.separation import Separation
from variegrad.monitor.step_sums import StepSums
from variegrad.monitor.tail import NUMBERS, sums_as_tail, sums_of_tail
from variegrad.monitor.watched import check_losses, check_outputs
from variegrad.per_example.graph import ACCUMULATE, leaf, read_graph

# In other types torch divides before the reduction, by a power of two that it does not tell.
_AS_IT_IS = (torch.float32, torch.bfloat16)
End = Callable[[StepSums, float, Exception | None], None]


class ShardedNorms:
    """What each worker's reduce-scatters show on watched steps.

    Args:
        model: a model to which `fully_shard` was applied, with all its trained parameters.

    Raises:
        ValueError: if this torch has no such interface, some parameters are not sharded, or shards are replicated.
    """

    def __init__(self, model: nn.Module) -> None:
        plain = [name for name, p in model.named_parameters() if p.requires_grad and not hasattr(p, "device_mesh")]
        if plain:
            raise ValueError(
                f"attach: parameter {plain[0]!r} is trained but not sharded, and its gradient is not seen. Apply "
                "fully_shard to the model itself, last and without ignored_params."
            )
        if any(p.device_mesh.size() != dist.get_world_size() for p in model.parameters() if hasattr(p, "device_mesh")):
            raise ValueError(
                "attach: shards must lie over all workers, in a one-dimensional mesh; found another. Replicas of "
                "shards and other kinds of parallelism are not served."
            )
        try:
            for module in model.modules():
                if hasattr(module, "_get_fsdp_state"):
                    for group in module._get_fsdp_state()._fsdp_param_groups:  # type: ignore[operator]
                        module.set_custom_reduce_scatter(_Seen(group._reduce_scatter_comm, self))  # type: ignore[operator]
        except AttributeError as error:
            raise ValueError(
                f"attach: this torch ({torch.__version__}) has no custom reduce-scatter for fully sharded modules "
                f"({error}); 2.9 has one. Use DistributedDataParallel, or no monitor on these workers."
            ) from error
        self._pass: ShardedPass | None = None

    @property
    def workers(self) -> int:
        """P."""
        return dist.get_world_size()

    def listen(self, loss: object, output: object, separation: Separation, end: End) -> ShardedPass | None:
        """Wait for the backward pass of a loss.

        Args:
            loss: losses of single examples, or the scalar,
            output: and what it was computed from.
            separation: what is known of losses above outputs.
            end: called when the pass has ended, with the sums over all workers, V, and an error or None.

        Returns:
            The pass; None where there is no example.
        """
        self._pass = ShardedPass(loss, output, separation, end)
        return self._pass

    @property
    def listening(self) -> ShardedPass | None:
        """The pass that runs now and is watched."""
        return self._pass if self._pass is not None and self._pass.runs else None


class ShardedPass:
    """One watched backward pass of a sharded model.

    Args:
        loss: losses of single examples, or the scalar,
        output: and what it was computed from.
        separation: what is known of losses above outputs.
        end: called when the pass has ended.

    Raises:
        TypeError: if either is no tensor of floating-point numbers.
        ValueError: if shapes do not fit, there is no graph, or examples cannot be told apart.
    """

    def __init__(self, loss: object, output: object, separation: Separation, end: End) -> None:
        if output is None:
            tensor = check_losses(loss)
            self._count, self._scale_known = len(tensor), True
        else:
            tensor, outputs = check_outputs(loss, output)
            self._count, self._scale_known = len(outputs[0]), False
            assert tensor.grad_fn is not None
            # Parameters in the graph are gathered copies: any leaf that the loss reaches beside the output is one.
            leaves = [node for node in read_graph(tensor.grad_fn, {}).order if node.name() == ACCUMULATE]
            if self._count > 0:
                separation.check(tensor, outputs, {f"of shape {tuple(leaf(n).shape)}": leaf(n) for n in leaves})
        assert tensor.grad_fn is not None
        self._end, self._output_nr = end, tensor.output_nr
        self._weights: list[float] | None = None
        self._local: list[Tensor] = []
        self._shards: list[Tensor] = []
        self._error: Exception | None = None
        itself = weakref.ref(self)  # the graph must not own what owns the graph

        def began(gradients: tuple[Tensor | None, ...]) -> None:
            waiting = itself()
            if waiting is not None and waiting._weights is None:
                waiting._start(gradients[waiting._output_nr])

        self._handle: RemovableHandle = tensor.grad_fn.register_prehook(began)

    def cancel(self) -> None:
        """Wait no longer."""
        self._handle.remove()
        self._weights = None

    @property
    def runs(self) -> bool:
        """Whether the backward pass has begun and not ended."""
        return self._weights is not None

    def goes_in(self, local: Tensor, op: Any) -> None:
        """Note what a worker brings to a reduce-scatter.

        Args:
            local: this worker's gradients.
            op: how they will be reduced.
        """
        if op not in (dist.ReduceOp.AVG, dist.ReduceOp.SUM) or local.dtype not in _AS_IT_IS:
            self._error = Unusable(
                "gradients are scaled before they are reduced, by a factor that is not known: reduce them in float32 "
                "or bfloat16, without set_gradient_divide_factor"
            )
        self._local.append(sq_norm(local))

    def comes_out(self, shard: Tensor, op: Any) -> None:
        """Note what a worker takes from it.

        Args:
            shard: this worker's part of the reduced gradients.
            op: how they were reduced.
        """
        self._shards.append(sq_norm(shard) * (dist.get_world_size() ** 2 if op == dist.ReduceOp.AVG else 1))

    def _start(self, arrived: Tensor | None) -> None:
        if arrived is None:
            return
        found: float | list[float] = arrived.detach().tolist()
        self._weights = found if isinstance(found, list) else [found] * self._count
        # Once more around: the modules' own end of the pass, queued since, comes first.
        queue = torch.autograd.Variable._execution_engine.queue_callback
        queue(lambda: queue(self._ended))

    def _ended(self) -> None:
        if self._weights is None:
            return
        try:
            cell, shards = self._cell()
        except Exception as error:  # noqa: BLE001 - all workers must meet below, and training must go on
            self._error, cell, shards = error, StepSums(sq_norms_of_sums=math.nan), math.nan
        self.cancel()
        device = self._local[0].device if self._local else torch.device("cpu")
        like = torch.zeros(1, dtype=torch.float64, device=device)
        message = torch.cat([sums_as_tail(cell, like), like + shards])
        dist.all_reduce(message)
        self._end(sums_of_tail(message[:NUMBERS]), float(message[NUMBERS]), self._error)

    def _cell(self) -> tuple[StepSums, float]:
        assert self._weights is not None
        if self._error is not None:
            raise self._error
        if not self._local:
            raise Unusable("no gradient was reduced over the workers. Is it synchronised at every step?")
        count = sum(map(bool, self._weights))
        if count == 0:
            return StepSums(), float(torch.stack(self._shards).sum())
        check_equal(self._weights)
        local, shards = torch.stack([torch.stack(self._local).sum(), torch.stack(self._shards).sum()]).tolist()
        scale = next(filter(None, self._weights))
        norms = local if count == 1 else None
        return StepSums.of_cell(count, scale, local, norms, used=count, scale_known=self._scale_known), shards


class _Seen:
    """A reduce-scatter with somebody looking on."""

    def __init__(self, inner: Any, norms: ShardedNorms) -> None:
        self.allocate, self._inner, self._norms = inner.allocate, inner, weakref.ref(norms)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False) -> Any:
        norms = self._norms()
        listening = None if norms is None else norms.listening
        if listening is not None:
            listening.goes_in(input_tensor, op)
        work = self._inner(
            output_tensor=output_tensor, input_tensor=input_tensor, group=group, op=op, async_op=async_op
        )
        if listening is not None:
            if async_op and work is not None:
                work.wait()
            listening.comes_out(output_tensor, op)
        return work
