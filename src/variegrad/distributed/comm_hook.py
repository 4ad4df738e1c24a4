"""A mechanism for each worker in anybody's DistributedDataParallel loop: gradients become (1/P) Σ_r m(g_r).

g_r is the whole local gradient of rank r, as its backward pass left it (after `no_sync`, the sum over micro-batches):
m is applied to the gradient of the mean loss. Without `no_sync`, m would be applied again to what it has made before;
that is refused, since m(m(g₁) + g₂) has another distribution. A sparse gradient is made dense for m, and sparse by rows
again afterwards. Draws do not depend on DDP's buckets. What is sent is packed if that is smaller than a dense sum
(`packed_sum`); all ranks make that decision together.

Nothing is sent before the last bucket is ready, since m may need the norm of the whole gradient: communication does not
overlap with the backward pass.
"""
# No `from __future__ import annotations` here: DDP compares the annotations of a hook with types, not with their names.

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn.parallel import DistributedDataParallel

from variegrad.distributed.agreement import agree
from variegrad.distributed.packed_sum import packed_sum
from variegrad.distributed.world import World
from variegrad.exact import text
from variegrad.mechanisms import DropConnect, Mechanism
from variegrad.mechanisms.one_draw import WorkerKey, drawn

if TYPE_CHECKING:  # torch declares it only where it was built with its distributed part
    Bucket: TypeAlias = Any
else:
    Bucket = dist.GradBucket
Reduced: TypeAlias = torch.futures.Future[torch.Tensor]
# A hook of torch's own form.
Hook: TypeAlias = Callable[[Any, Bucket], Reduced]


class AccumulatesReduced(RuntimeError):  # noqa: N818 - it reads as what happened
    """A backward pass adds to gradients that this hook has reduced already; raised before anything is sent."""


class GradientNotFinite(FloatingPointError):  # noqa: N818 - it reads as what happened
    """A rank's gradient is NaN or infinite; raised on every rank in the same step."""


def mechanism_hook(state: "MechanismHook", bucket: Bucket) -> torch.futures.Future[torch.Tensor]:
    """The communication hook itself, for wrappers such as `fp16_compress_wrapper(mechanism_hook)`.

    Args:
        state: a `MechanismHook` that has been bound to the model.
        bucket: of gradients that are ready.

    Returns:
        The reduced bucket, once all buckets were seen.
    """
    return state.reduce(bucket)


