"""Reading a checkpoint: every byte is verified before it is used, and what cannot be used is named.

The newest that verifies is loaded. A damaged, missing or half-written one is skipped, and the result says why; if none
verifies, nothing is loaded.
"""

from __future__ import annotations

import os
import re
import stat
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from variegrad.training.checkpoint import manifest, tensors

LATEST = "LATEST"
TENSORS = "tensors.safetensors"
FORMER = ".former"
LARGEST = 2**28  # bytes of a manifest
FORM = re.compile(rf"step-(\d{{9,}})({re.escape(FORMER)})?")


class NoneUsable(ValueError):  # noqa: N818 - it reads as what is wrong with the folder
    """There is no checkpoint that could be loaded."""


@dataclass(frozen=True, kw_only=True)
class Unusable:
    """Something in the folder that was not used.

    Attributes:
        name: of the checkpoint or file.
        reason: why not.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint, verified.

    Attributes:
        step: updates made.
        tensors: by name, on the CPU.
        progress: how far the run was, and its settings.
        folder: where it stands.
        sha256: of its manifest, and so of all of it: equal on workers that read the same.
        unusable: what was newer but could not be used, and why.
    """

    step: int
    tensors: Mapping[str, Tensor]
    progress: manifest.Progress
    folder: Path
    sha256: str
    unusable: tuple[Unusable, ...] = ()

    @property
    def skipped(self) -> tuple[Unusable, ...]:
        """The former name of `unusable`."""
        warnings.warn("Checkpoint.skipped is now Checkpoint.unusable.", DeprecationWarning, stacklevel=2)
        return self.unusable


def load(folder: str | Path, step: int | None = None) -> Checkpoint:
    """Load the newest checkpoint that verifies.

    Args:
        folder: of the run's checkpoints.
        step: load this one or none.

    Returns:
        The checkpoint; `unusable` names what could not be used.

    Raises:
        NoneUsable: if none verifies: what is wrong with each.
    """
    folder = Path(folder)
    listed: list[Path] | None = None
    while listed != (listed := candidates(folder)):
        found, unusable = _newest(folder, listed, step)
        if found is not None:
            return found
        # A run that writes here may have removed what was listed; what it kept instead is listed now.
    wanted = "a checkpoint" if step is None else f"a checkpoint of step {step}"
    reasons = "; ".join(map(str, unusable)) or ("there is none" if folder.is_dir() else "there is no such folder")
    raise NoneUsable(
        f"{folder}: {wanted} that verifies is needed to resume; {reasons}. Start a new run in another folder."
    )


def _newest(folder: Path, listed: list[Path], step: int | None) -> tuple[Checkpoint | None, list[Unusable]]:
    unusable: list[Unusable] = []
    for candidate in listed:
        if step is not None and step_of(candidate) != step:
            continue
        try:
            described, arrays, sha256 = read(candidate)
        except manifest.Damaged as damaged:
            if os.path.lexists(candidate):
                unusable.append(Unusable(name=candidate.name, reason=str(damaged)))
            continue
        if step is None:
            unusable += _pointer(folder, {one.name for one in unusable})
        return Checkpoint(
            step=described.step,
            tensors=arrays,
            progress=described.progress,
            folder=candidate,
            sha256=sha256,
            unusable=tuple(unusable),
        ), unusable
    if step is None:
        unusable += _pointer(folder, {one.name for one in unusable})
    return None, unusable


def empty(folder: str | Path) -> bool:
    """Whether nothing was ever kept in a folder: no checkpoint, whole or not, and no `LATEST` that promises one.

    Args:
        folder: of the run's checkpoints.

    Returns:
        True also if there is no folder.
    """
    return not candidates(Path(folder)) and not (Path(folder) / LATEST).exists()


def steps(folder: str | Path) -> list[int]:
    """The steps that a folder has checkpoints of, verified or not.

    Args:
        folder: of the run's checkpoints.

    Returns:
        Steps, the newest first; none if there is no folder.
    """
    return list(dict.fromkeys(map(step_of, candidates(Path(folder)))))


