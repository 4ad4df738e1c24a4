"""Writing a checkpoint so that a crash at any moment leaves a whole one: the new, or those before it.

Temporary folder → each file written and fsynced, the manifest last → folder fsynced → renamed → parent fsynced →
`LATEST` renamed into place → old ones removed. Nothing that stands is written to again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from variegrad.files import durable, remove, sync_folder
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

    One process per folder at a time: hold `lock(folder)` around the run. What an interrupted save left behind is
    removed. Tensors are written from where they are: they must not change meanwhile.

    Args:
        folder: of the run's checkpoints; made if it does not exist.
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
    manifest.check_plain(progress)
    stored, same_as = tensors.distinct(arrays)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for begun in folder.glob(f"{BEGUN}*"):
            remove(begun)
        _set_damaged_aside(folder, step)
        saved, sha256 = _write(folder, step, stored, same_as, progress)
        _point(folder, f"{saved.name} {sha256}\n")
        _prune(folder, saved, keep)
    except OSError as error:
        left = [candidate.name for candidate in candidates(folder) if looks_whole(candidate)] if folder.is_dir() else []
        raise NotSaved(
            error.errno or errno.EIO,
            f"the checkpoint of step {step} was not saved in {folder}: {error.strerror or error}. "
            f"{f'The newest that stands is {left[0]}' if left else 'There is none before it'}; "
            "make room or name another folder",
        ) from error
    return saved


def _write(
    folder: Path, step: int, stored: Mapping[str, Tensor], same_as: Mapping[str, str], progress: manifest.Progress
) -> tuple[Path, str]:
    begun = folder / f"{BEGUN}{name_of(step)}"
    begun.mkdir()
    try:
        with durable(begun / TENSORS) as file:
            written = tensors.write(file, stored)
        described = manifest.Manifest(step=step, progress=progress, tensors=written, same_as=same_as)
        stated = manifest.to_bytes(described)
        with durable(begun / manifest.NAME) as file:
            file.write(stated)
        sync_folder(begun)
        final, former = folder / name_of(step), folder / (name_of(step) + FORMER)
        if os.path.lexists(final):  # made again after a resume: the former one stands until this one does
            _remove(former)
            final.rename(former)
        begun.rename(final)
        sync_folder(folder)
    except BaseException:
        with suppress(OSError):
            remove(begun)
        raise
    return final, manifest.digest(stated)


def _point(folder: Path, content: str) -> None:
    begun = folder / f"{BEGUN}{LATEST}"
    with durable(begun) as file:
        file.write(content.encode())
    begun.replace(folder / LATEST)
    sync_folder(folder)


def _set_damaged_aside(folder: Path, step: int) -> None:
    """A later step that is whole belongs to another course of the run; a damaged one must not block it."""
    for later in [candidate for candidate in candidates(folder) if step_of(candidate) > step]:
        try:
            read(later)
        except manifest.OtherVersion:
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
    if os.path.lexists(folder):
        going = folder.with_name(f"{BEGUN}{folder.name}")
        folder.rename(going)
        with suppress(OSError):  # the next save tries again
            remove(going)
