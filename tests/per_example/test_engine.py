"""The engine equals the loop on every way of writing a model, or refuses."""

import copy

import pytest
import torch

from cases import CASES
from reference import loop_gradients
from variegrad.per_example.norms import batch_norms


def build(case, dtype):
    torch.manual_seed(0)
    model, losses, batch = case.make()
    cast = lambda t: t.to(dtype) if t.is_floating_point() else t  # noqa: E731
    from variegrad.batches import map_tensors

    return model.to(dtype), losses, map_tensors(cast, batch)


def seeded(losses):
    """The same random draws whenever the losses are evaluated, so that the loop sees the same masks."""

    def evaluate(model, batch):
        torch.manual_seed(1)
        return losses(model, batch)

    return evaluate


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_norms_and_sums_equal_the_loop(case, dtype):
    model, losses, batch = build(case, dtype)
    losses = seeded(losses)
    reference = copy.deepcopy(model)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    for _ in range(2):  # what was learnt at the first visit is used at the second
        rows = loop_gradients(reference, losses, batch)
        found = batch_norms(model, losses, batch, l1=True)
        whole = sum(r.double().reshape(len(r), -1).square().sum(1) for r in rows.values())
        for name, r in rows.items():
            assert torch.allclose(
                found.sq_norms[name],
                r.double().reshape(len(r), -1).square().sum(1),
                rtol=0,
                atol=tolerance * float(whole.max()),
            ), name
            assert torch.allclose(
                found.total[name].to_dense().double(),
                r.double().sum(0),
                rtol=0,
                atol=tolerance * float(whole.max().sqrt()),
            ), name
        assert torch.allclose(sum(found.sq_norms.values()), whole, rtol=tolerance)
        l1 = sum(r.double().reshape(len(r), -1).abs().sum(1) for r in rows.values())
        assert torch.allclose(found.l1_norms, l1, rtol=tolerance)
    assert all(p.grad is None for p in model.parameters())
