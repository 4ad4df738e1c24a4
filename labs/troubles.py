"""What happens to a run while it goes on: numbers that are not finite, disks, neighbours, cables."""

import json
import os
import time
from contextlib import contextmanager

from safetensors.numpy import load_file

import link
from damages import content_of
from launch import running, torchrun, until_traced, workers
from runs import EVERY, SECONDS, finished, words
from variegrad.training import checkpoint


def nan(policy, undisturbed, folder):
    """One worker's loss is NaN once: all stop before that update, or all leave it out."""
    plan = {"nan": True, "rank": 1, "update": 23, "trace": str(folder / "trace")}
    out = folder / "run"
    skip = ("--skip-not-finite", "3") if policy == "skip" else ()
    code, said = finished(out, "plain", *skip, plan=plan)
    record = json.loads((out / "train.json").read_text())
    finite = all(abs(w).max() < float("inf") for w in load_file(out / "weights.safetensors").values())
    kept = checkpoint.load(out / "checkpoints").step
    if policy == "stop":
        named = said.count("update 23, worker 1 of 2") >= 2 and record["updates"] == 22
        passed = bool(code) and named and finite and kept == 22
        came = f"exit {code}; both workers {'name worker 1 and update 23' if named else 'DO NOT SAY WHO'}"
    else:
        passed = code == 0 and record["left_out"] == 1 and finite and kept == 40
        came = f"exit {code}; {record['left_out']} of {record['updates']} skipped updates"
    return {
        "fault": f"NaN on one worker, {policy}",
        "injected": "worker 1, update 23",
        "came out": f"{came}; weights {'finite' if finite else 'NOT FINITE'}; checkpoint of update {kept} kept",
        "passed": passed,
    }


@contextmanager
def small_disk(folder, size):
    """A file system of its own."""
    folder.mkdir()
    link.run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        link.run("umount", "-l", str(folder))


def disk_full(undisturbed, folder):
    """The disk has room for two checkpoints: the third ends all workers with the reason, the two stay."""
    with small_disk(folder / "disk", "28k") as disk:
        out = disk / "run"
        code, said = finished(out, log=folder / "log.txt")
        kept = checkpoint.load(out / "checkpoints")
    told = said.count("No space left on device")
    first, second = (
        said.count(words_) > 0 for words_ in ("variegrad: [Errno 28]", "worker 0 of 2 ended the run: NotSaved")
    )
    return {
        "fault": "disk full",
        "injected": "a disk of 28 KiB, on which the third checkpoint has no room",
        "came out": f"exit {code}; the reason is said {'by both workers' if first and second else f'{told} TIMES'}; "
        f"checkpoint of update {kept.step} verifies",
        "passed": bool(code) and first and second and kept.step in (5, 10) and not kept.unusable,
    }  # fmt: skip


def read_only(undisturbed, folder):
    """A folder that has become read-only: refused on all workers before anything is trained; what is there stays."""
    if os.geteuid() != 0:
        out = undisturbed.copy(folder / "run")
        for path in (out, out / "checkpoints"):
            path.chmod(0o555)
        before = content_of(out)
        code, said = finished(out, updates=60, log=folder / "log.txt")
        same = content_of(out) == before
        for path in (out, out / "checkpoints"):
            path.chmod(0o755)
    else:
        with small_disk(folder / "disk", "4m") as disk:
            out = undisturbed.copy(disk / "run")
            link.run("mount", "-o", "remount,ro", str(disk))
            before = content_of(out)
            code, said = finished(out, updates=60, log=folder / "log.txt")
            same = content_of(out) == before and checkpoint.load(out / "checkpoints").step == 40
    why = "Read-only file system" in said or "Permission denied" in said
    return {
        "fault": "read-only folder",
        "injected": "a finished run is continued in it",
        "came out": f"exit {code}; {'the reason is said' if why else 'NOT SAID'}; "
        f"folder {'untouched' if same else 'CHANGED'}",
        "passed": bool(code) and why and same,
    }


