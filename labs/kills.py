"""SIGKILL and SIGSTOP of a random worker at a point of our choice, under torchrun with restarts."""

import random

from faulty import POINTS
from launch import running, torchrun, traced
from runs import EVERY, SECONDS, SETTINGS, UPDATES, words

CHECKPOINT_POINTS = ("mid-checkpoint", "after rename")


def kill(point, number, undisturbed, folder, *, spawned=False):
    """One worker is killed once; the run must restart, finish, and have the weights of the undisturbed one."""
    random_ = random.Random(f"{point} {number}")
    variant = list(SETTINGS)[number % len(SETTINGS)]
    update = random_.randrange(1, UPDATES + 1)
    if point in CHECKPOINT_POINTS:
        update = -(-update // EVERY) * EVERY
    plan = {
        "point": point,
        "rank": random_.randrange(2),
        "update": update,
        "signal": "SIGKILL",
        "trace": str(folder / "trace"),
    }
    out = folder / "run"
    with running(torchrun(words(out, variant), plan=plan, log=folder / "log.txt", restarts=1, spawned=spawned)) as run:
        code = run.wait(SECONDS)
        said = run.said()
    killed = [line["what"] for line in traced(plan["trace"])] == ["SIGKILL"]
    resumed = [line for line in said.splitlines() if "resuming from update" in line or "begins at update 0" in line]
    equal = undisturbed.equals(out, variant)
    where = resumed[-1].split(": ", 1)[-1] if len(resumed) == 2 else f"{len(resumed)} starts"
    return {
        "fault": f"SIGKILL, {point}",
        "injected": f"worker {plan['rank']}, update {update}, {variant}{', torchrun as a command' if spawned else ''}",
        "came out": f"exit {code}; {where}; weights {'bit-equal' if equal else 'NOT EQUAL'}",
        "passed": killed and code == 0 and equal and len(resumed) == 2,
    }


def silent(undisturbed, folder, *, timeout):
    """A worker stops without ending; the other names it in time, and torchrun's restart finishes the run."""
    plan = {
        "point": "between collective and step",
        "rank": 1,
        "update": 23,
        "signal": "SIGSTOP",
        "trace": str(folder / "trace"),
    }
    out = folder / "run"
    with running(torchrun(words(out, timeout=timeout), plan=plan, log=folder / "log.txt", restarts=1)) as run:
        named = run.until("worker 1 did not answer", SECONDS)
        code = run.wait(SECONDS)
    stopped = traced(plan["trace"])[0]["time"]
    took = float("inf") if named is None else named - stopped
    equal = undisturbed.equals(out)
    return {
        "fault": "SIGSTOP of a worker",
        "injected": f"worker 1, update 23, time limit {timeout:g} s",
        "came out": f"named after {took:.1f} s; restarted: exit {code}, weights "
        f"{'bit-equal' if equal else 'NOT EQUAL'}",
        "seconds until named": took,
        "passed": took <= timeout + 5 and code == 0 and equal,
    }


def cases(repeats, *, timeout, spawned=1):
    """(name, function of the undisturbed runs and a folder); `spawned` of each point by torchrun as a command."""
    found = []
    for point in POINTS:
        for number in range(repeats):

            def one(undisturbed, folder, point=point, number=number):
                return kill(point, number, undisturbed, folder, spawned=number < spawned)

            found.append((f"kill, {point}, {number}", one))
    return [*found, ("silent worker", lambda undisturbed, folder: silent(undisturbed, folder, timeout=timeout))]
