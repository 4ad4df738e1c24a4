"""A user's own DDP loop with a mechanism on every rank: the mean of the surrogates, packed, equal on all ranks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook, fp16_compress_wrapper
from torch.nn.parallel import DistributedDataParallel

from distributed.ranks import play
from variegrad.distributed import GradientNotFinite, MechanismHook, mechanism_hook
from variegrad.mechanisms import DropConnect, Langevin, Quantize
from variegrad.mechanisms.backward_step import backward

B = 6  # examples of a rank


def model(dtype=torch.float32, width=120):  # large enough for packing to pay
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3)).to(
        dtype
    )


def batch(rank, step, dtype=torch.float32):
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(B, 8, generator=generator).to(dtype), torch.arange(B) % 3


def losses(net, both):
    """Divided by B: their sum is the mean loss, as in a DDP loop."""
    return F.cross_entropy(net(both[0]).float(), both[1], reduction="none") / B


def loop(net, hook, rank, steps, *, first=0, dtype=torch.float32, register=None, buckets=True):
    """SGD with DDP, several small buckets; gradients of each step and the weights at the end."""
    ddp = DistributedDataParallel(net, bucket_cap_mb=0.002 if buckets else 25)
    (register or hook.register)(ddp)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    gradients = []
    for step in range(first, first + steps):
        optimizer.zero_grad()
        losses(ddp, batch(rank, step, dtype)).sum().backward()
        gradients.append(flat(p.grad for p in net.parameters()))
        optimizer.step()
    return gradients, flat(net.parameters())


def flat(tensors):
    return torch.cat([t.detach().reshape(-1).double() for t in tensors]).numpy()


def expected(mechanism, ranks, steps, seed, dtype=torch.float32):
    """The same on one process: every rank's surrogate in turn, by `vg.backward`."""
    net = model(dtype)
    means = []
    for step in range(steps):
        net.zero_grad()
        for rank in range(ranks):
            backward(
                net,
                losses,
                batch(rank, step, dtype),
                mechanism=mechanism,
                seed=seed,
                samples_seen=step,
                granularity="worker",
                worker=rank,
            )
        with torch.no_grad():
            for p in net.parameters():
                p.grad /= ranks
                p.sub_(p.grad, alpha=0.5)
        means.append(flat(p.grad for p in net.parameters()))
    return means, flat(net.parameters())


MECHANISMS = [
    Quantize(),
    DropConnect(0.4),
    DropConnect(0.9, rescale=False),
    Langevin(0.01),
    Quantize().then(DropConnect(0.5)),
    DropConnect(0.5).then(Langevin(0.01)),
]