def name_of(step: int) -> str:
    """The folder of a step.

    Args:
        step: updates made.

    Returns:
        Its name.
    """
    return f"step-{step:09d}"


def step_of(candidate: Path) -> int:
    """Undo `name_of`.

    Args:
        candidate: the folder of a step.

    Returns:
        The step.
    """
    named = FORM.fullmatch(candidate.name)
    assert named is not None
    return int(named[1])


def candidates(folder: Path) -> list[Path]:
    """What may be checkpoints, the newest first, and what replaced something before what it replaced.

    Args:
        folder: of the run's checkpoints.

    Returns:
        Folders.
    """
    found = [path for path in folder.iterdir() if FORM.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: (-step_of(path), path.name))


def looks_whole(candidate: Path) -> bool:
    """Whether the manifest verifies and the tensors have its size: enough to count it, not to use it.

    Args:
        candidate: the folder of a step.

    Returns:
        Whether it does.
    """
    try:
        described, _ = _described(candidate)
        found = (candidate / TENSORS).stat()
        return stat.S_ISREG(found.st_mode) and found.st_size == described.tensors.size
    except (manifest.Damaged, OSError):
        return False


def read(candidate: Path) -> tuple[manifest.Manifest, dict[str, Tensor], str]:
    """Read and verify all of a checkpoint.

    Args:
        candidate: the folder of a step.

    Returns:
        Manifest, tensors, and the SHA-256 of the manifest.

    Raises:
        Damaged: if anything is not as it was written.
    """
    described, sha256 = _described(candidate)
    path, stated = candidate / TENSORS, described.tensors
    try:
        size = _regular(path)
        if size != stated.size:
            raise manifest.Damaged(f"{TENSORS} has {size} bytes of {stated.size}")
        data = path.read_bytes()
    except OSError as error:
        raise manifest.Damaged(f"{TENSORS} cannot be read ({error.strerror})") from None
    if manifest.digest(data) != stated.sha256:
        raise manifest.Damaged(f"{TENSORS} does not fit its SHA-256")
    # What was verified is what is parsed: the file is not opened again.
    return described, tensors.from_bytes(data, described.same_as), sha256


def _described(candidate: Path) -> tuple[manifest.Manifest, str]:
    try:
        if _regular(candidate / manifest.NAME) > LARGEST:
            raise manifest.Damaged(f"{manifest.NAME} is larger than any manifest")
        data = (candidate / manifest.NAME).read_bytes()
    except OSError as error:
        raise manifest.Damaged(f"{manifest.NAME} cannot be read ({error.strerror}): it was never finished") from None
    described = manifest.from_bytes(data)
    if described.step != step_of(candidate):
        raise manifest.Damaged(f"its manifest is of step {described.step}: it is not this folder's")
    return described, manifest.digest(data)


def _regular(path: Path) -> int:
    """The size of a file; a pipe or a device in its place would be waited for."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise manifest.Damaged(f"{path.name} is no regular file")
    return found.st_size


def _pointer(folder: Path, known: set[str]) -> list[Unusable]:
    """What `LATEST` promises and the folder does not hold: a checkpoint that went missing leaves no other trace."""
    try:
        _regular(folder / LATEST)
        named, sha256 = (folder / LATEST).read_bytes().decode("ascii").removesuffix("\n").split(" ")
    except FileNotFoundError:
        return []  # stopped before its first checkpoint was pointed to
    except (OSError, ValueError):  # a folder in its place included
        return [Unusable(name=LATEST, reason="it cannot be read; remove it if the checkpoints here are complete")]
    if named in known:
        return []
    for candidate in candidates(folder):
        with suppress(manifest.Damaged):
            if candidate.name.removesuffix(FORMER) == named and _described(candidate)[1] == sha256:
                return []
    reason = (
        f"it names {named[:40]} with a SHA-256 that none here has: that checkpoint is gone, or this file is damaged"
    )
    return [Unusable(name=LATEST, reason=reason)]