@dataclass(eq=False)
class MechanismHook:
    """The hook's settings and state.

    Attributes:
        mechanism: m.
        seed: of its draws; the same on every rank.
        skip_not_finite: if a rank's gradient is not finite, leave NaN in every gradient on every rank and continue
            (`not_finite` says which ranks; skip the step), instead of raising on every rank.
        step: reductions so far: the key of the next draws.
        bytes_sent: by this rank to others: payloads and lengths, and 2D(P−1)/P for a dense sum of D bytes; not what an
            inner hook sends.
        skipped: steps in which some rank's gradient was not finite.
        not_finite: the ranks whose gradient was not finite in the last step.
    """

    mechanism: Mechanism
    seed: int = 0
    skip_not_finite: bool = False
    step: int = field(default=0, init=False)
    bytes_sent: int = field(default=0, init=False)
    skipped: int = field(default=0, init=False)
    not_finite: tuple[int, ...] = field(default=(), init=False)
    _inner: tuple[Hook, Any] | None = field(default=None, init=False, repr=False)
    _names: dict[Tensor, str] = field(default_factory=dict, init=False, repr=False)
    _world: World = field(default_factory=World, init=False, repr=False)
    _held: list[tuple[Bucket, Reduced]] = field(default_factory=list, init=False, repr=False)
    _agreed: bool = field(default=False, init=False, repr=False)
    _nodes: list[Node] = field(default_factory=list, init=False, repr=False)
    _reduced: set[Tensor] = field(default_factory=set, init=False, repr=False)
    _left: list[Tensor] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.mechanism, Mechanism):
            raise TypeError(
                f"mechanism must be a Mechanism such as Quantize(); got {type(self.mechanism).__name__}. "
                "For plain training, do not register the hook."
            )

    def compose(self, inner: Hook, state: Any = None) -> "MechanismHook":
        """Let another hook make the dense sums if gradients are not packed.

        Args:
            inner: a communication hook that averages a bucket, for example `fp16_compress_hook`.
            state: of that hook.

        Returns:
            This hook.
        """
        self._inner = (inner, state)
        return self

    def register(self, ddp: DistributedDataParallel, wrapper: Callable[[Hook], Hook] | None = None) -> "MechanismHook":
        """Become the communication hook of a model.

        Args:
            ddp: the model; it must have no hook yet.
            wrapper: around this hook, for example `fp16_compress_wrapper`.

        Returns:
            This hook.
        """
        self._names = {parameter: name for name, parameter in ddp.module.named_parameters()}
        group, device = ddp.process_group, next(iter(self._names)).device
        self._world = World(rank=dist.get_rank(group), size=dist.get_world_size(group), device=device, group=group)
        self._nodes = [self._watch_for_leftovers(p) for p in self._names if p.requires_grad]
        ddp.register_comm_hook(self, mechanism_hook if wrapper is None else wrapper(mechanism_hook))
        return self

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must find again, as plain values.

        Returns:
            Step, counters, and the settings that they belong to.
        """
        return {
            "mechanism": text(self.mechanism),
            "seed": self.seed,
            "step": self.step,
            "bytes_sent": self.bytes_sent,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where another hook stopped.

        Args:
            state: of `state_dict`.

        Raises:
            ValueError: if it is of another mechanism or seed, or no such state.
        """
        here = self.state_dict()
        if state.keys() != here.keys():
            raise ValueError(f"state must have the entries {sorted(here)}; got {sorted(state)}.")
        for name in ("mechanism", "seed"):
            if state[name] != here[name]:
                raise ValueError(
                    f"the saved hook's {name} is {state[name]!r}, this one's is {here[name]!r}: the draws would be "
                    "others. Make the hook with the saved settings, or start a new run."
                )
        self.step, self.bytes_sent, self.skipped = (int(state[n]) for n in ("step", "bytes_sent", "skipped"))
        self._agreed = False

    def reduce(self, bucket: Bucket) -> Reduced:
        """Hold a bucket; with the last one, reduce them all.

        Args:
            bucket: of gradients that are ready.

        Returns:
            The reduced bucket.

        Raises:
            RuntimeError: if the hook was not registered with `register`.
            AccumulatesReduced: if gradients are accumulated without `no_sync`.
            ValueError: if the ranks differ in their settings; the field is named.
            GradientNotFinite: on every rank, if one's gradient is not finite.
        """
        if not self._names:
            raise RuntimeError(
                "this hook does not know its model: call hook.register(ddp), not ddp.register_comm_hook."
            )
        if bucket.index() == 0:
            self._held = []  # also what a backward pass that failed has left
        future: Reduced = torch.futures.Future()
        self._held.append((bucket, future))
        if bucket.is_last():
            held, self._held = self._held, []
            results = self._reduce([each for each, _ in held])
            for (_, waiting), result in zip(held, results, strict=True):
                waiting.set_result(result)
        return future

    def _watch_for_leftovers(self, parameter: Tensor) -> Node:
        """Before a gradient is added to `.grad`: note what an earlier reduction left there, without waiting for it."""
        # Not a hook of the tensor: that would also run when only gradients are asked for, as by a Monitor.
        with torch.enable_grad():
            node = parameter.view_as(parameter).grad_fn.next_functions[0][0]  # type: ignore[union-attr]
        itself = weakref.ref(self)

        def arrives(_: tuple[Tensor | None, ...]) -> None:
            hook = itself()
            if hook is not None and parameter in hook._reduced:
                hook._reduced.discard(parameter)
                if parameter.grad is not None:
                    values = parameter.grad.coalesce().values() if parameter.grad.is_sparse else parameter.grad
                    hook._left.append(values.detach().any())

        assert node is not None
        node.register_prehook(arrives)
        return node

    def _refuse_leftovers(self) -> None:
        left, self._left = self._left, []
        if left and bool(torch.stack(left).any()):
            raise AccumulatesReduced(
                "gradients that this hook has reduced were still in .grad when the next backward pass added to them: "
                "the mechanism would be applied to what it made before. Accumulate micro-batches inside "
                "`with ddp.no_sync():`, all but the last of a step, and zero the gradients after each step."
            )

    def _reduce(self, buckets: list[Bucket]) -> list[Tensor]:
        self._refuse_leftovers()
        views = self._views(buckets)
        if not self._agreed:
            self._agree(views)
        ranks, step = self._world.size, self.step
        self.step += 1
        narrow = _common_type(views)
        surrogate = drawn(views, self.mechanism, WorkerKey(self.seed, step, self._world.rank))
        done = packed_sum(
            surrogate,
            self.mechanism,
            {name: view.shape for name, view in views.items()},
            seed=self.seed,
            step=step,
            # Kept coordinates travel in the gradients' own type, as they would in a dense sum; a norm costs nothing.
            dtype=narrow if isinstance(self.mechanism, DropConnect) else torch.promote_types(narrow, torch.float32),
            dense_bytes=sum(view.nbytes for view in views.values()),
            world=self._world,
        )
        self.bytes_sent += done.bytes_sent
        self.not_finite = done.absent
        self._reduced = {parameter for bucket in buckets for parameter in bucket.parameters()}
        if surrogate is None or done.absent:
            named = ", ".join(map(str, done.absent))
            return self._left_out(buckets, f"the gradient of rank {named} (or its surrogate)", step)
        if done.total is not None:
            _write(done.total / ranks, views)
            results = [self._filled(bucket, views) for bucket in buckets]
        else:
            _write(surrogate, views)
            results = self._dense(buckets, views, ranks)
        # The results are equal on all ranks, and so is this branch.
        if not all(bool(_values(result).abs().max().isfinite()) for result in results if _values(result).numel()):
            self.not_finite = tuple(range(ranks))
            return self._left_out(buckets, "the mean over ranks", step)
        return results

    def _views(self, buckets: list[Bucket]) -> dict[str, Tensor]:
        """Each parameter's part of the buckets, in the order of the model: DDP's own changes after its first step."""
        found: dict[Tensor, Tensor] = {}
        for bucket in buckets:
            if bucket.buffer().is_sparse:  # alone in its bucket
                found[bucket.parameters()[0]] = bucket.buffer().to_dense()
            else:
                found |= zip(bucket.parameters(), bucket.gradients(), strict=True)
        return {name: found[parameter] for parameter, name in self._names.items() if parameter in found}

    def _filled(self, bucket: Bucket, views: Mapping[str, Tensor]) -> Tensor:
        """A bucket with what is in the views: they are parts of it, unless it is sparse."""
        buffer: Tensor = bucket.buffer()
        return views[self._names[bucket.parameters()[0]]].to_sparse(1) if buffer.is_sparse else buffer

    def _dense(self, buckets: list[Bucket], views: Mapping[str, Tensor], ranks: int) -> list[Tensor]:
        if self._inner is not None:
            inner, state = self._inner
            for bucket in buckets:
                bucket.set_buffer(self._filled(bucket, views))
            # All are begun before one is waited for, and nothing waits inside a callback.
            return [future.wait() for future in [inner(state, bucket) for bucket in buckets]]
        sums = [
            views[self._names[bucket.parameters()[0]]] if bucket.buffer().is_sparse else bucket.buffer()
            for bucket in buckets
        ]
        for work in [dist.all_reduce(each, group=self._world.group, async_op=True) for each in sums]:
            assert work is not None
            work.wait()
        self.bytes_sent += sum(2 * each.nbytes * (ranks - 1) // ranks for each in sums)
        for each in sums:
            each.div_(ranks)
        return [self._filled(bucket, views) for bucket in buckets]

    def _left_out(self, buckets: list[Bucket], what: str, step: int) -> list[Tensor]:
        self.skipped += 1
        if not self.skip_not_finite:
            raise GradientNotFinite(
                f"in reduction {step}, {what} is not finite; every rank stops here, before its weights change. "
                "Look for a division or a logarithm of zero or a step size that is too large, or set "
                "skip_not_finite=True and leave out steps in which hook.not_finite names ranks. After this error the "
                "DistributedDataParallel model cannot be used again: wrap the module in a new one."
            )
        for bucket in buckets:
            _values(bucket.buffer()).fill_(torch.nan)
        return [bucket.buffer() for bucket in buckets]

    def _agree(self, views: Mapping[str, Tensor]) -> None:
        inner = None if self._inner is None else getattr(self._inner[0], "__qualname__", type(self._inner[0]).__name__)
        facts = {**self.state_dict(), "skip_not_finite": self.skip_not_finite, "inner hook": inner}
        facts |= {f"gradient of {name}": f"{tuple(g.shape)} {g.dtype}" for name, g in views.items()}
        for counter in ("bytes_sent", "skipped"):  # may differ after a resume with other ranks
            del facts[counter]
        agree(self._world, {name: str(value) for name, value in facts.items()})
        self._agreed = True


def _values(tensor: Tensor) -> Tensor:
    return tensor._values() if tensor.is_sparse else tensor


def _common_type(views: Mapping[str, Tensor]) -> torch.dtype:
    return reduce(torch.promote_types, [view.dtype for view in views.values()])


def _write(flat: Tensor, views: Mapping[str, Tensor]) -> None:
    parts = flat.split([view.numel() for view in views.values()])
    for part, view in zip(parts, views.values(), strict=True):
        view.copy_(part.view_as(view))
