"""The same small training everywhere: digits in a fixed order, so that every trainer must find the same readings."""

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import variegrad as vg

STEP_SIZE = 0.1


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))


def data(count=96):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(count, 8, generator=draw)
    return TensorDataset(x, (x[:, :3] + 0.3 * torch.randn(count, 3, generator=draw)).argmax(1))


def batches(dataset, batch_size):
    x, y = dataset.tensors
    return [(x[k : k + batch_size], y[k : k + batch_size]) for k in range(0, len(x), batch_size)]


def plain_loop(dataset, *, batch_size, epochs, accumulate=1, **settings):
    """The readings of a loop with the losses of the examples: what each trainer is compared with."""
    trained = model()
    monitor = vg.Monitor(trained, accumulate=accumulate, **settings)
    optimizer = torch.optim.SGD(trained.parameters(), lr=STEP_SIZE)
    for _ in range(epochs):
        for k, (x, y) in enumerate(batches(dataset, batch_size)):
            losses = cross_entropy(trained(x), y, reduction="none")
            monitor.watch(losses)
            (losses.mean() / accumulate).backward()
            if (k + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
    return list(monitor.history)


def numbers(readings):
    """What must agree: where the readings were taken, and what they say."""
    return torch.tensor(
        [[r.step, r.batch_size, r.batch_size_bound, r.low, r.lower_confidence_bound] for r in readings],
        dtype=torch.float64,
    )


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    # The same float32 arithmetic in another order.
    torch.testing.assert_close(numbers(found), numbers(expected), rtol=2e-3, atol=1e-3)
