"""Problems of a user's own, small enough to be measured in a moment."""

import os
import signal

import torch
from torch import nn
from torch.utils.data import TensorDataset

from variegrad.problems import Problem


def squares(model, batch):
    return (model(batch[0]).squeeze(1) - batch[1]) ** 2


def problem(losses=squares, name="own", n=30, **changes):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=generator)
    model = nn.Linear(4, 1)
    with torch.no_grad():
        model.weight.fill_(0.1)
        model.bias.zero_()
    train = TensorDataset(x, x.sum(1) + torch.randn(n, generator=generator))
    return Problem(name=name, model=model, losses=losses, train=train, step_size=1e-3, **changes)


def bracketed():
    return problem(name="[bold]mine[/x]")


def empty():
    return problem(n=0)


def flat():
    return problem(losses=lambda model, batch: 0 * squares(model, batch))


def scalar():
    return problem(losses=lambda model, batch: squares(model, batch).mean())


def broken():
    def losses(model, batch):
        return {}["nothing"]

    return problem(losses)


def not_finite():
    made = problem()
    made.train.tensors[0][7] = float("nan")
    return made


def interrupting():
    """Presses Ctrl-C on its own process a while into the run."""
    calls = 0

    def losses(model, batch):
        nonlocal calls
        calls += 1
        if calls == 10:
            os.kill(os.getpid(), signal.SIGINT)
        return squares(model, batch)

    return problem(losses)


def disturbed():
    """At a call of its losses that the environment names, it ends itself, or raises."""
    calls = 0

    def losses(model, batch):
        nonlocal calls
        calls += 1
        how, _, when = os.environ.get("DISTURBED", "").partition(" ")
        if when and calls == int(when):
            if how == "error":
                raise OSError("the disk with the data has gone")
            os.kill(os.getpid(), getattr(signal, how))
        return squares(model, batch)

    return problem(losses, accuracy=lambda model, batch: (squares(model, batch) < 1).float())
