"""Damage to checkpoints between one run and the next: flipped bits; files missing, stale or half there."""

import json
import random
import shutil
from functools import partial
from pathlib import Path

from runs import EVERY, UPDATES, finished
from variegrad.training import checkpoint
from variegrad.training.checkpoint import manifest

LAST = f"step-{UPDATES:09d}"
BEFORE = UPDATES - EVERY


def flip(place, folder):
    """One bit, anywhere in the files of the newest checkpoint: whether loading finds it and takes the one before."""
    files = sorted((folder / LAST).iterdir())
    for file in files:
        size = file.stat().st_size
        if place < 8 * size:
            break
        place -= 8 * size
    content = bytearray(file.read_bytes())
    content[place // 8] ^= 1 << place % 8
    file.write_bytes(content)
    try:
        found = checkpoint.load(folder)
    except checkpoint.NoneUsable:
        return False
    finally:
        content[place // 8] ^= 1 << place % 8
        file.write_bytes(content)
    return found.step == BEFORE and found.unusable[0].name == LAST


def flips(count, undisturbed, folder):
    """So many flipped bits, one at a time."""
    checkpoints = undisturbed.copy(folder / "run") / "checkpoints"
    bits = 8 * sum(file.stat().st_size for file in (checkpoints / LAST).iterdir())
    places = random.Random(0).sample(range(bits), count)
    found = sum(flip(place, checkpoints) for place in places)
    whole = checkpoint.load(checkpoints).step == UPDATES
    return {
        "fault": "one flipped bit",
        "injected": f"{count} places of {bits:,}, one at a time, in the newest checkpoint",
        "came out": f"{found} of {count} detected, the one before loaded; {'loads' if whole else 'LOST'} undamaged",
        "passed": found == count and whole,
    }


def corrupt(checkpoints):
    file = checkpoints / LAST / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 8
    file.write_bytes(content)


def truncated(checkpoints):
    file = checkpoints / LAST / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def without_tensors(checkpoints):
    (checkpoints / LAST / "tensors.safetensors").unlink()


def missing(checkpoints):
    shutil.rmtree(checkpoints / LAST)


def stale(checkpoints):
    """The weights of an earlier step under the manifest of a later one."""
    shutil.copy(checkpoints / f"step-{BEFORE:09d}" / "tensors.safetensors", checkpoints / LAST)


def renamed(checkpoints):
    """An earlier step's folder under a later one's name."""
    shutil.rmtree(checkpoints / LAST)
    shutil.copytree(checkpoints / f"step-{BEFORE:09d}", checkpoints / LAST)


def half_written(checkpoints):
    """What a crash while saving leaves: a folder under its temporary name."""
    begun = checkpoints / f".begun-step-{UPDATES + EVERY:09d}"
    begun.mkdir()
    content = (checkpoints / LAST / "tensors.safetensors").read_bytes()
    (begun / "tensors.safetensors").write_bytes(content[: len(content) // 2])


SKIPPED = {
    "a flipped bit in the weights": (corrupt, f"{LAST}: tensors.safetensors does not fit its SHA-256"),
    "truncated weights": (truncated, f"skipped checkpoint {LAST}: tensors.safetensors has"),
    "missing weights": (without_tensors, f"skipped checkpoint {LAST}: tensors.safetensors cannot be read"),
    "missing checkpoint": (missing, f"skipped checkpoint LATEST: it names {LAST}"),
    "stale weights": (stale, f"skipped checkpoint {LAST}: tensors.safetensors does not fit its SHA-256"),
    "stale checkpoint": (renamed, f"skipped checkpoint {LAST}: its manifest is of step {BEFORE}"),
    "half-written checkpoint": (half_written, f"resuming from update {UPDATES} "),
}  # fmt: skip


def skipped(what, undisturbed, folder):
    """The run resumes from the checkpoint before, says so, and comes to the same weights."""
    damage, expected = SKIPPED[what]
    out = undisturbed.copy(folder / "run")
    damage(out / "checkpoints")
    (out / "weights.safetensors").unlink()
    code, said = finished(out)
    equal = undisturbed.equals(out)
    line = next((line for line in said.splitlines() if expected in line), "NOT SAID")
    return {
        "fault": what,
        "injected": "before the run goes on",
        "came out": f"exit {code}; “{_short(line, folder)}”; weights {'bit-equal' if equal else 'NOT EQUAL'}",
        "passed": code == 0 and equal and line != "NOT SAID",
    }


def all_damaged(checkpoints):
    for file in checkpoints.glob("step-*/tensors.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])


def later_version(checkpoints):
    for file in checkpoints.glob("step-*/manifest.json"):
        content = json.loads(file.read_text()) | {"schema": manifest.SCHEMA + 1}
        del content[manifest.DIGEST]
        text = json.dumps(content, indent=1, sort_keys=True) + "\n"
        digest = manifest.digest(text.encode())
        file.write_text(json.dumps({**content, manifest.DIGEST: digest}, indent=1, sort_keys=True) + "\n")


REFUSED = {
    "every checkpoint damaged": (all_damaged, (), "a checkpoint that verifies is needed to resume"),
    "checkpoints of a later version": (
        later_version,
        (),
        f"it is of schema {manifest.SCHEMA + 1}, this",
    ),
    "another step size": (lambda _: None, ("--step-size", 0.5), "step_size was 0.01 and is 0.5 now"),
    "another mechanism": (lambda _: None, ("--mechanism", "quantize"), "mechanism was None and is"),
    "another number of examples": (lambda _: None, ("--max-examples", 100), "examples was 120 and is 100 now"),
}


def refused(what, undisturbed, folder):
    """Nothing is trained and nothing in the folder changes; the reason is said."""
    damage, more, expected = REFUSED[what]
    out = undisturbed.copy(folder / "run")
    damage(out / "checkpoints")
    before = content_of(out)
    code, said = finished(out, "plain", *more)
    line = next((line for line in said.splitlines() if expected in line), "NOT SAID")
    same = content_of(out) == before
    return {
        "fault": what,
        "injected": "before the run goes on",
        "came out": f"exit {code}; “{_short(line, folder)}”; folder {'untouched' if same else 'CHANGED'}",
        "passed": bool(code) and same and line != "NOT SAID",
    }


def content_of(folder):
    """Every file but the lock."""
    return {str(p): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file() and p.name != "LOCK"}


def _short(line, folder):
    said = line.removeprefix("variegrad: ").replace(str(folder), "…")
    return said if len(said) < 140 else f"{said[:140]}…"


def cases(count, *, short=False):
    found = [("flipped bits", lambda undisturbed, folder: flips(count, undisturbed, folder))]
    for table, function in ((SKIPPED, skipped), (REFUSED, refused)):
        found += [(what, partial(function, what)) for what in list(table)[: 2 if short else None]]
    return found
