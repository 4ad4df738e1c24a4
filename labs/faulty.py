"""`variegrad` with a fault at a chosen point: the program of a lab's workers. The library has no such points.

What to do stands in the variable VARIEGRAD_LAB_PLAN, as JSON:

    {"point": "mid-backward", "rank": 1, "update": 7, "signal": "SIGKILL", "trace": FILE}
    {"nan": true, "rank": 1, "update": 7}     {"pace": SECONDS, "trace": FILE}     {"version": "9.9", "rank": 1}

A signal is sent on the first attempt only (torchrun counts them), so that a restarted run may pass the point.
"""

import io
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
        if self.meant(point) and self.update == self.said["update"]:
            self.trace(self.said["signal"])
            os.kill(os.getpid(), getattr(signal, self.said["signal"]))

    def meant(self, point):
        """Whether this process, in this attempt, is to be hit at the point."""
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        return first and self.mine and self.said.get("point") == point

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
    def next_update(shared, _config, _position, _total, update, _left_out):
        plan.update, plan.calls = update + 1, 0
        if "pace" in plan.said:
            plan.trace("update")
            time.sleep(plan.said["pace"])
        if plan.said.get("nan") and plan.mine:
            shared.losses = spoiled(plan, shared.losses) if plan.update == plan.said["update"] else clean(shared.losses)

    before(SharedUpdate, "make", next_update)
    before(Exchange, "_arrived", lambda *_: plan.second_call("mid-backward"))
    before(Draws, "keyed", lambda *_, **__: plan.second_call("mid-backward"))
    sgd = import_module("variegrad.training.sgd")
    before(sgd, "_descend", lambda *_: plan.here("between collective and step"))

    save = import_module("variegrad.training.checkpoint.save")
    write = save.tensors.write

    def half_written(file, arrays):
        if plan.meant("mid-checkpoint") and f"step-{plan.said['update']:09d}" in file.name:
            whole = io.BytesIO()
            write(whole, arrays)
            file.write(whole.getvalue()[: whole.tell() // 2])
            file.flush()
            plan.update = plan.said["update"]  # the run may be further: it does not wait for the disk
            plan.here("mid-checkpoint")
        return write(file, arrays)

    def named(_folder, content):  # the folder has its name, LATEST is the former one
        if f"step-{plan.said.get('update', 0):09d}" in content:
            plan.update = plan.said["update"]
            plan.here("after rename")

    save.tensors.write = half_written
    before(save, "_point", named)
    if plan.rank:  # it writes nothing: it is ended while worker 0 writes, and while it waits for worker 0 the next time
        run = import_module("variegrad.training.checkpoint.run").Run
        after(run, "_keep_together", lambda: plan.here("mid-checkpoint"))
        after(run, "_keep_together", lambda: plan.here("after rename"))
    if "version" in plan.said and plan.mine:
        facts = import_module("variegrad.training.what_must_agree")
        facts.version = lambda _: plan.said["version"]


def after(owner, name, act):
    """Call `act` after a method."""
    original = getattr(owner, name)

    def wrapped(*arguments, **named):
        done = original(*arguments, **named)
        act()
        return done

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
