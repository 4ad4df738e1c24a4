"""The slow, obvious version of `backward`: every ∇f_i by the loop, one keyed draw for each, and their sum."""

import torch

from reference import loop_gradients
from variegrad.mechanisms import Draws


def drawn_one_by_one(model, losses, batch, mechanism, *, seed=0, samples_seen=0, positions=None):
    """Σ_i m(∇f_i) by parameter; what is drawn for each example depends on its own gradient and position only."""
    gradients = loop_gradients(model, losses, batch)
    count = len(next(iter(gradients.values())))
    norms = torch.stack([g.double().reshape(count, -1).square().sum(1) for g in gradients.values()]).sum(0).sqrt()
    totals = {}
    for name, each in gradients.items():
        rows = each.float() if each.dtype == torch.bfloat16 else each
        totals[name] = torch.zeros_like(rows[0])
        for i in range(count):
            place = i if positions is None else positions[i]
            draws = Draws.keyed(seed, name, rows[i], [samples_seen + place], norms=norms[i : i + 1])
            totals[name] += mechanism.draw(rows[i : i + 1], draws)[0]
    return totals


def gradients_of(model):
    """What stands in `.grad`, and the model without it."""
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad(set_to_none=True)
    return found