def _plain(rank, mechanism, steps, seed):
    hook = MechanismHook(mechanism, seed=seed)
    return *loop(model(), hook, rank, steps), hook.state_dict()


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=str)
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_gradients_are_the_mean_of_the_ranks_surrogates(mechanism, ranks):
    """Four steps, so that DDP rebuilds its buckets on the way."""
    played = play(ranks, _plain, mechanism, 4, 11)
    means, weights = expected(mechanism, ranks, 4, 11)
    for gradients, last, _ in played:
        for found, mean in zip(gradients, means, strict=True):
            # The order of summation over ranks and over a batch differs: float32 rounding of sums of ‖g‖.
            np.testing.assert_allclose(found, mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(last, weights, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(last, played[0][1])


def test_what_is_sent_follows_from_the_payloads():
    d, steps = sum(p.numel() for p in model().parameters()), 3
    for mechanism, low, high in [
        (Quantize(), 44, 44 + 2 * d**0.5 * 3),  # mean non-zeros ≤ √d, far below 3√d
        (DropConnect(0.5), 40 + 4 * 0.4 * d, 40 + 4 * 0.6 * d),  # d = 15,963: 25 standard deviations
        (Langevin(0.1), 4 * d, 4 * d),  # dense: 2D(P−1)/P
    ]:
        for *_, state in play(2, _plain, mechanism, steps, 0):
            assert steps * (32 + low) <= state["bytes_sent"] <= steps * (32 + high)


def test_dense_sums_are_used_where_packing_does_not_pay():
    """Three ranks would send 0.9·D each: P·S = 2.7 D ≥ 2 D."""
    d = sum(p.numel() for p in model().parameters())
    for *_, state in play(3, _plain, DropConnect(0.1), 2, 0):
        assert state["bytes_sent"] == pytest.approx(2 * (42 + 2 * 4 * d * 2 / 3), abs=40)  # buckets are rounded down


def _accumulated(rank):
    hook, net = MechanismHook(DropConnect(0.5), seed=2), model()
    ddp = DistributedDataParallel(net)
    hook.register(ddp)
    with ddp.no_sync():
        losses(ddp, batch(rank, 0)).sum().backward()
    losses(ddp, batch(rank, 1)).sum().backward()
    return flat(p.grad for p in net.parameters()), hook.step


def test_micro_batches_under_no_sync_are_one_gradient():
    played = play(2, _accumulated)
    net = model()

    def both(net, rank):
        return torch.cat([losses(net, batch(int(rank[0]), step)) for step in (0, 1)])

    for rank in range(2):
        backward(
            net,
            lambda net, two: losses(net, (two[0], two[1])),
            tuple(torch.cat(parts) for parts in zip(batch(rank, 0), batch(rank, 1), strict=True)),
            mechanism=DropConnect(0.5), seed=2, granularity="worker", worker=rank,
        )  # fmt: skip
    mean = flat(p.grad / 2 for p in net.parameters())
    for found, reductions in played:
        np.testing.assert_allclose(found, mean, rtol=1e-4, atol=1e-6)
        assert reductions == 1


def _continued(rank, mechanism, cut):
    hook, net = MechanismHook(mechanism, seed=4), model()
    loop(net, hook, rank, cut)
    again, other = MechanismHook(mechanism, seed=4), model()
    again.load_state_dict(hook.state_dict())
    other.load_state_dict(net.state_dict())
    _, weights = loop(other, again, rank, 6 - cut, first=cut)
    return weights, again.state_dict()


@pytest.mark.parametrize("mechanism", [Quantize(), DropConnect(0.4)], ids=str)
def test_a_run_continued_from_saved_state_is_equal_to_the_last_bit(mechanism):
    """Though the continued run has DDP's first bucket layout at a later step."""
    whole = play(2, _plain, mechanism, 6, 4)
    for (weights, state), (_, last, ended) in zip(play(2, _continued, mechanism, 3), whole, strict=True):
        np.testing.assert_array_equal(weights, last)
        assert state == ended


def _half(rank, mechanism, inner):
    hook = MechanismHook(mechanism, seed=1)
    if inner:
        hook.compose(fp16_compress_hook)
        return loop(model(), hook, rank, 3)
    return loop(model(), hook, rank, 3, register=lambda ddp: hook.register(ddp, fp16_compress_wrapper))


@pytest.mark.parametrize("inner", [True, False], ids=["inside", "around"])
@pytest.mark.parametrize("mechanism", [Langevin(0.01), Quantize(), DropConnect(0.5)], ids=str)
def test_a_half_precision_hook_inside_or_around(mechanism, inner):
    played = play(2, _half, mechanism, inner)
    if isinstance(mechanism, Quantize) and not inner:
        # g is rounded first: a coordinate's probability moves by 2⁻¹¹, and with it perhaps a draw. Equal on both ranks.
        np.testing.assert_array_equal(played[0][1], played[1][1])
        return
    means, _ = expected(mechanism, 2, 1, 1)
    for gradients, last in played:
        np.testing.assert_allclose(gradients[0], means[0], rtol=2e-3, atol=1e-4)
        np.testing.assert_array_equal(last, played[0][1])


def _low(rank, dtype):
    return loop(model(dtype), MechanismHook(DropConnect(0.5), seed=1), rank, 2, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_number_types(dtype):
    played = play(2, _low, dtype)
    means, _ = expected(DropConnect(0.5), 2, 1, 1, dtype)
    tolerance = 2e-2 if dtype is torch.bfloat16 else 1e-12
    for gradients, last in played:
        np.testing.assert_allclose(gradients[0], means[0], rtol=tolerance, atol=tolerance / 10)
        np.testing.assert_array_equal(last, played[0][1])


def _spoiled(rank, mechanism, skip):
    """Rank 1's second batch holds a NaN."""
    hook, net = MechanismHook(mechanism, skip_not_finite=skip), model()
    ddp = DistributedDataParallel(net, bucket_cap_mb=0.002)
    hook.register(ddp)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    record = []
    for step in range(4):
        x, y = batch(rank, step)
        if rank == 1 and step == 1:
            x[0, 0] = torch.nan
        optimizer.zero_grad()
        try:
            losses(ddp, (x, y)).sum().backward()
        except GradientNotFinite as error:
            return record, str(error), flat(net.parameters())
        record.append(hook.not_finite)
        if not hook.not_finite:
            optimizer.step()
        else:
            assert all(p.grad.isnan().all() for p in net.parameters())
    return record, hook.skipped, flat(net.parameters())


@pytest.mark.parametrize("mechanism", [Quantize(), DropConnect(0.4), Langevin(0.1)], ids=str)
def test_a_gradient_that_is_not_finite_stops_all_ranks_at_the_same_step(mechanism):
    for record, said, weights in play(2, _spoiled, mechanism, False):
        assert record == [()]
        assert "in reduction 1, the gradient of rank 1 (or its surrogate) is not finite; every rank stops here" in said
        assert np.isfinite(weights).all()


@pytest.mark.parametrize("mechanism", [Quantize(), Langevin(0.1)], ids=str)
def test_or_all_ranks_leave_that_step_out(mechanism):
    played = play(2, _spoiled, mechanism, True)
    for record, skipped, weights in played:
        assert (record, skipped) == ([(), (1,), (), ()], 1)
        assert np.isfinite(weights).all()
        np.testing.assert_array_equal(weights, played[0][2])


def _differs(rank, field):
    settings = {"mechanism": DropConnect(0.5), "seed": 0}
    if rank == 1:
        settings |= {"mechanism": {"mechanism": DropConnect(0.4)}, "seed": {"seed": 9}}.get(field, {})
    hook = MechanismHook(**settings)
    if rank == 1 and field == "step":
        hook.load_state_dict({**hook.state_dict(), "step": 3})
    try:
        loop(model(), hook, rank, 1)
    except ValueError as error:
        return str(error)
    return "nothing was said"


@pytest.mark.parametrize("field", ["mechanism", "seed", "step"])
def test_ranks_that_differ_are_refused_by_name_on_all(field):
    for said in play(2, _differs, field):
        assert f"the workers differ in {field}: " in said


def _alone(rank):
    ddp = DistributedDataParallel(model())
    ddp.register_comm_hook(MechanismHook(Quantize()), mechanism_hook)
    with pytest.raises(RuntimeError, match=r"does not know its model: call hook\.register\(ddp\)"):
        losses(ddp, batch(0, 0)).sum().backward()
    return True


def test_a_hook_that_was_not_registered_says_how():
    assert play(1, _alone) == [True]


def test_state_of_another_run_is_refused_by_name():
    state = MechanismHook(DropConnect(0.5), seed=3).state_dict()
    with pytest.raises(
        ValueError,
        match=r"the saved hook's mechanism is 'DropConnect\(p=0\.5, rescale=True\)', this one's is 'Quantize",
    ):
        MechanismHook(Quantize(), seed=3).load_state_dict(state)
    with pytest.raises(ValueError, match="the saved hook's seed is 3, this one's is 0"):
        MechanismHook(DropConnect(0.5)).load_state_dict(state)
    with pytest.raises(ValueError, match="state must have the entries"):
        MechanismHook(DropConnect(0.5)).load_state_dict({"step": 3})


def test_something_else_than_a_mechanism_is_refused():
    with pytest.raises(TypeError, match="mechanism must be a Mechanism such as Quantize"):
        MechanismHook("quantize")


class _Branches(nn.Module):
    """Tied weights, a frozen layer, and a layer that one rank reaches in some steps only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(6)
        self.first, self.second, self.seldom = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.last, self.frozen = nn.Linear(8, 3), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.frozen.requires_grad_(False)

    def forward(self, x, seldom=False):
        h = torch.tanh(self.second(torch.tanh(self.frozen(self.first(x)))))
        return self.last(self.seldom(h) if seldom else h)


def _branches(rank, options):
    hook, net = MechanismHook(DropConnect(0.3), seed=1), _Branches()
    ddp = DistributedDataParallel(net, bucket_cap_mb=0.0005, **options)
    hook.register(ddp)
    for step in range(4):
        net.zero_grad()
        x, y = batch(rank, step)
        F.cross_entropy(ddp(x, seldom=rank == 0 and step > 1 and "static_graph" not in options), y).backward()
    return [None if p.grad is None else p.grad.numpy() for p in net.parameters()]


@pytest.mark.parametrize(
    "options",
    [
        {"find_unused_parameters": True},
        {"find_unused_parameters": True, "gradient_as_bucket_view": True},
        {"static_graph": True},
    ],
    ids=str,
)
def test_unused_frozen_and_tied_parameters_under_the_options_of_ddp(options):
    first, second = play(2, _branches, options)
    net = _Branches()
    for rank in range(2):
        x, y = batch(rank, 3)

        def losses_here(net, both, rank=rank):
            return (
                F.cross_entropy(net(both[0], rank == 0 and "static_graph" not in options), both[1], reduction="none")
                / B
            )

        backward(
            net,
            losses_here,
            (x, y),
            mechanism=DropConnect(0.3),
            seed=1,
            samples_seen=3,
            granularity="worker",
            worker=rank,
        )
    for mine, other, parameter in zip(first, second, net.parameters(), strict=True):
        if parameter.requires_grad and mine is not None:
            np.testing.assert_array_equal(mine, other)
            np.testing.assert_allclose(mine, parameter.grad / 2, rtol=1e-4, atol=1e-6)
        else:
            assert parameter.grad is None or not parameter.grad.any()


# Bytes, by the interface's own count --------------------------------------------------------------------------------

STEPS = 20


def _sent_by_interface():
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split(":")[1].split()[8])
    raise AssertionError("no loopback interface")


def _counted(rank, mechanism):
    """Bytes of both ranks by the interface, and by this rank's hook, over the same steps."""
    hook, net = MechanismHook(mechanism), model(width=300)
    ddp = DistributedDataParallel(net)
    hook.register(ddp)
    counts = []
    for steps in (2, STEPS):  # the first to connect, agree and rebuild buckets
        for step in range(steps):
            net.zero_grad()
            losses(ddp, batch(rank, step)).sum().backward()
        dist.barrier()
        counts.append((_sent_by_interface(), hook.bytes_sent))
        dist.barrier()
    (before, own_before), (after, own_after) = counts
    return after - before, own_after - own_before


def in_a_network_of_its_own():
    """Run as a script: loopback of a network namespace, where nobody else sends."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for mechanism in (Quantize(), DropConnect(0.5), Langevin(0.1)):
        played = play(2, _counted, mechanism)
        print(json.dumps([str(mechanism), played[0][0], sum(own for _, own in played)]))


def test_counted_bytes_are_those_of_the_interface():
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("needs root, unshare and ip: bytes are counted in a network namespace of their own")
    if subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs network namespaces")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    code = "from distributed.test_comm_hook import in_a_network_of_its_own as run; run()"
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 3
    for name, by_interface, by_hooks in lines:
        # Beside what is counted: headers of gloo and TCP/IP and acknowledgements of each message; and two barriers.
        assert by_hooks < by_interface < 1.05 * by_hooks + (STEPS + 2) * 4000, name
