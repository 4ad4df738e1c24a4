"""The slow, obvious version that every engine is tested against: one backward pass for each example."""

import torch


def loop_gradients(model, losses, batch):
    """∇f_i for each example as {name: (b, *shape)}, by differentiating the full batch's graph b times."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    per_example = losses(model, batch)
    rows = {name: [] for name in parameters}
    for loss in per_example:
        model.zero_grad(set_to_none=True)
        loss.backward(retain_graph=True)
        for name, p in parameters.items():
            rows[name].append(torch.zeros_like(p) if p.grad is None else _dense(p.grad.detach()))
    model.zero_grad(set_to_none=True)
    return {name: torch.stack(r) for name, r in rows.items()}


def _dense(gradient):
    return gradient.to_dense() if gradient.is_sparse else gradient


def loop_sums(model, losses, batches):
    """n, Σ‖g‖², ‖Σg‖² and Σ‖g‖₁‖g‖₂ in float64."""
    n, sq, mixed, total = 0, 0.0, 0.0, None
    for batch in batches:
        rows = loop_gradients(model, losses, batch)
        flat = torch.cat([r.double().reshape(len(r), -1) for r in rows.values()], 1)
        n += len(flat)
        sq += float(flat.square().sum())
        mixed += float((flat.abs().sum(1) * flat.norm(dim=1)).sum())
        total = flat.sum(0) if total is None else total + flat.sum(0)
    return n, sq, float(total.square().sum()), mixed
