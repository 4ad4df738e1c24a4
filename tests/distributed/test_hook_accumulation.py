"""What MechanismHook is handed: whole local gradients, never what it made before; sparse ones like dense ones."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from distributed.ranks import play
from variegrad.distributed import AccumulatesReduced, MechanismHook
from variegrad.mechanisms import DropConnect, Langevin, Quantize
from variegrad.mechanisms.backward_step import backward

B = 4


def dense_net(sparse=False):
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(30, 6, sparse=sparse), nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))


def batch(rank, number):
    draw = torch.Generator().manual_seed(100 * number + rank)
    return torch.randint(0, 30, (B, 2), generator=draw), torch.arange(B) % 3


def losses(net, both):
    return F.cross_entropy(net(both[0]), both[1], reduction="none") / B


# How a loop of three micro-batches ends each of them: (what stands around the backward pass, zeroing, allowed).
ALLOWED = {
    "no_sync": ("no_sync", "none"),
    "no_sync, zeroed in place": ("no_sync", "zeros"),
    "zeroed after each, forward first": ("sync", "between forward and backward"),
    "one pass a step": ("sync", "none each"),
}
REFUSED = {
    "no no_sync": ("sync", "none"),
    "no no_sync, zeroed in place": ("sync", "zeros"),
    "never zeroed": ("no_sync", "never"),
}


def _loop(rank, manner, options, asks):
    around, zeroing = manner
    net = dense_net()
    ddp = DistributedDataParallel(net, **options)
    hook = MechanismHook(Quantize(), seed=3).register(ddp)
    made = 0
    try:
        for step in range(3):
            if zeroing in ("none", "zeros"):
                net.zero_grad(set_to_none=zeroing == "none")
            for micro in range(3):
                if zeroing == "none each":
                    net.zero_grad()
                with ddp.no_sync() if around == "no_sync" and micro < 2 else nullcontext():
                    loss = losses(ddp, batch(rank, 3 * step + micro)).sum() / 3
                    if asks:  # gradients that are asked for are added to nothing
                        torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
                    if zeroing == "between forward and backward":
                        net.zero_grad(set_to_none=micro == 1)
                    loss.backward()
                made += 1
    except AccumulatesReduced as error:
        return made, str(error), hook.step
    return made, "", hook.step


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("options", [{}, {"gradient_as_bucket_view": True}, {"find_unused_parameters": True}], ids=str)
def test_accumulation_without_no_sync_is_refused_and_nothing_else(options, asks):
    if asks and options:
        pytest.skip("once is enough")
    for name, manner in ALLOWED.items():
        for made, said, reductions in play(2, _loop, manner, options, asks):
            assert (made, said) == (9, ""), name
            assert reductions == (3 if manner[0] == "no_sync" else 9), name
    for name, manner in REFUSED.items():
        for made, said, reductions in play(2, _loop, manner, options, asks):
            assert "no_sync" in said, name
            assert reductions == 1, name  # refused before a second one
            assert made < 6, name


def _sparse(rank, mechanism, sparse, inner):
    net = dense_net(sparse)
    ddp = DistributedDataParallel(net, bucket_cap_mb=0.0005)
    hook = MechanismHook(mechanism, seed=3)
    if inner:
        hook.compose(fp16_compress_hook)
    hook.register(ddp)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    found = []
    for step in range(4):
        optimizer.zero_grad()
        losses(ddp, batch(rank, step)).sum().backward()
        assert net[0].weight.grad.is_sparse == sparse
        found.append([p.grad.to_dense().clone().numpy() for p in net.parameters()])
        optimizer.step()
    return found, hook.bytes_sent


@pytest.mark.parametrize("mechanism", [Quantize(), DropConnect(0.4), Langevin(0.01)], ids=str)
def test_sparse_gradients_have_the_draws_of_dense_ones(mechanism):
    dense, sparse = (play(2, _sparse, mechanism, kind, False) for kind in (False, True))
    for (one, _), (other, _) in zip(dense, sparse, strict=True):
        for a, b in zip(one, other, strict=True):
            for x, y in zip(a, b, strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
    net = dense_net()
    for rank in range(2):
        backward(
            net, losses, batch(rank, 0), mechanism=mechanism, seed=3, samples_seen=0, granularity="worker", worker=rank
        )
    for found, parameter in zip(sparse[0][0][0], net.parameters(), strict=True):
        np.testing.assert_allclose(found, parameter.grad / 2, rtol=1e-4, atol=1e-6)


def _not_finite(rank, _):
    net = dense_net(sparse=True)
    ddp = DistributedDataParallel(net)
    hook = MechanismHook(Quantize(), seed=3, skip_not_finite=True).register(ddp)
    (losses(ddp, batch(rank, 0)).sum() * (float("nan") if rank else 1.0)).backward()
    return hook.not_finite, all(p.grad.to_dense().isnan().any() for p in net.parameters())


def test_a_sparse_gradient_that_is_not_finite_is_left_out_on_every_rank():
    for not_finite, nan in play(2, _not_finite, None):
        assert not_finite == (1,)
        assert nan
