"""No batch is silently wrong: three of three sizes on one model equal the loop or are refused."""

import contextlib

import pytest
import torch

import cases
from adversaries import ADVERSARIES
from variegrad.batches import map_tensors
from variegrad.per_example import example_sq_norms, loop_gradients
from variegrad.per_example.norms import batch_norms

REFUSED = (ValueError, RuntimeError)
# Coupled, or with a hook that is not linear: these have no per-example gradients in some batch.
UNDEFINED = {
    "hook_clip", "broadcast_bb", "softmax_over_examples", "layernorm_over_all", "dim_logsoftmax", "dim_fft",
    "dim_cumsum", "lora_b0", "lora_act_b0", "mixing_hook_third",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _in_double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def loop(model, losses, batch):
    """‖∇f_i‖² and Σ∇f_i as a user would find them, hooks and all, by `backward` alone."""
    parameters = list(model.parameters())
    per_example = losses(model, batch)

    def gradients(loss):
        for p in parameters:
            p.grad = None
        loss.backward(retain_graph=True)
        return [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in parameters]

    rows = [gradients(loss) for loss in per_example]
    whole = gradients(per_example.sum())
    for p in parameters:
        p.grad = None
    return torch.stack([sum(g.abs().square().sum() for g in row) for row in rows]).detach(), whole


def outcome(model, losses, batch):
    """None if equal, the refusal if refused; everything else fails."""
    state = torch.get_rng_state()
    norms, whole = loop(model, losses, batch)
    torch.set_rng_state(state)
    try:
        found = example_sq_norms(model, losses, batch)
    except REFUSED as error:
        return str(error)
    scale = float(norms.max()) + 1e-300
    assert torch.allclose(found, norms, rtol=0, atol=1e-8 * scale)
    for p, g in zip(model.parameters(), whole, strict=True):
        total = torch.zeros_like(p) if p.grad is None else p.grad.to_dense()
        assert torch.allclose(total, g, rtol=0, atol=1e-8 * scale**0.5)
    return None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ADVERSARIES)
def test_a_treacherous_second_batch_equals_the_loop_or_is_refused(name):
    torch.manual_seed(0)
    model, losses, batches = ADVERSARIES[name]()
    model = model if any(p.is_complex() for p in model.parameters()) else model.double()
    said = [outcome(model, losses, batch) for batch in batches]
    if name not in UNDEFINED:
        assert said == [None] * 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", cases.CASES, ids=str)
def test_three_batches_of_three_sizes_equal_the_loop(case, monkeypatch):
    torch.manual_seed(0)
    model, losses, first = case.make()
    batches = [first]
    for size in (8, 3):
        monkeypatch.setattr(cases, "B", size)
        batches.append(case.make()[2])

    def seeded(model, batch):
        torch.manual_seed(1)
        return losses(model, batch)

    for batch in batches:
        with contextlib.suppress(_OtherSizeError):
            assert _of_any_size(outcome, model, seeded, batch) is None


class _OtherSizeError(Exception):
    """A case whose losses are written for one number of examples."""


def _of_any_size(function, model, losses, batch):
    batch = map_tensors(lambda t: t.double() if t.is_floating_point() else t, batch)
    try:
        losses(model, batch)
    except RuntimeError as error:
        raise _OtherSizeError from error
    return function(model, losses, batch)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ADVERSARIES)
def test_a_few_examples_in_any_order_and_absolute_sums_equal_the_loop(name):
    torch.manual_seed(0)
    model, losses, batches = ADVERSARIES[name]()
    model = model if any(p.is_complex() for p in model.parameters()) else model.double()
    for batch in batches:
        state = torch.get_rng_state()
        rows = list(loop_gradients(model, losses, batch))
        wanted = [len(rows) - 1, 0] if len(rows) > 1 else [0]
        torch.set_rng_state(state)
        try:
            found = batch_norms(model, losses, batch, l1=True, examples=wanted)
        except REFUSED:
            continue
        real = [{n: torch.view_as_real(g) if g.is_complex() else g for n, g in rows[i].items()} for i in wanted]
        norms = torch.stack([sum(g.square().sum() for g in row.values()) for row in real])
        sums = torch.stack([sum(g.abs().sum() for g in row.values()) for row in real])
        assert torch.allclose(sum(found.sq_norms.values()), norms, rtol=1e-8, atol=1e-8 * float(norms.max() + 1e-300))
        assert torch.allclose(found.l1_norms, sums, rtol=1e-6, atol=1e-8 * float(sums.max() + 1e-300))
