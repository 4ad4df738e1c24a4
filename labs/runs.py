"""The tiny runs that faults are done to: their settings, and how what came out is compared."""

import shutil
from pathlib import Path

from launch import running, torchrun

EVERY = 5  # updates between checkpoints
UPDATES = 40
SECONDS = 400  # until a run counts as hung; other processes may share the machine
SETTINGS = {
    "plain": (),
    "DropConnect per example": ("--mechanism", "dropconnect:0.4", "--epochs"),
    "Quantize per worker": ("--mechanism", "quantize", "--per-worker"),
}


def words(out, variant="plain", *more, updates=UPDATES, timeout=120):
    """The command line of a run: `--resume` from the start, so that every restart uses the same words."""
    return ["train", "tiny:problem", "--batch-size", 12, "--passes", updates / 10, "--checkpoint-every", EVERY,
            "--timeout", timeout, "--resume", "--out", out, *SETTINGS[variant], *more]  # fmt: skip


def finished(out, variant="plain", *more, log=None, **options):
    """Run to the end; the run's output."""
    arguments = {key: options.pop(key) for key in ("updates", "timeout") if key in options}
    with running(
        torchrun(words(out, variant, *more, **arguments), log=log or Path(out).parent / "log.txt", **options)
    ) as run:
        code = run.wait(SECONDS)
        return code, run.said()


def weights(out):
    """The bytes of the weights at the end."""
    return (Path(out) / "weights.safetensors").read_bytes()


class Undisturbed:
    """The same runs without a fault, made once."""

    def __init__(self, folder):
        self.folder, self._made = Path(folder), {}

    def run(self, variant="plain", updates=UPDATES):
        """Where it stands, with its checkpoints."""
        if (variant, updates) not in self._made:
            out = self.folder / f"undisturbed-{variant.replace(' ', '-')}-{updates}"
            shutil.rmtree(out, ignore_errors=True)
            code, said = finished(out, variant, updates=updates, log=self.folder / f"{out.name}.txt")
            if code != 0:
                raise RuntimeError(f"a run without a fault ended with {code}: {said[-2000:]}")
            self._made[variant, updates] = out
        return self._made[variant, updates]

    def copy(self, to, variant="plain", updates=UPDATES):
        """A copy that may be damaged."""
        shutil.copytree(self.run(variant, updates), to)
        return to

    def equals(self, out, variant="plain"):
        """Whether a run came to the same weights, bit for bit."""
        return (Path(out) / "weights.safetensors").exists() and weights(out) == weights(self.run(variant))
