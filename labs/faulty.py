"""`variegrad` with a fault at a chosen point: the program of a lab's workers. The library has no such points.

What to do stands in the variable VARIEGRAD_LAB_PLAN, as JSON:

    {"point": "mid-backward", "rank": 1, "update": 7, "signal": "SIGKILL", "trace": FILE}
    {"nan": true, "rank": 1, "update": 7}     {"pace": SECONDS, "trace": FILE}     {"version": "9.9", "rank": 1}

A signal is sent on the first attempt only (torchrun counts them), so that a restarted run may pass the point.
"""

import json
import os
import signal
import sys
import time
from importlib import import_module  # where a function has its module's name
from pathlib import Path

import torch

from variegrad.cli import main as command
from variegrad.distributed.exchange import Exchange
from variegrad.mechanisms.draws import Draws
from variegrad.training.shared_update import SharedUpdate

POINTS = ("mid-backward", "between collective and step", "mid-checkpoint", "after rename")


class Plan:
    """What is to happen in this process, and the number of the update that it is in."""

    def __init__(self, said):
        self.said, self.update, self.calls = said, 0, 0
        self.rank = int(os.environ.get("RANK", "0"))
        self.mine = self.rank == said.get("rank", self.rank)

    def trace(self, what):
        line = json.dumps({"what": what, "rank": self.rank, "update": self.update, "time": time.time()})
        with Path(self.said["trace"]).open("a") as file:
            file.write(f"{line}\n")

    def here(self, point):
        """Send the signal if this is where, when and who."""
        said = self.said
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if first and self.mine and said.get("point") == point and self.update == said["update"]:
            self.trace(said["signal"])
            os.kill(os.getpid(), getattr(signal, said["signal"]))

    def second_call(self, point):
        """The first parameter of the update has passed here."""
        self.calls += 1
        if self.calls == 2:
            self.here(point)


def before(owner, name, act):
    """Call `act` with the same arguments before a function or method."""
    original = getattr(owner, name)

    def wrapped(*arguments, **named):
        act(*arguments, **named)
        return original(*arguments, **named)

    setattr(owner, name, wrapped)


def prepare(plan):
    def next_update(shared, _indices, _position, update, _skipped):
        plan.update, plan.calls = update + 1, 0
        if "pace" in plan.said:
            plan.trace("update")
            time.sleep(plan.said["pace"])
        if plan.said.get("nan") and plan.mine:
            shared.losses = spoiled(plan, shared.losses) if plan.update == plan.said["update"] else clean(shared.losses)

    before(SharedUpdate, "make", next_update)
    before(Exchange, "_arrived", lambda *_: plan.second_call("mid-backward"))
    before(Draws, "keyed", lambda *_, **__: plan.second_call("mid-backward"))
    before(SharedUpdate, "_move", lambda *_: plan.here("between collective and step"))

    def half_written(path, content):
        if path.name == "tensors.safetensors" and plan.said.get("point") == "mid-checkpoint":
            path.write_bytes(content[: len(content) // 2])
            plan.here("mid-checkpoint")

    save = import_module("variegrad.training.checkpoint.save")
    before(save, "_write_durably", half_written)
    before(save, "_point", lambda *_: plan.here("after rename"))  # the folder has its name, LATEST is the former one
    if plan.rank:  # it writes nothing: it is ended while it waits for worker 0, which is writing or has written
        train = import_module("variegrad.cli.train")
        before(train, "saved", lambda *_: plan.here("mid-checkpoint"))
        after(train, "failing_together", lambda: plan.here("after rename"))
    if "version" in plan.said and plan.mine:
        facts = import_module("variegrad.training.facts")
        facts.version = lambda _: plan.said["version"]


def after(owner, name, act):
    """Call `act` once the block of a context manager was left."""
    original = getattr(owner, name)

    def wrapped(*arguments):
        manager = original(*arguments)
        leave = type(manager).__exit__

        class Acting:
            def __enter__(self):
                return manager.__enter__()

            def __exit__(self, *error):
                done = leave(manager, *error)
                act()
                return done

        return Acting()

    setattr(owner, name, wrapped)


def spoiled(plan, losses):
    def with_nan(model, batch):
        return losses(model, batch) * torch.nan

    with_nan.original = losses
    plan.trace("NaN")
    return with_nan


def clean(losses):
    return getattr(losses, "original", losses)


def main(*arguments):
    """The command `variegrad`, under the plan.

    Raises:
        SystemExit: with the command's exit code, if that is not 0.
    """
    torch.set_num_threads(1)
    if said := os.environ.get("VARIEGRAD_LAB_PLAN"):
        prepare(Plan(json.loads(said)))
    sys.argv = ["variegrad", *arguments]
    try:
        command()
    except SystemExit as ended:
        if ended.code:
            raise


if __name__ == "__main__":
    main(*sys.argv[1:])
