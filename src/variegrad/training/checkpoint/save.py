"""Writing a checkpoint so that a crash at any moment leaves a whole one: the new, or those before it.

Temporary folder → each file written and fsynced, the manifest last → folder fsynced → renamed → parent fsynced →
`LATEST` renamed into place → old ones removed. Nothing that stands is written to again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from variegrad.training.checkpoint import manifest, tensors
from variegrad.training.checkpoint.load import FORMER, LATEST, TENSORS, candidates, looks_whole, name_of, read, step_of

BEGUN = ".begun-"
ASIDE = "damaged-"


class NotSaved(OSError):  # noqa: N818 - it reads as what happened to the checkpoint
    """A checkpoint that could not be written; those before it are as they were."""


def save(
    folder: str | Path,
    step: int,
    arrays: Mapping[str, Tensor],
    progress: manifest.Progress,
    *,
    keep: int = 3,
) -> Path:
    """Write the checkpoint of a step, durably, and remove all but the newest.

    One process a folder at a time: hold `lock(folder)` around the run. What an interrupted save left behind is removed.

    Args:
        folder: of the run's checkpoints; made where it does not exist.
        step: updates made.
        arrays: tensors by name: weights, buffers, moments of an optimizer.
        progress: how far the run is, and its settings.
        keep: how many to keep, at least 1; two or more leave one to fall back on.

    Returns:
        The checkpoint's own folder.

    Raises:
        ValueError: if an argument is out of range, a tensor or a setting cannot be stored, or the folder holds a good
            checkpoint of a later step.
        NotSaved: if the system refuses to write (no room, read-only): which step, why, and what is left.
    """
    if step < 0:
        raise ValueError(f"step must be at least 0; got {step}.")
    if keep < 1:
        raise ValueError(f"keep must be at least 1 checkpoint; got {keep}.")
    data, same_as = tensors.to_bytes(arrays)
    described = manifest.Manifest(
        step=step,
        progress=progress,
        tensors=manifest.File(size=len(data), sha256=manifest.digest(data)),
        same_as=same_as,
    )
    stated = manifest.to_bytes(described)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for begun in folder.glob(f"{BEGUN}*"):
            shutil.rmtree(begun) if begun.is_dir() else begun.unlink()
        _set_damaged_aside(folder, step)
        saved = _write(folder, step, {TENSORS: data, manifest.NAME: stated})
        _point(folder, f"{saved.name} {manifest.digest(stated)}\n")
        _prune(folder, saved, keep)
    except OSError as error:
        left = [candidate.name for candidate in candidates(folder) if looks_whole(candidate)]
        raise NotSaved(
            error.errno,
            f"the checkpoint of step {step} was not saved in {folder}: {error.strerror or error}. "
            f"{f'The newest that stands is {left[0]}' if left else 'There is none before it'}; "
            "make room or name another folder",
        ) from error
    return saved


def _write(folder: Path, step: int, files: Mapping[str, bytes]) -> Path:
    begun = folder / f"{BEGUN}{name_of(step)}"
    begun.mkdir()
    try:
        for name, content in files.items():
            _write_durably(begun / name, content)
        _sync_folder(begun)
        final, former = folder / name_of(step), folder / (name_of(step) + FORMER)
        if final.exists():  # made again after a resume: the former one stands until this one does
            _remove(former)
            final.rename(former)
        begun.rename(final)
        _sync_folder(folder)
    except BaseException:
        shutil.rmtree(begun, ignore_errors=True)
        raise
    return final


def _point(folder: Path, content: str) -> None:
    begun = folder / f"{BEGUN}{LATEST}"
    _write_durably(begun, content.encode())
    begun.replace(folder / LATEST)
    _sync_folder(folder)


def _set_damaged_aside(folder: Path, step: int) -> None:
    """A later step that is whole belongs to another course of the run; a damaged one must not stand in the way."""
    for later in [candidate for candidate in candidates(folder) if step_of(candidate) > step]:
        try:
            read(later)
        except manifest.LaterVersion:
            pass
        except manifest.Damaged:
            aside = folder / f"{ASIDE}{later.name}"
            _remove(aside)
            later.rename(aside)
            continue
        raise ValueError(
            f"{folder} holds a checkpoint of step {step_of(later)}, beyond step {step} that is to be saved: it belongs "
            "to another run, or to another course of this one. Resume from it, or choose another folder."
        )


def _prune(folder: Path, saved: Path, keep: int) -> None:
    before = [candidate for candidate in candidates(folder) if candidate != saved]
    kept = [candidate for candidate in before if looks_whole(candidate)][: keep - 1]
    for candidate in before:
        if candidate not in kept:
            _remove(candidate)


def _remove(folder: Path) -> None:
    """Under another name first: half of a removed checkpoint must not look like one."""
    if folder.exists():
        going = folder.with_name(f"{BEGUN}{folder.name}")
        folder.rename(going)
        shutil.rmtree(going, ignore_errors=True)


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