def two_runs(undisturbed, folder):
    """The second run on a folder is refused and names the first; the first comes to its end unharmed."""
    out, plan = folder / "run", {"pace": 0.1, "trace": str(folder / "trace")}
    with running(torchrun(words(out), log=folder / "first.txt", plan=plan)) as first:
        until_traced(plan["trace"], 8, SECONDS)
        code, said = finished(out, log=folder / "second.txt")
        others = first.wait(SECONDS)
    named = said.count("one run per folder; process") >= 2
    equal = undisturbed.equals(out)
    return {
        "fault": "two runs on one folder",
        "injected": "a second torchrun while the first is under way",
        "came out": f"second: exit {code}, {'both its workers name the first' if named else 'NOT SAID'}; "
        f"first: exit {others}, weights {'bit-equal' if equal else 'NOT EQUAL'}",
        "passed": bool(code) and named and others == 0 and equal,
    }  # fmt: skip


def versions(undisturbed, folder):
    """Workers of different versions are refused by name before the first update."""
    code, said = finished(folder / "run", plan={"version": "9.9", "rank": 1})
    named = said.count("the workers differ in variegrad") >= 2
    return {
        "fault": "workers of different versions",
        "injected": "worker 1 says 9.9",
        "came out": f"exit {code}; {'both workers name the versions' if named else 'NOT SAID'}",
        "passed": bool(code) and named and not (folder / "run" / "weights.safetensors").exists(),
    }


def cable(what, undisturbed, folder, *, timeout):
    """The cable of worker 1 is pulled, for two seconds or for good."""
    out, plan = folder / "run", {"pace": 0.1, "trace": str(folder / "trace")}
    with link.Link() as between:
        group = workers(
            words(out, timeout=timeout), folder=folder, plan=plan, namespaces=between.namespaces,
            address=between.address(0), device=link.DEVICE,
        )  # fmt: skip
        with running(*group) as both:
            until_traced(plan["trace"], 2 * EVERY + 3, SECONDS)
            between.cut(1)
            cut = time.time()
            if what == "2-second blip":
                time.sleep(2)
                between.heal(1)
                codes = [each.wait(SECONDS) for each in both]
            else:
                named = [each.until(f"worker {rank} of 2: ", timeout + 60) for rank, each in enumerate(both)]
                codes = [each.wait(timeout) for each in both]
    if what == "2-second blip":
        equal = undisturbed.equals(out)
        return {
            "fault": what,
            "injected": "the cable of worker 1, under way",
            "came out": f"exits {codes}; weights {'bit-equal' if equal else 'NOT EQUAL'}",
            "passed": codes == [0, 0] and equal,
        }
    took = max(float("inf") if at is None else at - cut for at in named)
    first = "worker 1 did not answer" in both[0].said()
    kept = checkpoint.load(out / "checkpoints").step
    return {
        "fault": what,
        "injected": f"the cable of worker 1, under way; time limit {timeout:g} s",
        "came out": f"exits {codes}; both ended after {took:.1f} s; "
        f"worker 0 {'names worker 1' if first else 'DOES NOT SAY WHO'}; "
        f"checkpoint of update {kept} kept",
        "seconds until named": took,
        "passed": all(codes) and first and took <= timeout + 5 and kept >= 2 * EVERY,
    }  # fmt: skip


def cases(*, timeout, short=False):
    found = [(f"NaN, {policy}", lambda u, f, policy=policy: nan(policy, u, f)) for policy in ("stop", "skip")]
    found += [("read-only folder", read_only), ("two runs", two_runs), ("versions", versions)]
    found.append(
        ("disk full", disk_full if os.geteuid() == 0 else _skipped("disk full", "needs root, to make a small disk"))
    )
    if short:
        return [found[0], found[-1]]
    reason = link.not_here()
    for what in ("2-second blip", "cut cable"):

        def one(undisturbed, folder, what=what):
            return cable(what, undisturbed, folder, timeout=timeout)

        found.append((what, one if reason is None else _skipped(what, reason)))
    return found


def _skipped(fault, reason):
    return lambda *_: {"fault": fault, "injected": "nothing", "came out": f"skipped: {reason}", "passed": None}
