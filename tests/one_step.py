"""What one step says by the slow loop: (Û, M̂²), and B_D as a function of them."""

import torch

from reference import loop_gradients


def gram(model, losses, batch):
    rows = loop_gradients(model, losses, batch)
    flat = torch.cat([r.double().flatten(1) for r in rows.values()], 1)
    return flat @ flat.T


def moments(gram):
    m = len(gram)
    return float((gram.sum() - gram.trace()) / (m * (m - 1))), float(gram.trace() / m)


def last(monitor):
    """(Û, M̂²) of the monitor's latest step."""
    return tuple(monitor.state_dict()["window"][-1][-2:])
